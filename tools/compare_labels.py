#!/usr/bin/env python3
"""Compares scored labels or predictions with human masks that the labeler never saw.

    tools/label.py --labeler detector --images-json unlabelled.json ... --output labels.json
    tools/compare_labels.py labels.json truth.json --plot labels.png

Matched by mask IoU, per image and class, the highest score first; both files have the same images
and classes. Says what is right above each floor of the score, and whether quality and score
foretell the true mask IoU.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from pseudolabel.errors import DataError
from pseudolabel.files import failure_line, refuse_overwrite, write_json
from pseudolabel.hidden_truth import FLOORS, compare_files, summarize
from pseudolabel.hidden_truth_plot import draw_comparison
from pseudolabel.store import output_paths

COLUMNS = ("floor", "kept", "per image", "right", "precision", "recall", "mean IoU", "rank corr.")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", help="label JSON whose annotations have a score")
    parser.add_argument("truth", help="COCO JSON with human masks of exactly the same images")
    parser.add_argument("--iou", type=float, default=0.5, help="mask IoU of a match (%(default)s)")
    parser.add_argument(
        "--floors", type=float, nargs="+", default=list(FLOORS), help="of the score"
    )
    parser.add_argument("--plot", help="PNG to write")
    parser.add_argument("--output", help="JSON to write; null is a mean over nothing")
    return parser.parse_args(argv)


def describe(summary: Mapping[str, Any]) -> list[str]:
    """The lines that are printed."""
    lines = [
        f"{summary['predictions']} predictions ({summary['ignored']} in crowds, ignored), "
        f"{summary['truths']} instances, {summary['images']} images; "
        f"right: mask IoU >= {summary['threshold']:g}"
    ]
    lines += _floor_lines("all classes", summary["truths"], summary["floors"])
    if len(summary["classes"]) > 1:
        for name, table in summary["classes"].items():
            lines += _floor_lines(name, table["truths"], table["floors"])
    for key in ("quality", "score"):
        if summary[key] is None:
            lines.append(f"{key}: no label states it")
            continue
        lines += _foretold_lines(key, summary[key])
    return lines


def _floor_lines(title: str, truths: int, rows: list[dict]) -> list[str]:
    lines = ["", f"{title}, {truths} instances", "".join(f"{name:>11}" for name in COLUMNS)]
    for row in rows:
        cells = [f"{row['floor']:.2f}", str(row["kept"]), f"{row['kept_per_image']:.2f}"]
        cells += [str(row["matched"])]
        keys = ("precision", "recall", "mean_iou", "quality_spearman")
        cells += [_cell(row[key]) for key in keys]
        lines.append("".join(f"{cell:>11}" for cell in cells))
    return lines


def _foretold_lines(key: str, foretold: Mapping[str, Any]) -> list[str]:
    lines = [""]
    for part, title in (("best", "of all, best overlap"), ("matched", "of the matched")):
        row = foretold[part]
        lines.append(
            f"{key} with true mask IoU {title} (n={row['n']}): rank correlation "
            f"{_cell(row['spearman'])}, linear {_cell(row['pearson'])}, calibration error "
            f"{_cell(row['calibration_error'])}; means {_cell(row['mean_stated'])} and "
            f"{_cell(row['mean_iou'])}"
        )
    for row in foretold["reliability"]:
        lines.append(
            f"  {row['low']:.3f} to {row['high']:.3f} (n={row['n']}): stated "
            f"{row['mean_stated']:.3f}, true IoU {row['mean_iou']:.3f}, right {row['matched']:.3f}"
        )
    return lines


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Prints the comparison. Returns 0; 1 with one clear error line."""
    args = parse_args(argv)
    target = args.output or args.plot
    try:
        for path in filter(None, (args.output, args.plot)):
            for source in (*output_paths(args.labels), args.truth):
                refuse_overwrite(source, path)
        summary = summarize(compare_files(args.labels, args.truth, args.iou), args.floors)
        if args.output:
            write_json(args.output, summary, indent=1)
        if args.plot:
            draw_comparison(summary, args.plot)
    except (DataError, OSError) as error:
        print(f"error: {failure_line(error, target)}", file=sys.stderr)
        return 1
    print("\n".join(describe(summary)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
