"""A class for every pixel: Panoptic FPN's semantic branch (Kirillov et al., CVPR 2019, fig. 3)."""

import math

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.layers.weight_init import c2_msra_fill
from fvcore.common.registry import Registry
from torch import nn

from .._absent import resolve
from .._conv import conv_norm
from ..backbone import Backbone, build_backbone
from ..postprocessing import sem_seg_postprocess
from ._image_model import Batch, ImageModel, output_sizes
from .build import META_ARCH_REGISTRY

__all__ = ["SEM_SEG_HEADS_REGISTRY", "SemSegFPNHead", "SemanticSegmentor", "build_sem_seg_head"]

# Shape legend. B images of a batch, K classes; H and W the padded image.

_SMOOTH = {"mode": "bilinear", "align_corners": False}

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = """
Modules built from ``(cfg, input_shape: dict of ShapeSpec)`` that predict from feature maps.
"""


def build_sem_seg_head(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build ``MODEL.SEM_SEG_HEAD.NAME``."""
    return resolve(SEM_SEG_HEADS_REGISTRY, cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


@META_ARCH_REGISTRY.register()
class SemanticSegmentor(ImageModel):
    """Backbone and semantic head."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ):
        """
        Args:
            sem_seg_head: called with feature maps and targets, returns (B, K, H, W) logits and
                losses; its ``ignore_value`` fills the targets' padding.
            pixel_mean, pixel_std: per channel.
        """
        super().__init__(backbone, pixel_mean, pixel_std)
        self.sem_seg_head = sem_seg_head

    @classmethod
    def from_config(cls, cfg) -> dict:
        backbone = build_backbone(cfg)
        head = build_sem_seg_head(cfg, backbone.output_shape())
        pixels = {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
        return {"backbone": backbone, "sem_seg_head": head, **pixels}

    def _padded_targets(self, batched_inputs: Batch) -> torch.Tensor | None:
        """(B, H, W) class of each pixel, or None where the batch has no "sem_seg"."""
        maps = self._on_device(batched_inputs, "sem_seg")
        if maps is None:
            return None
        return self._pad(maps, self.sem_seg_head.ignore_value).tensor

    def forward(self, batched_inputs: Batch):
        """
        Args:
            batched_inputs: in training with "sem_seg", an (H_i, W_i) integer tensor.

        Returns:
            In training {name: scalar loss}; else per image {"sem_seg": (K, height, width) logits}
            at the size that the input asks for.
        """
        images, maps = self._encode(batched_inputs)
        logits, losses = self.sem_seg_head(maps, self._padded_targets(batched_inputs))
        if self.training:
            return losses
        wanted = output_sizes(batched_inputs, images.image_sizes)
        return [
            {"sem_seg": sem_seg_postprocess(padded, valid, *size)}
            for padded, valid, size in zip(logits, images.image_sizes, wanted)
        ]


@SEM_SEG_HEADS_REGISTRY.register()
class SemSegFPNHead(nn.Module):
    """Every pyramid level is brought to one stride by convolutions and doublings; their sum tells.

    The branch of a level carries the level's name: p2.0, p4.0, p4.2, ... are its convolutions.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int,
        common_stride: int,
        loss_weight: float = 1.0,
        norm=None,
        ignore_value: int = -1,
    ):
        """
        Args:
            input_shape: of the levels used.
            num_classes: K.
            conv_dims: channels inside the head.
            common_stride: stride of the sum, in image pixels.
            norm: normalisation of the convolutions, which then have no bias.
            ignore_value: class of pixels that no loss counts.
        """
        super().__init__()
        assert input_shape, "SemSegFPNHead needs at least one feature map"
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        self.scale_heads = []
        for name in self.in_features:
            branch = self._branch(input_shape[name], conv_dims, norm)
            self.add_module(name, branch)
            self.scale_heads.append(branch)
        self.predictor = Conv2d(conv_dims, num_classes, 1)
        c2_msra_fill(self.predictor)

    def _branch(self, shape: ShapeSpec, width: int, norm) -> nn.Sequential:
        """Convolutions with a doubling behind each, as many as the stride is too large."""
        doublings = round(math.log2(shape.stride / self.common_stride))
        layers: list[nn.Module] = []
        for number in range(max(doublings, 1)):
            inputs = width if number else shape.channels
            conv = conv_norm(inputs, width, 3, norm, activation=F.relu)
            c2_msra_fill(conv)
            layers.append(conv)
            if shape.stride != self.common_stride:
                layers.append(nn.Upsample(scale_factor=2, **_SMOOTH))
        return nn.Sequential(*layers)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.SEM_SEG_HEAD
        used = frozenset(node.IN_FEATURES)
        return {
            "input_shape": {name: input_shape[name] for name in input_shape if name in used},
            "num_classes": node.NUM_CLASSES,
            "conv_dims": node.CONVS_DIM,
            "common_stride": node.COMMON_STRIDE,
            "loss_weight": node.LOSS_WEIGHT,
            "norm": node.NORM,
            "ignore_value": node.IGNORE_VALUE,
        }

    def forward(
        self, features: dict[str, torch.Tensor], targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """In training None and the losses, else (B, K, H, W) logits and {}."""
        coarse = self.layers(features)
        if not self.training:
            return self._to_pixels(coarse), {}
        return None, self.losses(coarse, targets)

    def layers(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, K, H / common_stride, W / common_stride) logits."""
        branches = zip(self.in_features, self.scale_heads)
        return self.predictor(sum(branch(features[name]) for name, branch in branches))

    def _to_pixels(self, coarse: torch.Tensor) -> torch.Tensor:
        return F.interpolate(coarse, scale_factor=self.common_stride, **_SMOOTH)

    def losses(self, predictions: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean cross-entropy of the pixels that are not ignored.

        Args:
            predictions: of `layers`.
            targets: (B, H, W).
        """
        # Interpolation on CPU and the log of the softmax both want full precision under AMP.
        logits = self._to_pixels(predictions.float())
        loss = F.cross_entropy(logits, targets, ignore_index=self.ignore_value)
        return {"loss_sem_seg": self.loss_weight * loss}
