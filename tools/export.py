#!/usr/bin/env python3
"""Writes a pseudo-label file in another format, and says what that format could not hold.

    tools/export.py labels.json --format coco-polygons --output polygons.json
    tools/export.py labels.json --format label-tool --output for_cvat.json
    tools/export.py labels.json --format yolo-seg --output yolo/
    tools/export.py labels.json --format voc-png --output voc/

docs/formats.md describes the formats. An output that exists is never replaced.
"""

import argparse
import sys

from pseudolabel.errors import DataError
from pseudolabel.export import FORMATS, export_labels
from pseudolabel.export.source import refuse_existing
from pseudolabel.files import failure_line, refuse_overwrite, write_json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", help="pseudo-label JSON, or any COCO or LVIS JSON with masks")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, help="JSON or folder to write")
    parser.add_argument("--report", metavar="OUT.json", help="the accounts as JSON to write")
    parser.add_argument("--max", type=int, default=100, help="lines to print (100)")
    args = parser.parse_args(argv)
    if args.max < 0:
        parser.error("--max: at least 0")
    return args


def main(argv: list[str] | None = None) -> int:
    """Exports and prints the accounts. Returns 0; 1 with one clear error line."""
    args = parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        # A name in the file may hold what the terminal cannot show.
        stream.reconfigure(errors="backslashreplace")
    try:
        if args.report:
            refuse_overwrite(args.output, args.report)
            refuse_existing(args.report)
        report = export_labels(args.labels, args.format, args.output)
        if args.report:
            write_json(args.report, report.as_json(), indent=1)
    except (DataError, OSError) as error:
        print(f"error: {failure_line(error, args.output)}", file=sys.stderr)
        return 1
    *details, total = report.lines()
    for line in details[: args.max]:
        print(line)
    if len(details) > args.max:
        print(f"... and {len(details) - args.max} more (--report OUT.json writes all)")
    print(total)
    return 0


if __name__ == "__main__":
    sys.exit(main())
