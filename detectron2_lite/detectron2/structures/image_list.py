"""A batch of images of unequal size in one padded tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ImageList"]


class ImageList:
    """Images of a batch, padded right and below, with their true sizes.

    Attributes:
        tensor: (N, C, H, W) or (N, H, W).
        image_sizes: N pairs (height, width) before padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: Sequence[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int | slice) -> Tensor:
        """The i-th image without its padding, (C, h, w) or (h, w), as a view.

        A slice of length-one batches keeps the leading dimension.
        """
        height, width = self.image_sizes[idx]
        padded = self.tensor[idx]
        return padded[..., :height, :width]

    def to(self, *args: object, **kwargs: object) -> ImageList:
        """As `Tensor.to`."""
        moved = self.tensor.to(*args, **kwargs)
        return ImageList(moved, self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> ImageList:
        """Pad images to their common size.

        Args:
            tensors: N images (C, h, w) or (h, w) with equal leading dimensions.
            size_divisibility: the common height and width are rounded up to a multiple.
            pad_value: value of the padding.
            padding_constraints: "square_size" (a fixed side, if > 0) and "size_divisibility"
                (wins over the argument) of the backbone.

        Raises:
            ValueError: no image, or images with different leading dimensions or too large
                for the square.
        """
        if len({image.shape[:-2] for image in tensors}) != 1:
            shapes = [tuple(image.shape) for image in tensors]
            raise ValueError(f"Images of one batch must agree in channels, got {shapes}")
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        constraints = padding_constraints or {}
        height, width = (max(sides) for sides in zip(*sizes))
        square = constraints.get("square_size") or 0
        if square > 0:
            if max(height, width) > square:
                raise ValueError(f"An image of {(height, width)} exceeds square_size {square}")
            height = width = square
        step = constraints.get("size_divisibility", size_divisibility)
        if step > 1:
            height, width = -(-height // step) * step, -(-width // step) * step
        padded = [
            F.pad(image, (0, width - w, 0, height - h), value=pad_value)
            for image, (h, w) in zip(tensors, sizes)
        ]
        return ImageList(torch.stack(padded).contiguous(), sizes)
