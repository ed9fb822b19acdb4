#!/usr/bin/env python3
"""How well the measures of quality foretell true mask IoU; writes docs/results/quality/*.json.

    python benchmarks/quality.py --name coco_dev --data $MASKSMITH_DATA/coco_dev \\
        --config-file output/mal_coco_dev/config.yaml \\
        --weights output/mal_coco_dev/model_final.pth

The default measure was chosen on the train images. They also fit a calibration here; val is seen
by neither. `--tables` alone rewrites the tables of docs/quality.md from what was recorded.
"""

import argparse
import datetime
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import RESULTS, hardware, portable_command, portable_path
from scipy.optimize import least_squares
from scipy.stats import spearmanr
from stages import ROOT
from tables import markdown_table

from mal.labeler import MALLabeler, mal
from pseudolabel.calibration import expected_calibration_error, fit_calibration
from pseudolabel.files import (
    atomic_write,
    file_hash,
    nan_to_null,
    read_image,
    read_json,
    write_json,
)
from pseudolabel.image_paths import image_path
from pseudolabel.mask_iou import TrueMasks
from pseudolabel.masks import xywh_to_xyxy
from pseudolabel.quality import ESTIMATE_WEIGHTS, MEASURES, Evidence, Measure, estimate_features
from pseudolabel.store import BoxFile

FOLDER = RESULTS / "quality"
PAGE = ROOT / "docs/quality.md"
AREA = "box area"


def measure_records(labeler: MALLabeler, boxes: Path, images: Path, limit: int = 0) -> dict:
    """Every measure and the true IoU of every mask that the labeler draws.

    Filled boxes, crowds and boxes that miss their image are left out.

    Args:
        boxes: COCO JSON with human masks.
        images: folder of the images.
        limit: images at most; 0 takes all.

    Returns:
        {"iou": (N,), "box area": (N,), "image_ids": (N,), and one (N,) per measure and per
        feature of the estimate}.
    """
    source, truth = BoxFile(boxes), TrueMasks(boxes)
    seen: list[dict[str, float]] = []

    def note_all(evidence: Evidence) -> float:
        features = zip(ESTIMATE_WEIGHTS, estimate_features(evidence), strict=True)
        values = {f"feature {name}": value for name, value in features}
        seen.append({**values, **{name: m(evidence) for name, m in MEASURES.items()}})
        return 0.0

    views = sorted({view for measure in MEASURES.values() for view in measure.views})
    labeler.predictor.measure = Measure(note_all, tuple(views), crowding=True)
    rows = []
    for job in source.jobs[: limit or None]:
        if not job.boxes:
            continue
        image = read_image(image_path(job.image, images, boxes))
        corners = xywh_to_xyxy(np.array([a["bbox"] for a in job.boxes]))
        seen.clear()
        records = labeler.label(image, corners)
        for annotation, record, values in zip(job.boxes, records, seen, strict=True):
            if record.mask_source != "model":
                continue
            iou, area, _ = truth.compare(annotation["id"], record.segmentation)
            rows.append({"iou": iou, AREA: area, "image_ids": job.image["id"], **values})
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def judge(train: dict[str, np.ndarray], val: dict[str, np.ndarray]) -> dict[str, dict]:
    """Spearman correlation with true IoU on both, calibration error on val before and after."""
    result = {}
    for name in (AREA, *MEASURES):
        row = {
            f"spearman_{split}": float(spearmanr(rows[name], rows["iou"]).statistic)
            for split, rows in (("train", train), ("val", val))
        }
        if name != AREA:
            fitted = fit_calibration(train[name], train["iou"], {})
            after = np.array([fitted.apply(value) for value in val[name]])
            row["ece_val"] = expected_calibration_error(val[name], val["iou"])
            row["ece_val_calibrated"] = expected_calibration_error(after, val["iou"])
            row["spearman_val_calibrated"] = float(spearmanr(after, val["iou"]).statistic)
        result[name] = nan_to_null(row)
    return result


def fit_estimate(
    sets: Sequence[dict[str, np.ndarray]], shares: Sequence[float], penalty: float = 0.03
) -> dict[str, float]:
    """Weights of `pseudolabel.quality.estimate` from human-masked train images.

    A ridge-penalised logistic least-squares fit of the IoU. Every data set has an intercept of its
    own, for its masks may be better throughout; the bias is the mean of them.

    Args:
        sets: as `measure_records` gives them.
        shares: weight of each set.
    """
    tables = [np.stack([rows[f"feature {k}"] for k in ESTIMATE_WEIGHTS], 1) for rows in sets]
    centre = np.mean([t.mean(axis=0) for t in tables], axis=0)
    spread = np.mean([t.std(axis=0) for t in tables], axis=0)
    own = [np.tile(np.eye(len(sets))[index], (len(t), 1)) for index, t in enumerate(tables)]
    design = np.concatenate([np.c_[(t - centre) / spread, o] for t, o in zip(tables, own)])
    truth = np.concatenate([rows["iou"] for rows in sets])
    trust = np.concatenate(
        [
            np.full(len(rows["iou"]), (share / len(rows["iou"]) / rows["iou"].var()) ** 0.5)
            for rows, share in zip(sets, shares, strict=True)
        ]
    )
    count = len(ESTIMATE_WEIGHTS)

    def residuals(w: np.ndarray) -> np.ndarray:
        return np.r_[trust * (1 / (1 + np.exp(-design @ w)) - truth), penalty * w[:count]]

    solved = least_squares(residuals, np.zeros(design.shape[1])).x
    weights = solved[:count] / spread
    bias = solved[count:].mean() - weights @ centre
    return {**dict(zip(ESTIMATE_WEIGHTS, weights.tolist())), "bias": float(bias)}


def record(args: argparse.Namespace) -> Path:
    """Measures both splits and writes one result file."""
    labeler = mal(args.config_file, args.weights, args.opts)
    default = labeler.description["quality"]
    splits, data = {}, {}
    for split in ("train", "val"):
        path = Path(args.data, f"annotations/instances_{split}.json")
        splits[split] = measure_records(labeler, path, Path(args.data, "images"), args.limit)
        data[split] = {
            "file": portable_path(str(path)),
            "sha256": file_hash(path),
            "images": len(np.unique(splits[split]["image_ids"])),
            "masks": len(splits[split]["iou"]),
            "mIoU": float(splits[split]["iou"].mean()),
        }
    result = {
        "kind": "quality",
        "name": args.name,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": portable_command(sys.argv),
        "default": default,
        "labeler": labeler.describe(),
        "data": data,
        "measures": judge(splits["train"], splits["val"]),
        "torch": torch.__version__,
        "hardware": hardware(),
    }
    if args.keep:
        np.savez(args.keep, **splits["train"])
    path = Path(args.folder, f"{args.name}.json")
    write_json(path, result, indent=1)
    return path


def table(result: dict[str, Any]) -> str:
    """Markdown: one line per measure, the default in bold, and where the numbers come from."""
    rows = []
    for name, row in result["measures"].items():
        marked = f"**{name}**" if name == result["default"] else name
        keys = ("spearman_train", "spearman_val", "ece_val", "ece_val_calibrated")
        numbers = ["–" if row.get(key) is None else f"{row[key]:.3f}" for key in keys]
        passes = "0" if name == AREA else str(1 + len(MEASURES[name].views))
        rows.append([marked, passes, *numbers])
    header = ["measure", "forward passes", "Spearman, train", "Spearman, val"]
    header += ["calibration error, val", "the same, calibrated on train"]
    facts = "; ".join(
        f"{split}: {d['masks']} masks of {d['images']} images, mIoU {d['mIoU']:.3f}, "
        f"data `{d['sha256'][:12]}`"
        for split, d in result["data"].items()
    )
    weights = result["labeler"]["weights_sha256"][:12]
    return "\n\n".join(
        [
            markdown_table(header, rows),
            f"`{result['command']}`, one training run, {result['date']}; weights `{weights}`; "
            f"torch {result['torch']}; {result['hardware']['cpu']}. {facts}.",
        ]
    )


def filled_page(text: str, folder: Path = FOLDER) -> str:
    """The page with what stands between `<!-- quality: NAME -->` and `<!-- end -->` made anew."""

    def section(match: re.Match) -> str:
        body = table(read_json(folder / f"{match[1]}.json"))
        return f"<!-- quality: {match[1]} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- quality: (\w+) -->.*?<!-- end -->", section, text, flags=re.DOTALL)


def main(argv: list[str] | None = None) -> None:
    """Records a result if one is asked for, and fills the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="", help="of the result; coco_dev or nuclei")
    parser.add_argument("--data", help="holds annotations/instances_{train,val}.json, images/")
    parser.add_argument("--config-file", help="of the MAL run, trained on the boxes of train")
    parser.add_argument("--weights", help="checkpoint of the MAL run")
    parser.add_argument("--folder", default=str(FOLDER), help="where results are kept")
    parser.add_argument("--limit", type=int, default=0, help="images per split; 0 takes all")
    parser.add_argument("--tables", action="store_true", help="only fill docs/quality.md")
    parser.add_argument("--keep", help="write the features of train to this .npz, for --fit")
    parser.add_argument("--fit", nargs=2, help="print weights from .npz of COCO and of nuclei")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE config overrides")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.fit:
        # COCO counts more: it is the harder and the more general of the two.
        print(fit_estimate([dict(np.load(path)) for path in args.fit], (0.7, 0.3)))
        return
    if not args.tables:
        print(record(args))
    if Path(args.folder) == FOLDER and PAGE.exists():
        text = filled_page(PAGE.read_text(encoding="utf-8"))
        with atomic_write(PAGE) as file:
            file.write(text)


if __name__ == "__main__":
    main()
