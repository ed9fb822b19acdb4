"""Scored pseudo-labels against human masks of the same images that the labeler never saw.

A detector finds its own instances, so that they are matched by overlap, not by id. One matching
serves every floor of the score: it goes from the highest score down, so what lies below a floor
takes nothing from what lies above.

Shape legend: N predictions in the order of their file.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_rle
from scipy.stats import rankdata

from pseudolabel.calibration import expected_calibration_error
from pseudolabel.checks import is_number, quote
from pseudolabel.errors import DataError
from pseudolabel.masks import parse_segmentation
from pseudolabel.rejected import without_rejected
from pseudolabel.store import read_labels, refuse_bare
from pseudolabel.validation import LEFT_OUT_LATER, read_checked

FLOORS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BINS = 10


@dataclass(frozen=True)
class Comparison:
    """Every prediction and the truth that it meets.

    Attributes:
        score: (N,) class confidence, [0, 1].
        quality: (N,) stated mask IoU, [0, 1]; NaN where none is stated, and of a filled box.
        category: (N,) category ids.
        matched_iou: (N,) mask IoU with the instance that is matched to it; NaN where none is.
        best_iou: (N,) largest mask IoU with an instance of its class, matched or not; 0 for none.
        ignored: (N,) bool: unmatched and in a crowd, so it is neither right nor wrong.
        truths: category id -> number of instances, crowds left out.
        names: category id -> name.
        images: number of images.
        threshold: mask IoU from which on a prediction may be matched.
    """

    score: np.ndarray
    quality: np.ndarray
    category: np.ndarray
    matched_iou: np.ndarray
    best_iou: np.ndarray
    ignored: np.ndarray
    truths: Mapping[int, int]
    names: Mapping[int, str]
    images: int
    threshold: float

    @property
    def matched(self) -> np.ndarray:
        """(N,) bool."""
        return ~np.isnan(self.matched_iou)


def compare_files(
    label_file: str | Path, truth_file: str | Path, threshold: float = 0.5
) -> Comparison:
    """As `compare_labels`, of two files.

    Raises:
        DataError: a file is malformed, or as of `compare_labels`.
    """
    labels = read_labels(label_file)
    truth = read_checked(truth_file, tolerated=LEFT_OUT_LATER)
    return compare_labels(labels, truth, threshold, label_file, truth_file)


def compare_labels(
    labels: dict[str, Any],
    truth: dict[str, Any],
    threshold: float = 0.5,
    label_file: object = "labels",
    truth_file: object = "truth",
) -> Comparison:
    """Matches predictions to the truth, per image and class from the highest score down.

    A prediction takes the free instance that it overlaps most, if the mask IoU reaches the
    threshold. Crowds are never missed; a prediction that found no instance is ignored where a
    crowd covers `threshold` of it, as in COCO's evaluation.

    Args:
        labels: checked COCO JSON whose annotations have `score`, perhaps `quality`, and a mask.
        truth: checked COCO JSON of the same images with human masks.
        threshold: mask IoU, (0, 1].
        label_file, truth_file: of them, for error messages.

    Raises:
        DataError: images or classes differ, a mask or a score is missing, or the threshold is none.
    """
    if not 0 < threshold <= 1:
        raise DataError("--iou", f"is {threshold}", "use more than 0, at most 1")
    labels, _ = without_rejected(labels)
    _require_same_images(labels, truth, label_file, truth_file)
    names = _shared_classes(labels, truth, label_file, truth_file)
    found, true = labels["annotations"], truth["annotations"]
    refuse_bare(label_file, found)
    refuse_bare(truth_file, true)
    score = np.array([_stated_score(a, label_file) for a in found], dtype=np.float64)
    quality = np.array([_stated_quality(a) for a in found], dtype=np.float64)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    instances = _grouped(true)
    matched, best = np.full(len(found), np.nan), np.zeros(len(found))
    ignored = np.zeros(len(found), dtype=bool)
    for key, positions in _grouped(found).items():
        # Stable: equal scores keep their order.
        order = np.array(positions)[np.argsort(-score[positions], kind="stable")]
        targets = [true[place] for place in instances.get(key, ())]
        if targets:
            ious, crowd = _overlaps([found[k] for k in order], targets, sizes[key[0]])
            matched[order], best[order], ignored[order] = _match(ious, crowd, threshold)
    return Comparison(
        score=score,
        quality=quality,
        category=np.array([a["category_id"] for a in found], dtype=np.int64),
        matched_iou=matched,
        best_iou=best,
        ignored=ignored,
        truths=Counter(a["category_id"] for a in true if not a.get("iscrowd", 0)),
        names=names,
        images=len(sizes),
        threshold=threshold,
    )


def _require_same_images(labels: dict, truth: dict, label_file: object, truth_file: object) -> None:
    sizes = [
        {image["id"]: (image["height"], image["width"]) for image in data["images"]}
        for data in (labels, truth)
    ]
    remedy = "give the truth of exactly the images that were labelled"
    for (ours, theirs), where, other in (
        (sizes, label_file, truth_file),
        (sizes[::-1], truth_file, label_file),
    ):
        missing = sorted(theirs.keys() - ours.keys())
        if missing:
            problem = f"lacks {len(missing)} of {len(theirs)} images of {other}"
            raise DataError(where, problem, remedy, f"image {missing[0]}")
    for key in sorted(key for key, size in sizes[0].items() if size != sizes[1][key]):
        problem = f"is {sizes[0][key]} high and wide, in {truth_file} {sizes[1][key]}"
        raise DataError(label_file, problem, remedy, f"image {key}")


def _shared_classes(
    labels: dict, truth: dict, label_file: object, truth_file: object
) -> dict[int, str]:
    ours, theirs = ({c["id"]: c["name"] for c in data["categories"]} for data in (labels, truth))
    if ours != theirs:
        differing = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
        key = differing[0]
        raise DataError(
            label_file,
            f"{len(differing)} categories differ from {truth_file}: it has {ours.get(key)!r} where "
            f"that has {theirs.get(key)!r}",
            "give the truth with the categories of the labels",
            f"category {key}",
        )
    return dict(sorted(theirs.items()))


def _stated_score(annotation: dict, path: object) -> float:
    score, record = annotation.get("score"), f"annotation {annotation['id']}"
    if not is_number(score):
        remedy = "take labels of a detector; tools/evaluate.py compares those of given boxes"
        raise DataError(path, f"its score is {quote(score)}", remedy, record)
    return score


def _stated_quality(annotation: dict) -> float:
    # That of a filled box is a constant, which says nothing of the labeler's masks.
    own = annotation.get("mask_source", "model") == "model"
    return annotation.get("quality", np.nan) if own else np.nan


def _grouped(annotations: Sequence[dict]) -> dict[tuple[int, int], list[int]]:
    """(image id, category id) -> positions."""
    groups = defaultdict(list)
    for position, annotation in enumerate(annotations):
        groups[annotation["image_id"], annotation["category_id"]].append(position)
    return dict(groups)


def _overlaps(
    found: Sequence[dict], targets: Sequence[dict], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mask IoU (found, targets), over the prediction's own area where the target is a crowd; and
    which targets are crowds. From run-length codes, without drawing a mask."""
    crowd = [int(a.get("iscrowd") or 0) for a in targets]
    codes = [[_code(a["segmentation"], size) for a in group] for group in (found, targets)]
    return np.array(coco_rle.iou(*codes, crowd)), np.array(crowd, dtype=bool)


def _code(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    parsed = parse_segmentation(segmentation, *size)
    if isinstance(parsed, dict):
        return parsed
    return coco_rle.merge(coco_rle.frPyObjects([ring.tolist() for ring in parsed], *size))


def _match(
    ious: np.ndarray, crowd: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matched IoU (NaN for none), best IoU and ignored of predictions in descending score."""
    free = np.where(crowd, 0.0, ious)
    best = free.max(axis=1)
    matched = np.full(len(ious), np.nan)
    for row in np.flatnonzero(best >= threshold):
        target = int(free[row].argmax())
        if free[row, target] >= threshold:
            matched[row] = free[row, target]
            free[:, target] = 0.0
    covered = np.where(crowd, ious, 0.0).max(axis=1) >= threshold
    return matched, best, np.isnan(matched) & covered


def pool(comparisons: Sequence[Comparison]) -> Comparison:
    """Several comparisons, of equal classes and threshold, as one; an image of each counts anew.

    Raises:
        ValueError: there is none, or they differ in classes or threshold.
    """
    if len({(tuple(c.names.items()), c.threshold) for c in comparisons}) != 1:
        raise ValueError("comparisons of equal classes and threshold are needed")
    arrays = ("score", "quality", "category", "matched_iou", "best_iou", "ignored")
    return Comparison(
        **{key: np.concatenate([getattr(c, key) for c in comparisons]) for key in arrays},
        truths=sum((Counter(c.truths) for c in comparisons), Counter()),
        names=comparisons[0].names,
        images=sum(c.images for c in comparisons),
        threshold=comparisons[0].threshold,
    )


def floor_rows(
    comparison: Comparison, floors: Iterable[float] = FLOORS, category: int | None = None
) -> list[dict[str, float]]:
    """What would be kept above each floor of the score.

    Args:
        category: id of the one class that counts; None for all.

    Returns:
        per floor `floor`, `kept` (ignored ones left out), `kept_per_image`, `matched`, `precision`,
        `recall`, `mean_iou` (of the matched), `quality_spearman` (quality with the best IoU, of the
        kept); NaN for a mean over nothing.
    """
    counted = ~comparison.ignored
    truths = sum(comparison.truths.values())
    if category is not None:
        counted &= comparison.category == category
        truths = comparison.truths.get(category, 0)
    rows = []
    for floor in floors:
        kept = counted & (comparison.score > floor)
        right, told = kept & comparison.matched, kept & ~np.isnan(comparison.quality)
        rows.append(
            {
                "floor": float(floor),
                "kept": int(kept.sum()),
                "kept_per_image": kept.sum() / comparison.images,
                "matched": int(right.sum()),
                "precision": _share(right.sum(), kept.sum()),
                "recall": _share(right.sum(), truths),
                "mean_iou": _share(comparison.matched_iou[right].sum(), right.sum()),
                "quality_spearman": spearman(comparison.quality[told], comparison.best_iou[told]),
            }
        )
    return rows


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Linear correlation; NaN for fewer than two pairs or a constant."""
    first, second = (np.asarray(v, dtype=np.float64) for v in (first, second))
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of ranks, the mean rank for ties; NaN as of `pearson`."""
    return pearson(rankdata(first), rankdata(second))


def agreement(stated: np.ndarray, iou: np.ndarray) -> dict[str, float]:
    """How far a stated number foretells the mask IoU.

    Args:
        stated, iou: (N,) in [0, 1].

    Returns:
        `n`, `mean_stated`, `mean_iou`, `pearson`, `spearman`, `calibration_error` (over 10 equally
        wide bins, as `calibration.expected_calibration_error`); NaN for a mean over nothing.
    """
    return {
        "n": len(stated),
        "mean_stated": _share(np.sum(stated), len(stated)),
        "mean_iou": _share(np.sum(iou), len(iou)),
        "pearson": pearson(stated, iou),
        "spearman": spearman(stated, iou),
        "calibration_error": expected_calibration_error(stated, iou),
    }


def reliability(
    stated: np.ndarray, iou: np.ndarray, matched: np.ndarray, bins: int = BINS
) -> list[dict[str, float]]:
    """Stated number against truth, in bins of equal counts (to one) along the stated number.

    Args:
        stated, iou: (N,) in [0, 1].
        matched: (N,) bool.
        bins: at most; fewer where there are fewer predictions.

    Returns:
        per bin `n`, `low`, `high` and `mean_stated`, `mean_iou`, `matched` (share).
    """
    order = np.argsort(stated, kind="stable")
    parts = np.array_split(order, min(bins, len(order))) if len(order) else []
    return [
        {
            "n": len(part),
            "low": float(stated[part[0]]),
            "high": float(stated[part[-1]]),
            "mean_stated": float(stated[part].mean()),
            "mean_iou": float(iou[part].mean()),
            "matched": float(matched[part].mean()),
        }
        for part in parts
    ]


def summarize(comparison: Comparison, floors: Sequence[float] = FLOORS) -> dict[str, Any]:
    """Everything that is reported, as JSON can hold it: None for a mean over nothing.

    Returns:
        `images`, `predictions`, `ignored`, `truths`, `threshold`; `floors`: `floor_rows`;
        `classes`: name -> `truths` and `floors`; `quality` and `score`: `best` and `matched`
        (`agreement` with the best IoU of all, and with the IoU of the matched) and `reliability`;
        `quality` is None where no prediction states one. `scores`: histogram in 20 bins of [0, 1].
    """
    counted = ~comparison.ignored
    classes = {
        name: {
            "truths": comparison.truths.get(key, 0),
            "floors": floor_rows(comparison, floors, key),
        }
        for key, name in comparison.names.items()
    }
    has_quality = not len(comparison.quality) or not np.isnan(comparison.quality).all()
    histogram, _ = np.histogram(comparison.score[counted], bins=20, range=(0.0, 1.0))
    return _plain(
        {
            "images": comparison.images,
            "predictions": len(comparison.score),
            "ignored": int(comparison.ignored.sum()),
            "truths": sum(comparison.truths.values()),
            "threshold": comparison.threshold,
            "floors": floor_rows(comparison, floors),
            "classes": classes,
            "quality": _foretold(comparison, comparison.quality) if has_quality else None,
            "score": _foretold(comparison, comparison.score),
            "scores": histogram.tolist(),
        }
    )


def _foretold(comparison: Comparison, stated: np.ndarray) -> dict[str, Any]:
    counted = ~comparison.ignored & ~np.isnan(stated)
    matched, best = counted & comparison.matched, comparison.best_iou[counted]
    return {
        "best": agreement(stated[counted], best),
        "matched": agreement(stated[matched], comparison.matched_iou[matched]),
        "reliability": reliability(stated[counted], best, matched[counted]),
    }


def _plain(value: Any) -> Any:
    """NaN, which is no JSON, becomes None at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if value != value else value
