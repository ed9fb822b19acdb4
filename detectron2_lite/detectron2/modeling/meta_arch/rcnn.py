"""Two-stage detector and its first stage alone."""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from ..backbone import Backbone, build_backbone
from ..postprocessing import detector_postprocess
from ..proposal_generator import build_proposal_generator
from ..roi_heads import build_roi_heads
from ._image_model import Batch, ImageModel, output_sizes
from .build import META_ARCH_REGISTRY

__all__ = ["GeneralizedRCNN", "ProposalNetwork"]


def _to_output_size(
    instances: list[Instances], batched_inputs: Batch, image_sizes: list[tuple[int, int]], key: str
) -> list[dict[str, Instances]]:
    wanted = output_sizes(batched_inputs, image_sizes)
    return [{key: detector_postprocess(found, *size)} for found, size in zip(instances, wanted)]


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(ImageModel):
    """Backbone, proposals, heads on proposals: Faster and Mask R-CNN."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = None,
        vis_period: int = 0,
    ):
        """
        Args:
            proposal_generator: None takes the proposals of the dataset dicts.
            pixel_mean, pixel_std: per channel, in the order of ``input_format``.
            input_format: channels of the images ("BGR", "RGB"); read for visualisation only.
            vis_period: if positive, store training images every so many iterations.
        """
        super().__init__(backbone, pixel_mean, pixel_std)
        assert vis_period <= 0 or input_format is not None, "vis_period needs an input_format"
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.input_format = input_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg) -> dict:
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    def visualize_training(self, batched_inputs: Batch, proposals: list[Instances]) -> None:
        """Store the first image with its ground truth, and with its best 20 proposals."""
        from torchvision.utils import draw_bounding_boxes

        image = batched_inputs[0]["image"].cpu()
        if self.input_format == "BGR":
            image = image.flip(0)
        image = image.clamp(0, 255).byte()
        shown = batched_inputs[0]["instances"].gt_boxes, proposals[0].proposal_boxes[:20]
        panels = [
            draw_bounding_boxes(image, boxes.to("cpu").tensor.detach(), colors="red")
            for boxes in shown
        ]
        title = "Left: GT bounding boxes;  Right: Predicted proposals"
        get_event_storage().put_image(title, torch.cat(panels, dim=2))

    def forward(self, batched_inputs: Batch):
        """
        Returns:
            In training {name: scalar loss}; else per image {"instances": Instances} with
            "pred_boxes", "pred_classes", "scores" and, with a mask head, "pred_masks".
        """
        return (self._losses if self.training else self.inference)(batched_inputs)

    def _losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        truth = self._on_device(batch, "instances")
        images, maps = self._encode(batch)
        proposals, losses = self._propose(batch, images, maps, truth)
        _, head_losses = self.roi_heads(images, maps, proposals, truth)
        if self.vis_period > 0 and not get_event_storage().iter % self.vis_period:
            self.visualize_training(batch, proposals)
        return head_losses | losses

    def _propose(
        self,
        batched_inputs: Batch,
        images: ImageList,
        features: dict[str, torch.Tensor],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, targets)
        given = self._on_device(batched_inputs, "proposals")
        assert given is not None, 'without a proposal generator each input needs "proposals"'
        return given, {}

    def inference(
        self,
        batched_inputs: Batch,
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ):
        """
        Args:
            detected_instances: if given, per image "pred_boxes" and "pred_classes" in the frame of
                the input image; only the remaining outputs (masks) are computed.
            do_postprocess: scale to the size wanted and paste the masks.

        Returns:
            Like `forward`, or, with ``do_postprocess`` false, a list of raw `Instances`.
        """
        assert not self.training, "inference needs eval mode"
        images, maps = self._encode(batched_inputs)
        if detected_instances is not None:
            known = [detected.to(self.device) for detected in detected_instances]
            raw = self.roi_heads.forward_with_given_boxes(maps, known)
        else:
            proposals, _ = self._propose(batched_inputs, images, maps)
            raw = self.roi_heads(images, maps, proposals, None)[0]
        if do_postprocess:
            return self._postprocess(raw, batched_inputs, images.image_sizes)
        return raw

    @staticmethod
    def _postprocess(
        instances: list[Instances], batched_inputs: Batch, image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """Bring raw detections to the size that each input asks for."""
        return _to_output_size(instances, batched_inputs, image_sizes, "instances")


@META_ARCH_REGISTRY.register()
class ProposalNetwork(ImageModel):
    """Backbone and proposal generator only."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.proposal_generator = proposal_generator

    @classmethod
    def from_config(cls, cfg) -> dict:
        backbone = build_backbone(cfg)
        proposer = build_proposal_generator(cfg, backbone.output_shape())
        pixels = {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
        return {"backbone": backbone, "proposal_generator": proposer, **pixels}

    def forward(self, batched_inputs: Batch):
        """In training {name: scalar loss}; else per image {"proposals": Instances}."""
        images, maps = self._encode(batched_inputs)
        truth = self._on_device(batched_inputs, "instances")
        found, losses = self.proposal_generator(images, maps, truth)
        if not self.training:
            return _to_output_size(found, batched_inputs, images.image_sizes, "proposals")
        return losses
