"""From boxes on an image to mask records: crop, forward, back to image pixels, threshold.

Shape legend: N boxes of one image, S crop side, M map side, (h, w) pixels of one box.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mal.crops import Window, paste, resize_image, test_window, wrap_crop
from pseudolabel.labeler import MaskRecord, finish_record
from pseudolabel.masks import box_to_slices, clip_box, mask_iou, size_bin_index


class BoxPredictor:
    """Runs a student and a teacher on the boxes of one image.

    Batches are cut from the boxes of one image in their order, so a result depends on the image
    and its boxes alone, never on what else is labelled.

    Args:
        networks: {"student": net, "teacher": net}; net(images, box_areas) gives logits (B, M, M).
        normalize: uint8 or float tensor (B, 3, S, S) -> network input on the right device.
        crop_size: S.
        margin: expansion of the crop; .6 gives 1.3x the box.
        thresholds: probability threshold for small, medium and large boxes.
        batch_size: crops per forward pass.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        normalize,
        *,
        crop_size: int,
        margin: float = 0.6,
        thresholds: tuple[float, float, float] = (0.5, 0.5, 0.5),
        batch_size: int = 16,
    ):
        self.networks, self.normalize = networks, normalize
        self.crop_size, self.margin = crop_size, margin
        self.thresholds, self.batch_size = tuple(thresholds), batch_size

    @torch.no_grad()
    def predict(self, image: np.ndarray, boxes: np.ndarray) -> dict[str, list[MaskRecord]]:
        """Mask records of every network, one per box and in order.

        `agreement` is the IoU of student and teacher; `quality` is the IoU that the probabilities
        themselves lead one to expect.

        Args:
            image: uint8 (H, W, 3), RGB.
            boxes: (N, 4), XYXY, absolute.
        """
        height, width = image.shape[:2]
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        clipped = [clip_box(box, height, width) for box in boxes]
        windows = [test_window(box, self.margin) for box in clipped]
        areas = torch.tensor([(b[2] - b[0]) * (b[3] - b[1]) for b in clipped])
        maps = self._probabilities(image, windows, areas)
        results: dict[str, list[MaskRecord]] = {name: [] for name in self.networks}
        for index, box in enumerate(boxes):
            threshold = self.thresholds[int(size_bin_index(float(areas[index])))]
            patches = {
                name: box_patch(maps[name][index], windows[index], box, height, width)
                for name in self.networks
            }
            masks = {name: patch > threshold for name, (patch, _, _) in patches.items()}
            agreement = mask_iou(*masks.values()) if len(masks) == 2 else None
            for name, (patch, y0, x0) in patches.items():
                quality = expected_iou(patch, masks[name])
                results[name].append(
                    finish_record(masks[name], y0, x0, box, height, width, quality, agreement)
                )
        return results

    def _probabilities(
        self, image: np.ndarray, windows: list[Window], areas: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """{network: (N, S, S)} on the CPU."""
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in self.networks}
        for start in range(0, len(windows), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            crops = [resize_image(wrap_crop(image, w), self.crop_size) for w in windows[chunk]]
            batch = self.normalize(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))
            for name, network in self.networks.items():
                logits = network(batch, areas[chunk])
                size = (self.crop_size, self.crop_size)
                full = F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)
                parts[name].append(full[:, 0].sigmoid().cpu())
        return {name: torch.cat(maps) if maps else torch.empty(0) for name, maps in parts.items()}


def box_patch(
    probability: torch.Tensor, window: Window, box: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, int, int]:
    """A crop's probabilities on the image pixels that the box touches.

    Args:
        probability: (S, S) map of the window.

    Returns:
        (patch (h, w) float32, image row and column of its first pixel).
    """
    whole, y0, x0 = paste(probability, window, height, width)
    rows, columns = box_to_slices(box, height, width)
    patch = whole[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]
    return patch, rows.start, columns.start


def expected_iou(probability: np.ndarray, mask: np.ndarray) -> float:
    """IoU that a mask would have if every pixel were foreground with its stated probability.

    Expected intersection over expected union: sum of p inside the mask over the mask's size plus
    the sum of p outside. Needs no human mask; as good as the probabilities are calibrated.
    """
    inside = float(probability[mask].sum(dtype=np.float64))
    union = float(mask.sum()) + float(probability[~mask].sum(dtype=np.float64))
    return min(1.0, inside / union) if union else 0.0
