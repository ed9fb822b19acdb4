#!/usr/bin/env python3
"""Merges a JSON that was corrected in a label tool back into the labels, and prints the diff.

    tools/review.py labels.json corrected.json --output merged.json

Records are matched by annotation id. Beside the output stand its diff, merged.review.json, and the
rejects and the manifest of the labels, carried on. A record that is absent from the corrected file
is an error, unless one of these says what it means: --deletions (it is deleted), --partial (the
file holds only some records, the others stay), or --queue FILE (the file that the reviewer was
given; what is not in that one stays).
"""

import argparse
import sys

from pseudolabel.errors import DataError
from pseudolabel.files import refuse_overwrite
from pseudolabel.review import Rules, review_labels
from pseudolabel.review_files import review_paths, write_review
from pseudolabel.store import read_labels


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", help="pseudo-label JSON")
    parser.add_argument("corrected", help="COCO JSON with the same ids, polygons or run lengths")
    parser.add_argument("--output", required=True, help="merged pseudo-label JSON to write")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--partial", action="store_true", help="absent records are untouched")
    part.add_argument("--queue", metavar="FILE", help="JSON that the reviewer was given")
    parser.add_argument("--deletions", action="store_true", help="absent records are deleted")
    parser.add_argument(
        "--crowds", action="store_true", help="take iscrowd from the corrected file"
    )
    parser.add_argument(
        "--same-iou", type=float, default=1.0, help="masks this alike are unchanged (1.0)"
    )
    parser.add_argument("--max", type=int, default=100, help="lines to print (100)")
    args = parser.parse_args(argv)
    if args.partial and args.deletions:
        parser.error("--partial leaves absent records alone, --deletions deletes them")
    if not 0 < args.same_iou <= 1:
        parser.error("--same-iou: above 0, at most 1")
    if args.max < 0:
        parser.error("--max: at least 0")
    return args


def read_rules(args: argparse.Namespace) -> Rules:
    scope = None
    if args.queue:
        scope = {annotation["id"] for annotation in read_labels(args.queue)["annotations"]}
    return Rules(args.partial, scope, args.deletions, args.crowds, args.same_iou)


def main(argv: list[str] | None = None) -> int:
    """Merges, writes, and prints the diff. Returns 0; 1 with one clear error line."""
    args = parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        # A name in the file may hold what the terminal cannot show.
        stream.reconfigure(errors="backslashreplace")
    outputs = review_paths(args.output)
    try:
        for path in filter(None, (args.labels, args.corrected, args.queue)):
            refuse_overwrite(path, *outputs)
        review = review_labels(args.labels, args.corrected, read_rules(args))
        write_review(review, args.output, args.labels, args.corrected)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where, problem = error.filename or args.output, error.strerror or error
        print(f"error: {where}: {problem}. Remedy: check disk space and rights.", file=sys.stderr)
        return 1
    *details, total = review.lines()
    for line in details[: args.max]:
        print(line)
    if len(details) > args.max:
        print(f"... and {len(details) - args.max} more ({outputs[-1]} has all)")
    print(f"{args.output}: {total}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
