#!/usr/bin/env python3
"""Scores a pseudo-label file: mask IoU with human masks, matched by annotation id.

tools/evaluate.py labels.json annotations/instances_val.json --output iou.json
"""

import argparse
import sys

from pseudolabel.errors import DataError
from pseudolabel.files import failure_line, nan_to_null, refuse_overwrite, write_json
from pseudolabel.mask_iou import score_label_file
from pseudolabel.masks import SIZE_BINS
from pseudolabel.store import output_paths


def main(argv: list[str] | None = None) -> int:
    """Prints the scores. Returns 0; 1 with one clear error line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", help="pseudo-label JSON")
    parser.add_argument("truth", help="COCO JSON with human masks of the same instances")
    parser.add_argument("--output", help="JSON to write; null is a mean over no instance")
    args = parser.parse_args(argv)
    try:
        if args.output:
            for source in (*output_paths(args.labels), args.truth):
                refuse_overwrite(source, args.output)
        scores = score_label_file(args.labels, args.truth)
        if args.output:
            write_json(args.output, nan_to_null(scores), indent=1)
    except (DataError, OSError) as error:
        print(f"error: {failure_line(error, args.output)}", file=sys.stderr)
        return 1
    print(f"mIoU {scores['mIoU']:.4f} over {scores['n']} instances (no crowds)")
    print(f"mean over classes {scores['class_mIoU']:.4f}")
    for size in SIZE_BINS:
        # A bin without instances has no mean.
        mean = f"{scores[size]:.4f}" if scores[f"n_{size}"] else "-"
        print(f"{size} boxes {mean} over {scores[f'n_{size}']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
