"""Monotone calibration: a quality becomes the mask IoU that human-masked images show for it.

Optional, and the only place where a human mask may enter a quality. The file that holds a
calibration names the images it was fitted on, so that none of them is mistaken for unseen.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pseudolabel.checks import image_name, is_number, quote
from pseudolabel.errors import DataError
from pseudolabel.files import file_hash, read_json, write_json
from pseudolabel.mask_iou import TrueMasks
from pseudolabel.store import output_paths, read_labels, refuse_bare

KIND = "masksmith calibration"
_REMEDY = "fit it again with tools/calibrate.py"
# Steps of fewer masks would follow chance.
MIN_MASKS = 20


@dataclass(frozen=True)
class Calibration:
    """A piecewise linear, non-decreasing map from quality to expected IoU.

    Attributes:
        quality: K increasing knots in [0, 1].
        iou: their K values in [0, 1], non-decreasing.
        facts: what it was fitted on and for (JSON-able): `measure`, `labeler`, `file`,
            `file_sha256`, `image_ids`, `file_names` (of these images), `instances`.
    """

    quality: tuple[float, ...]
    iou: tuple[float, ...]
    facts: dict[str, Any]

    def apply(self, quality: float) -> float:
        """The expected IoU; constant beyond the outermost knots."""
        return float(np.interp(quality, self.quality, self.iou))

    def describe(self) -> dict[str, Any]:
        """For a manifest: the facts, and a hash over them and the knots."""
        return {"sha256": self._digest(), **self.facts}

    def check_fits(self, labeler: dict[str, Any], path: str | Path) -> None:
        """Refuses a labeler other than the one whose qualities were fitted.

        Args:
            labeler: its description, as the manifest has it.
            path: of this calibration, for the error message.

        Raises:
            DataError: measure, weights or config differ.
        """
        wanted = {"quality": self.facts.get("measure"), **self.facts.get("labeler", {})}
        for key in ("quality", "weights_sha256", "config_sha256"):
            if wanted.get(key) != labeler.get(key):
                raise DataError(
                    path,
                    f"was fitted for another {key}: {wanted.get(key)}, not {labeler.get(key)}",
                    "label the human-masked images with this labeler and fit it again",
                )

    def save(self, path: str | Path) -> None:
        """Writes a small JSON, atomically."""
        write_json(path, {**self._content(), "sha256": self._digest()}, indent=1)

    def _content(self) -> dict[str, Any]:
        knots = {"quality": list(self.quality), "iou": list(self.iou)}
        return {"kind": KIND, **knots, "facts": self.facts}

    def _digest(self) -> str:
        text = json.dumps(self._content(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def load_calibration(path: str | Path) -> Calibration:
    """Reads what `Calibration.save` has written.

    Raises:
        DataError: the file is missing, is no calibration, was edited, or its knots are not
            monotone numbers of [0, 1].
    """
    data = read_json(path)
    if data.get("kind") != KIND:
        raise DataError(path, f"is no calibration (kind {data.get('kind')!r:.60})", _REMEDY)
    try:
        knots = [np.array(data[key], dtype=np.float64) for key in ("quality", "iou")]
        facts = dict(data["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(path, f"is incomplete ({error!r:.100})", _REMEDY) from error
    quality, iou = knots
    sound = quality.ndim == 1 and quality.shape == iou.shape and quality.size > 0
    if not (sound and _in_unit(quality) and _in_unit(iou)):
        raise DataError(path, "its knots are no two equal lists of numbers in [0, 1]", _REMEDY)
    if (np.diff(quality) <= 0).any() or (np.diff(iou) < 0).any():
        raise DataError(path, "its knots do not rise", _REMEDY)
    calibration = Calibration(tuple(quality.tolist()), tuple(iou.tolist()), facts)
    if calibration.describe()["sha256"] != data.get("sha256"):
        raise DataError(path, "was changed after it was fitted (its hash differs)", _REMEDY)
    return calibration


def _in_unit(values: np.ndarray) -> bool:
    # NaN fails both comparisons.
    return bool(((values >= 0) & (values <= 1)).all())


def pool_adjacent_violators(
    values: np.ndarray, weights: np.ndarray
) -> list[tuple[int, int, float]]:
    """Weighted least-squares fit of a non-decreasing sequence.

    Blocks of neighbours are merged into their mean for as long as a block lies above the next
    (Ayer et al. 1955).

    Args:
        values: (N,) in the order of the predictor.
        weights: (N,) positive.

    Returns:
        blocks (first, last + 1, mean) in order; they cover 0 .. N.
    """
    blocks: list[tuple[int, int, float, float]] = []
    for index, (value, weight) in enumerate(zip(values.tolist(), weights.tolist(), strict=True)):
        start, mean, mass = index, value, weight
        while blocks and blocks[-1][2] >= mean:
            start, _, earlier, earlier_mass = blocks.pop()
            mean = (earlier * earlier_mass + mean * mass) / (earlier_mass + mass)
            mass += earlier_mass
        blocks.append((start, index + 1, mean, mass))
    return [(start, stop, mean) for start, stop, mean, _ in blocks]


def fit_calibration(quality: np.ndarray, iou: np.ndarray, facts: dict[str, Any]) -> Calibration:
    """Isotonic regression of IoU on quality.

    A knot stands at the mean quality of each level of the regression and lines join them, so that
    records of one level keep their order, which a step function would lose.

    Args:
        quality, iou: (N,) in [0, 1], one pair per mask.
        facts: as `Calibration.facts`.

    Raises:
        ValueError: fewer than `MIN_MASKS` pairs, unequal lengths, or numbers outside of [0, 1].
    """
    quality, iou = (np.asarray(v, dtype=np.float64) for v in (quality, iou))
    if quality.ndim != 1 or quality.shape != iou.shape:
        raise ValueError(f"one quality per IoU is needed, got {quality.shape} and {iou.shape}")
    if not (_in_unit(quality) and _in_unit(iou)):
        raise ValueError("quality and IoU must be numbers of [0, 1]")
    if len(quality) < MIN_MASKS:
        raise ValueError(f"at least {MIN_MASKS} masks are needed, got {len(quality)}")
    # Equal qualities must get one value, so they enter as one point of their weight.
    places, index, counts = np.unique(quality, return_inverse=True, return_counts=True)
    means = np.bincount(index, weights=iou) / counts
    blocks = pool_adjacent_violators(means, counts)
    knots = [np.average(places[a:b], weights=counts[a:b]) for a, b, _ in blocks]
    values = np.clip([value for *_, value in blocks], 0.0, 1.0)
    return Calibration(tuple(map(float, knots)), tuple(map(float, values)), facts)


def expected_calibration_error(quality: np.ndarray, iou: np.ndarray, bins: int = 10) -> float:
    """Mean distance of stated quality and true IoU, over equally wide bins of quality.

    Args:
        quality, iou: (N,) in [0, 1].
        bins: of width 1 / bins; empty ones have no weight.

    Returns:
        sum over the bins of |mean quality - mean IoU| times the bin's share; NaN without pairs.
    """
    quality, iou = (np.asarray(v, dtype=np.float64) for v in (quality, iou))
    if not len(quality):
        return float("nan")
    index = np.minimum((quality * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(index, weights=quality - iou, minlength=bins)).sum()) / len(
        quality
    )


def fit_from_files(label_file: str | Path, truth_file: str | Path) -> Calibration:
    """Fits a calibration to a label file of human-masked images.

    Filled boxes and crowds carry no quality of the labeler and are left out.

    Args:
        label_file: what a labelling command wrote, its manifest beside it.
        truth_file: human masks with the same annotation ids; may hold more.

    Raises:
        DataError: a file is malformed, a label has no human mask or one on another image, the
            labels were changed since, or made with a calibration already, or there are too few.
    """
    labels, truth = read_labels(label_file), TrueMasks(truth_file)
    labeler = _labeler_of(label_file)
    rows = [a for a in labels["annotations"] if a.get("mask_source") == "model"]
    refuse_bare(label_file, rows)
    pairs = [
        (
            _stated_quality(a, label_file),
            truth.compare(a["id"], a["segmentation"], a["image_id"])[0],
        )
        for a in rows
    ]
    names = {image["id"]: image_name(image) for image in labels["images"]}
    used = sorted({a["image_id"] for a in rows})
    facts = {
        "measure": labeler.get("quality"),
        "labeler": {key: labeler.get(key) for key in ("name", "config_sha256", "weights_sha256")},
        "file": Path(truth_file).name,
        "file_sha256": file_hash(truth_file),
        "image_ids": used,
        "file_names": [names[key] for key in used],
        "instances": len(rows),
    }
    try:
        return fit_calibration(*np.array(pairs).reshape(-1, 2).T, facts)
    except ValueError as error:
        raise DataError(label_file, str(error), "label more human-masked images") from error


def _labeler_of(label_file: str | Path) -> dict[str, Any]:
    """What the manifest says of the labeler that has made exactly this file."""
    path = output_paths(label_file)[2]
    manifest = read_json(path)
    labeler = manifest.get("labeler")
    if not isinstance(labeler, dict):
        raise DataError(path, "describes no labeler", "label again")
    if manifest.get("review"):
        problem = "was corrected by hand, the bad masks first"
        raise DataError(label_file, problem, "fit the labels as they were before")
    if manifest.get("output_sha256") != file_hash(label_file):
        problem = "is not the file that its manifest was written for"
        raise DataError(label_file, problem, "label again, and leave the file as it is")
    if labeler.get("calibration"):
        raise DataError(label_file, "was labelled with a calibration", "label it without one")
    return labeler


def _stated_quality(annotation: dict[str, Any], path: str | Path) -> float:
    quality, record = annotation.get("quality"), f"annotation {annotation['id']}"
    if not is_number(quality):
        raise DataError(path, f"its quality is {quote(quality)}", "label again", record)
    return quality
