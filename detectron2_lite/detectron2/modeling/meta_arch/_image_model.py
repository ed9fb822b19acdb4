"""What whole models have in common: images come in raw, are normalised and batched."""

from collections.abc import Sequence

import torch
from detectron2.layers import move_device_like
from detectron2.structures import ImageList, Instances
from torch import nn

from ..backbone import Backbone

__all__ = ["Batch", "ImageModel", "output_sizes"]

# A batch is a list of dataset dicts: "image" (C, H, W) in INPUT.FORMAT; in training "instances";
# optionally "proposals"; "height" and "width" are the size wanted of the output, (H, W) by default.
Batch = list[dict]


def output_sizes(
    batched_inputs: Batch, image_sizes: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """(height, width) of the prediction that each input asks for."""
    return [
        (asked.get("height", height), asked.get("width", width))
        for asked, (height, width) in zip(batched_inputs, image_sizes)
    ]


class ImageModel(nn.Module):
    """Normalisation and batching of images."""

    def __init__(self, backbone: Backbone, pixel_mean: Sequence[float], pixel_std: Sequence[float]):
        super().__init__()
        self.backbone = backbone
        assert len(pixel_mean) == len(pixel_std), f"{pixel_mean} and {pixel_std} do not match"
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            column = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, column, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.pixel_mean.device

    def _move_to_current_device(self, x: torch.Tensor) -> torch.Tensor:
        return move_device_like(x, self.pixel_mean)

    def preprocess_image(self, batched_inputs: Batch) -> ImageList:
        """Normalise (before padding, so that the border is 0) and pad the images to one batch."""
        raw = [self._move_to_current_device(each["image"]) for each in batched_inputs]
        return self._pad([(image - self.pixel_mean) / self.pixel_std for image in raw])

    def _pad(self, tensors: list[torch.Tensor], value: float = 0.0) -> ImageList:
        """A batch of the size that the backbone needs, with ``value`` in the border."""
        body = self.backbone
        return ImageList.from_tensors(
            tensors, body.size_divisibility, value, body.padding_constraints
        )

    def _encode(self, batched_inputs: Batch) -> tuple[ImageList, dict[str, torch.Tensor]]:
        """The batched images and the backbone's maps of them."""
        images = self.preprocess_image(batched_inputs)
        return images, self.backbone(images.tensor)

    def _on_device(self, batched_inputs: Batch, key: str) -> list[Instances] | None:
        if not batched_inputs or key not in batched_inputs[0]:
            return None
        return [each[key].to(self.device) for each in batched_inputs]
