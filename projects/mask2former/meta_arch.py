"""The meta-architecture: Detectron2's batches in, the library's network, losses or Instances out.

Shape legend: B images, Q queries, K classes, L predictions of the decoder, n instances of an image,
(H, W) the padded size of the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from masksmith_projects.mask2former.criterion import build_criterion
from masksmith_projects.mask2former.network import build_network
from masksmith_projects.mask2former.ranking import best_pairs, masks_with_quality, rank
from masksmith_projects.mask2former.targets import (
    float_masks,
    ground_truth,
    image_weights,
    instance_weights,
)

# Counts of the mapper, and their names in the metrics.
LEFT_OUT = {
    "lost_instances": "instances outside of the crop",
    "empty_instances": "instances with an empty mask",
    "crowds": "crowds",
}


@META_ARCH_REGISTRY.register()
class Mask2Former(nn.Module):
    """Masked-attention mask transformer for instance segmentation (Cheng et al., CVPR 2022).

    The names of its state are those of the library's `Mask2FormerForUniversalSegmentation` in
    memory, so that a checkpoint's "model" loads into either, in one version of the library.
    Published files have other names, which `save_pretrained` and `from_pretrained` translate.

    Args:
        network: the library's `Mask2FormerForUniversalSegmentation`.
        criterion: as of `build_criterion`.
        pixel_mean, pixel_std: per channel of the input, for values 0-255.
        size_divisibility: images are padded to a multiple of it, in pixels.
        detections_per_image: instances that inference gives at most.
        deep_supervision: losses after every layer of the decoder.
        freeze_norm: batch norm keeps its statistics and factors.
    """

    # For SOLVER.BACKBONE_MULTIPLIER, whichever backbone it is.
    backbone_prefixes = ("model.pixel_level_module.encoder.",)

    @configurable
    def __init__(
        self,
        *,
        network: nn.Module,
        criterion: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 32,
        detections_per_image: int = 100,
        deep_supervision: bool = True,
        freeze_norm: bool = False,
    ):
        super().__init__()
        self.model, self.class_predictor = network.model, network.class_predictor
        self.criterion = criterion
        self.size_divisibility = size_divisibility
        self.detections_per_image = detections_per_image
        self.deep_supervision, self.freeze_norm = deep_supervision, freeze_norm
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        if freeze_norm:
            for norm in self._batch_norms():
                norm.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.MODEL.MASK_FORMER
        network = build_network(cfg)
        return {
            "network": network,
            "criterion": build_criterion(network.config),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": options.SIZE_DIVISIBILITY,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "deep_supervision": options.DEEP_SUPERVISION,
            "freeze_norm": options.FREEZE_NORM and options.BACKBONE == "resnet",
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> "Mask2Former":
        super().train(mode)
        if self.freeze_norm:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else instances.

        Args:
            batched_inputs: dicts with `image` (3, h, w), 0-255; in training `instances` with
                gt_classes, gt_masks and perhaps gt_weights, and perhaps `weight`, the image's; at
                test time perhaps `height` and `width` of the output in pixels.

        Returns:
            {loss name: scalar}, or per image {"instances": `Instances`} with pred_masks (bool),
            pred_boxes (around the masks), scores and pred_classes, by falling score.

        Raises:
            DataError: ground truth that cannot be trained on.
        """
        images = [
            (x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs
        ]
        batch = ImageList.from_tensors(images, self.size_divisibility)
        layers = self.predict(batch.tensor)
        if self.training:
            return self.losses(layers, batched_inputs, tuple(batch.tensor.shape[-2:]))
        return self.inference(layers[-1], batched_inputs, batch)

    def predict(self, pixels: Tensor) -> list[dict[str, Tensor]]:
        """L predictions, from before the first layer of the decoder to after its last.

        Args:
            pixels: normalised (B, 3, H, W).

        Returns:
            Dicts of `masks_queries_logits` (B, Q, H / 4, W / 4) and `class_queries_logits`
            (B, Q, K + 1).
        """
        output = self.model(pixel_values=pixels, output_hidden_states=True)
        states = output.transformer_decoder_intermediate_states
        return [
            {
                "masks_queries_logits": masks,
                "class_queries_logits": self.class_predictor(state.transpose(0, 1)),
            }
            for state, masks in zip(states, output.masks_queries_logits, strict=True)
        ]

    def losses(
        self, layers: list[dict[str, Tensor]], samples: list[dict], canvas: tuple[int, int]
    ) -> dict[str, Tensor]:
        """The criterion's terms times their `MODEL.MASK_FORMER.*_WEIGHT`.

        Args:
            layers: of `predict`.
            samples: of `forward`.
            canvas: (H, W).
        """
        classes = self.class_predictor.out_features - 1
        truths = [ground_truth(sample, classes, self.device) for sample in samples]
        losses = self.criterion(
            **layers[-1],
            mask_labels=[
                float_masks(t.gt_masks, t.image_size, canvas).to(self.device)
                if len(t)
                else torch.zeros((0, *canvas), device=self.device)
                for t in truths
            ],
            class_labels=[t.gt_classes for t in truths],
            auxiliary_predictions=layers[:-1] if self.deep_supervision else None,
            instance_weights=[instance_weights(s, t, self.device) for s, t in zip(samples, truths)],
            image_weights=image_weights(samples, self.device),
        )
        _log_left_out(samples)
        factors = self.criterion.weight_dict
        return {
            name: loss * next(factor for term, factor in factors.items() if name.startswith(term))
            for name, loss in losses.items()
        }

    @torch.no_grad()
    def inference(
        self, layer: dict[str, Tensor], samples: list[dict], batch: ImageList
    ) -> list[dict[str, Instances]]:
        """Instances of each image from the last prediction; see `forward`."""
        results = []
        for index, (sample, size) in enumerate(zip(samples, batch.image_sizes, strict=True)):
            output = (sample.get("height", size[0]), sample.get("width", size[1]))
            classes = layer["class_queries_logits"][index]
            probs, queries, labels = best_pairs(classes, self.detections_per_image)
            # A query that stands for several classes is enlarged once.
            used, which = queries.unique(return_inverse=True)
            masks, quality = masks_with_quality(
                layer["masks_queries_logits"][index][used],
                tuple(batch.tensor.shape[-2:]),
                size,
                output,
            )
            scores, order = rank(probs, quality[which], masks[which])
            instances = Instances(output)
            instances.pred_masks = masks[which[order]]
            instances.scores, instances.pred_classes = scores[order], labels[order]
            boxes = BitMasks(instances.pred_masks.cpu()).get_bounding_boxes()
            instances.pred_boxes = boxes.to(self.device)
            results.append({"instances": instances})
        return results

    def _batch_norms(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]


def _log_left_out(samples: list[dict]) -> None:
    """The mapper's counts of this process's batch, where a training writes metrics."""
    if not has_event_storage():
        return
    for key, name in LEFT_OUT.items():
        if any(key in sample for sample in samples):
            count = sum(sample.get(key, 0) for sample in samples)
            get_event_storage().put_scalar(f"mask2former/{name}", count)
