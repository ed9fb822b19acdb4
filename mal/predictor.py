"""From boxes on an image to mask records: crop, forward, back to image pixels, threshold.

Shape legend: N boxes of one image, B crops of one forward pass, S crop side, M map side, G grid
side, (h, w) pixels of one box.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mal.crops import BORDERS, Window, test_window
from mal.label_refinement import CUT, LabelRefinement
from mal.resampling import box_maps, cut_and_resize, sample_boxes, sample_pixels
from pseudolabel.errors import DataError
from pseudolabel.labeler import MaskRecord, finish_record
from pseudolabel.masks import box_to_centre_slices, clip_box, mask_iou, size_bin_index
from pseudolabel.quality import MEASURES, Evidence, crowding

# Points per side at which the views of a box are compared.
GRID = 48
OTHER = {"student": "teacher", "teacher": "student"}


class BoxPredictor:
    """Runs a student and a teacher, or what is needed of them, on the boxes of one image.

    Batches are cut from the boxes of one image in their order, so a result depends on the image
    and its boxes alone, never on what else is labelled.

    Args:
        networks: {"student": net, "teacher": net}, or the student alone (or None for the teacher);
            net(images, box_areas) gives logits (B, M, M).
        normalize: uint8 tensor (B, 3, S, S) -> network input.
        crop_size: S.
        margin: expansion of the crop; .6 gives 1.3x the box.
        border: what stands beyond the image, as in training (`mal.crops.border_index`).
        thresholds: probability threshold for small, medium and large boxes.
        batch_size: crops per forward pass.
        quality: name of a measure in `pseudolabel.quality.MEASURES`.
        refinement: snaps the masks to the colours of the image. Quality and agreement remain those
            of the networks' own probabilities: a refined map is nearly 0 and 1, and no longer
            tells how sure the network was.

    Raises:
        ValueError: no measure or border has that name, the measure compares two networks and
            there is one, the batch size is below 1, or the thresholds are not three in [0, 1].
    """

    def __init__(
        self,
        networks: dict[str, nn.Module | None],
        normalize: Callable[[Tensor], Tensor],
        *,
        crop_size: int,
        margin: float = 0.6,
        thresholds: tuple[float, float, float] = (0.5, 0.5, 0.5),
        batch_size: int = 16,
        quality: str = "expected_iou",
        border: str = "wrap",
        refinement: LabelRefinement | None = None,
    ):
        if quality not in MEASURES:
            raise ValueError(f"MODEL.MAL.TEST.QUALITY {quality!r}: use one of {sorted(MEASURES)}")
        if border not in BORDERS:
            raise ValueError(f"MODEL.MAL.BORDER {border!r}: use one of {', '.join(BORDERS)}")
        if batch_size < 1:
            raise ValueError(f"MODEL.MAL.TEST.BATCH_SIZE {batch_size}: use 1 or more")
        if len(thresholds) != 3 or not all(0 <= threshold <= 1 for threshold in thresholds):
            given = tuple(thresholds)
            raise ValueError(f"MODEL.MAL.TEST.THRESHOLDS {given}: give three numbers from 0 to 1")
        self.networks = {name: net for name, net in networks.items() if net is not None}
        if len(self.networks) < 2 and "other" in MEASURES[quality].views:
            alone = sorted(name for name, m in MEASURES.items() if "other" not in m.views)
            raise ValueError(
                f"MODEL.MAL.TEST.QUALITY {quality!r} compares student and teacher, and there is"
                f" one network (MODEL.MAL.TEACHER False): use one of {alone}"
            )
        self.normalize = normalize
        self.crop_size, self.margin, self.border = crop_size, margin, border
        self.thresholds, self.batch_size = tuple(thresholds), batch_size
        self.measure, self.refinement = MEASURES[quality], refinement

    @torch.no_grad()
    def predict(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        names: Sequence[str] | None = None,
        classes: np.ndarray | None = None,
    ) -> dict[str, list[MaskRecord]]:
        """Mask records, one per box and in order.

        Masks and their networks' views are taken from the same crops. `agreement` is the IoU of
        student and teacher, or of image and mirror image where only that was looked at.

        Args:
            image: uint8 (H, W, 3), RGB.
            boxes: (N, 4), XYXY, absolute.
            names: networks whose masks are wanted; default all. A network that neither is wanted
                nor serves the quality measure does not run.
            classes: (N,), class of each box for a class-aware decoder, which needs it.

        Raises:
            DataError: a network gives no number for a box.
        """
        names = list(self.networks if names is None else names)
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        results: dict[str, list[MaskRecord]] = {name: [] for name in names}
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self._device())
        crowded = crowding(boxes) if self.measure.crowding else np.zeros(len(boxes))
        for start in range(0, len(boxes), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            known = None if classes is None else np.asarray(classes)[chunk]
            batch = _Batch(self, pixels, boxes[chunk], names, known)
            for name in names:
                results[name] += batch.records(name, crowded[chunk])
        return results

    def _device(self) -> torch.device:
        parameters = (p for network in self.networks.values() for p in network.parameters())
        return next(parameters, torch.empty(0)).device


class _Batch:
    """The crops of up to `batch_size` boxes and what the networks say of them."""

    def __init__(
        self,
        options: BoxPredictor,
        pixels: Tensor,
        boxes: np.ndarray,
        names: Sequence[str],
        classes: np.ndarray | None,
    ):
        self.options, self.boxes = options, boxes
        self.height, self.width = pixels.shape[:2]
        self.clipped = np.array([clip_box(box, self.height, self.width) for box in boxes])
        self.windows = [test_window(box, options.margin) for box in self.clipped]
        sides = self.clipped[:, 2:] - self.clipped[:, :2]
        self.areas = torch.from_numpy(sides.prod(axis=1))
        bins = [int(size_bin_index(area)) for area in self.areas.tolist()]
        self.thresholds = [options.thresholds[which] for which in bins]
        self.extra = {}
        if classes is not None:
            self.extra["classes"] = torch.as_tensor(classes, dtype=torch.long, device=pixels.device)
        # A true mask ends where pixels are half covered; what the box only touches is rarely in it.
        self.spans = [box_to_centre_slices(box, self.height, self.width) for box in boxes]
        crops = self.crops = self._crops(pixels, self.windows)
        wanted = set(names)
        if "other" in options.measure.views:
            wanted |= {OTHER[name] for name in names} & options.networks.keys()
        self.logits = {name: self._logits(name, crops) for name in sorted(wanted)}
        self.grids = {name: self._grid(logits) for name, logits in self.logits.items()}
        self.mirrored = {}
        if "mirror" in options.measure.views:
            for name in names:
                seen = self._logits(name, crops.flip(-1)).flip(-1)
                self.mirrored[name] = self._grid(seen)

    def _crops(self, pixels: Tensor, windows: list[Window]) -> Tensor:
        size, border = self.options.crop_size, self.options.border
        crops = torch.stack([cut_and_resize(pixels, window, size, border) for window in windows])
        return self.options.normalize(crops)

    def _logits(self, name: str, crops: Tensor) -> Tensor:
        return self.options.networks[name](crops, self.areas, **self.extra).float()

    def _grid(self, logits: Tensor) -> np.ndarray:
        """(B, G, G) probabilities on the boxes."""
        return sample_boxes(logits.sigmoid(), self.windows, self.clipped, GRID).cpu().numpy()

    def records(self, name: str, crowded: np.ndarray) -> list[MaskRecord]:
        """The records of one network."""
        full = self._full(self.logits[name])
        return [
            self._record(name, index, full[index], float(crowded[index]))
            for index in range(len(self.boxes))
        ]

    def _full(self, logits: Tensor) -> Tensor:
        """(B, S, S), what the masks are cut from."""
        size = self.options.crop_size
        refine = self.options.refinement
        if refine is None:
            return _resized(logits, size).sigmoid()
        box = box_maps(self.windows, self.clipped, size).to(logits.device)
        thresholds = torch.tensor(self.thresholds)
        return _resized(refine(logits, self.crops, box, thresholds), size)

    def _record(self, name: str, index: int, probability: Tensor, crowded: float) -> MaskRecord:
        box = self.boxes[index]
        threshold = self.thresholds[index]
        cut = threshold if self.options.refinement is None else CUT
        rows, columns = self.spans[index]
        mask = sample_pixels(probability, self.windows[index], rows, columns) > cut
        views = self._views(name, index)
        try:
            area = float(self.areas[index])
            evidence = Evidence(self.grids[name][index], threshold, views, crowded, area)
        except ValueError as error:
            raise DataError(
                f"{name} network",
                f"cannot be used ({error})",
                "check the weights, or train again with a lower learning rate",
                f"box {box.tolist()}",
            ) from error
        second = next(iter(views.values()), None)
        agreement = None if second is None else mask_iou(evidence.mask, second > threshold)
        quality = self.options.measure(evidence)
        frame = (rows.start, columns.start, box, self.height, self.width)
        return finish_record(mask.cpu().numpy(), *frame, quality, agreement)

    def _views(self, name: str, index: int) -> dict[str, np.ndarray]:
        found = {"other": self.grids.get(OTHER[name]), "mirror": self.mirrored.get(name)}
        return {view: maps[index] for view, maps in found.items() if maps is not None}


def _resized(maps: Tensor, size: int) -> Tensor:
    """(B, M, M) to (B, S, S)."""
    return F.interpolate(maps[:, None], (size, size), mode="bilinear")[:, 0]
