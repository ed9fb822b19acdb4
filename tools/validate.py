#!/usr/bin/env python3
"""Says what is wrong with a COCO or LVIS JSON and its images, and repairs what can be repaired.

    tools/validate.py labels.json --images DIR
    tools/validate.py labels.json --images DIR --repair repaired.json --report report.json

Exit status: 0 sound; 1 errors (with --strict also warnings), repaired or not; 2 wrong usage.
"""

import argparse
import sys
from pathlib import Path

from pseudolabel.errors import DataError
from pseudolabel.files import failure_line, refuse_overwrite
from pseudolabel.repair import Repair
from pseudolabel.validation_report import Findings, examine, write_repair, write_report


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="COCO or LVIS JSON")
    parser.add_argument("--images", help="folder of the images; without it only the JSON is read")
    parser.add_argument("--headers-only", action="store_true", help="do not decode the images")
    parser.add_argument(
        "--allow-links", action="store_true", help="links may lead out of the image folder"
    )
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")
    parser.add_argument("--repair", metavar="OUT.json", help="repaired copy to write")
    parser.add_argument("--report", metavar="OUT.json", help="findings and steps as JSON to write")
    parser.add_argument("--max", type=int, default=100, help="lines of a sort to print (100)")
    args = parser.parse_args(argv)
    if args.images is not None and not Path(args.images).is_dir():
        parser.error(f"--images: no folder {args.images}")
    if args.max < 0:
        parser.error("--max: at least 0")
    if args.repair and args.report and Path(args.repair).resolve() == Path(args.report).resolve():
        parser.error("--repair and --report name the same file")
    try:
        refuse_overwrite(args.file, *filter(None, (args.repair, args.report)))
    except DataError as error:
        parser.error(str(error))
    return args


def print_lines(lines: list[str], limit: int) -> None:
    for line in lines[:limit]:
        print(line)
    if len(lines) > limit:
        print(f"... and {len(lines) - limit} more (--max {len(lines)} prints all)")


def print_findings(findings: Findings, limit: int) -> None:
    print_lines([findings.line(defect) for defect in findings.defects], limit)
    for kind, number in findings.counts().items():
        print(f"{number:8d} {kind}")
    print(f"{findings.path}: {findings.errors} errors, {findings.warnings} warnings")


def repaired(findings: Findings, path: str, limit: int) -> Repair | None:
    """Writes the repaired copy and prints what was done; None where nothing can be done."""
    try:
        repair = write_repair(findings, path)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return None
    print_lines([str(step) for step in repair.steps], limit)
    for kind, count in repair.counts.items():
        numbers = ", ".join(f"{number} {name}" for name, number in count.items())
        print(f"{path}: {kind} {numbers}")
    return repair


def main(argv: list[str] | None = None) -> int:
    """Prints findings, then the steps of the repair. Returns the exit status."""
    args = parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        # A name in the file may hold what the terminal cannot show.
        stream.reconfigure(errors="backslashreplace")
    try:
        pixels = not args.headers_only
        findings = examine(args.file, args.images, pixels, args.allow_links)
        print_findings(findings, args.max)
        repair = repaired(findings, args.repair, args.max) if args.repair else None
        if args.report:
            write_report(findings, repair, args.report)
    except OSError as error:
        print(f"error: {failure_line(error, args.repair or args.report)}", file=sys.stderr)
        return 1
    return 1 if findings.errors or (args.strict and findings.warnings) else 0


if __name__ == "__main__":
    sys.exit(main())
