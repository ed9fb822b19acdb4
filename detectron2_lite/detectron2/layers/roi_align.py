"""RoIAlign (He et al., 2017, section 3) as a module."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision.ops import roi_align

__all__ = ["ROIAlign", "roi_align"]

_SETTINGS = ("output_size", "spatial_scale", "sampling_ratio", "aligned")


class ROIAlign(nn.Module):
    """Pool each region to a fixed grid by bilinear sampling.

    Args:
        output_size: (height, width) of the grid, or one int for both.
        spatial_scale: feature pixels per box unit, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 adapts to the size of the bin.
        aligned: True (RoIAlign v2) takes pixel centres at half integers. False reproduces the
            first version, which is off by half a feature pixel.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool R regions from a batch.

        Args:
            input: (N, C, H, W) features.
            rois: (R, 5): index into the batch, then XYXY in image units.

        Returns:
            (R, C, *output_size).
        """
        if rois.dim() != 2 or rois.size(1) != 5:
            raise ValueError(f"rois must be (R, 5), got {tuple(rois.shape)}")
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return roi_align(input, rois.to(input.dtype), **settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in _SETTINGS)
