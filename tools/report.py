#!/usr/bin/env python3
"""Makes one self-contained HTML page about a pseudo-label file, and a queue for human review.

    tools/report.py labels.json --images DIR --output report.html
    tools/report.py labels.json --images DIR --output report.html --truth human.json \\
        --metrics output/mal/metrics.json --queue 200 --queue-output queue.json
    tools/report.py labels.json --images DIR --output report.html --truth human.json \\
        --sweep sweep.json --config-file output/mal/config.yaml --weights output/mal/model_final.pth

Exit status: 0 written; 1 with one clear error line; 2 wrong usage.
"""

import argparse
import importlib
import sys
from pathlib import Path

from pseudolabel.errors import DataError
from pseudolabel.files import failure_line, refuse_overwrite, write_json
from pseudolabel.report.build import Options, write_page
from pseudolabel.report.queue import write_queue
from pseudolabel.store import output_paths


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", help="pseudo-label JSON; manifest and rejects lie beside it")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument(
        "--allow-links", action="store_true", help="links may lead out of the image folder"
    )
    parser.add_argument("--output", required=True, metavar="PAGE.html", help="page to write")
    parser.add_argument("--truth", metavar="HUMAN.json", help="human masks, of all or some records")
    parser.add_argument(
        "--metrics", nargs="+", default=[], metavar="METRICS.json", help="of training runs"
    )
    parser.add_argument(
        "--results", nargs="+", default=[], metavar="RESULT.json", help="docs/results/*.json"
    )
    parser.add_argument("--sweep", metavar="SWEEP.json", help="mIoU by threshold on probabilities")
    parser.add_argument("--config-file", help="of MAL: makes the sweep anew on --truth")
    parser.add_argument("--weights", help="of MAL: makes the sweep anew on --truth")
    parser.add_argument(
        "--sweep-images", type=int, default=100, help="drawn from --truth; 0 takes all (100)"
    )
    parser.add_argument("--command", help="shown as what made the labels")
    parser.add_argument("--worst", type=int, default=6, help="pictures per class (6)")
    parser.add_argument("--random", type=int, default=6, help="pictures per class (6)")
    parser.add_argument("--queue", type=int, metavar="N", help="records for a human to look at")
    parser.add_argument("--queue-output", metavar="QUEUE.json", help="COCO subset; a CSV beside it")
    parser.add_argument("--seed", type=int, default=0, help="of the random pictures (0)")
    args = parser.parse_args(argv)
    _check_usage(parser, args)
    return args


def _check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name in ("worst", "random", "seed", "sweep_images"):
        if getattr(args, name) < 0:
            parser.error(f"--{name.replace('_', '-')}: at least 0")
    if (args.queue is None) != (args.queue_output is None):
        parser.error("--queue and --queue-output go together")
    if args.queue is not None and args.queue < 1:
        parser.error("--queue: at least 1")
    if args.queue_output and Path(args.queue_output).suffix != ".json":
        parser.error("--queue-output: name a .json file")
    model = args.config_file or args.weights
    if model and not all((args.config_file, args.weights, args.truth, args.sweep)):
        parser.error("--config-file and --weights go with each other, --truth and --sweep")
    outputs = [args.output]
    if model:
        outputs.append(args.sweep)
    if args.queue_output:
        outputs += [args.queue_output, str(Path(args.queue_output).with_suffix(".csv"))]
    if len({Path(path).resolve() for path in outputs}) < len(outputs):
        parser.error("two outputs name the same file")
    inputs = [*output_paths(args.labels), *args.metrics, *args.results]
    inputs += [args.truth] if args.truth else []
    inputs += [args.config_file, args.weights] if model else [args.sweep] if args.sweep else []
    try:
        for source in inputs:
            refuse_overwrite(source, *outputs)
    except DataError as error:
        parser.error(str(error))


def _make_sweep(args: argparse.Namespace) -> None:
    """Labels the human-masked boxes at many thresholds and writes --sweep."""
    labeling, sweeping = map(importlib.import_module, ("mal.labeler", "mal.sweep"))
    sweep = sweeping.threshold_sweep(
        labeling.mal(args.config_file, args.weights),
        args.truth,
        args.images,
        limit=args.sweep_images,
        seed=args.seed,
        allow_links=args.allow_links,
    )
    write_json(args.sweep, sweep, indent=1)
    print(f"wrote {args.sweep}: {sweep['instances']} boxes of {sweep['images']} images")


def main(argv: list[str] | None = None) -> int:
    """Writes the sweep if one is to be made, the page, then the queue. Returns the exit status."""
    args = parse_args(argv)
    options = Options(
        **{name: getattr(args, name) for name in ("labels", "images", "truth", "metrics")},
        **{name: getattr(args, name) for name in ("results", "sweep", "command")},
        **{name: getattr(args, name) for name in ("worst", "random", "seed")},
        allow_links=args.allow_links,
    )
    try:
        if args.weights:
            _make_sweep(args)
        labels = write_page(options, args.output)
        print(f"wrote {args.output}: {len(labels.annotations)} records")
        account = labels.account()
        if account is not None and not account.fits:
            print("warning: the account does not add up; see the page", file=sys.stderr)
        if args.queue is not None:
            rows = write_queue(labels, args.queue, args.queue_output)
            print(f"wrote {args.queue_output}: {len(rows)} records to look at")
    except (DataError, OSError) as error:
        print(f"error: {failure_line(error, args.output)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
