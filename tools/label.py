#!/usr/bin/env python3
"""Turns a COCO boxes JSON and its images into a pseudo-label file.

    tools/label.py --boxes boxes.json --images DIR --output labels.json --labeler mal \\
        --config-file output/mal/config.yaml --weights output/mal/model_final.pth
    tools/label.py --boxes boxes.json --images DIR --output ellipse.json --labeler ellipse

Labelers: mal, filled_box, ellipse, grabcut. Beside the output stand its manifest and its rejects.
"""

import argparse
import logging
import sys
import time

from detectron2.utils.logger import setup_logger

import mal.labeler  # noqa: F401  (registers the labeler "mal")
import pseudolabel.yardsticks  # noqa: F401  (registers filled_box, ellipse, grabcut)
from pseudolabel.errors import DataError
from pseudolabel.files import refuse_overwrite
from pseudolabel.label_job import label_images
from pseudolabel.labeler import LABELERS, Labeler
from pseudolabel.loader import seed_everything
from pseudolabel.progress import Progress
from pseudolabel.store import BoxFile, output_paths, write_label_file

logger = logging.getLogger("masksmith.label")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", required=True, help="COCO or LVIS JSON; masks in it are unused")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--output", required=True, help="pseudo-label JSON to write")
    parser.add_argument("--labeler", required=True, help="mal, filled_box, ellipse or grabcut")
    parser.add_argument("--config-file", default="", help="mal: YAML of the training run")
    parser.add_argument("--weights", default="", help="mal: checkpoint of the training run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="mal: KEY VALUE config overrides")
    return parser.parse_args(argv)


def build_labeler(args: argparse.Namespace) -> Labeler:
    """The labeler that the command line names; options that it does not have are refused."""
    if args.labeler not in LABELERS:
        raise DataError("--labeler", f"unknown name {args.labeler!r}", "see --help")
    options = {"config_file": args.config_file, "weights": args.weights, "opts": args.opts}
    if args.labeler == "mal":
        return LABELERS.get(args.labeler)(**options)
    given = [str(value) for value in options.values() if value]
    if given:
        raise DataError(
            f"--labeler {args.labeler}", f"has no options, got {', '.join(given)}", "leave them out"
        )
    return LABELERS.get(args.labeler)()


def main(args: argparse.Namespace) -> int:
    """Labels, writes, and prints the accounts. Returns 0; 1 with one clear error line."""
    for name in ("masksmith", "mal", "pseudolabel"):
        setup_logger(name=name)
    seed_everything(args.seed)
    try:
        refuse_overwrite(args.boxes, *output_paths(args.output))
        labeler = build_labeler(args)
        source = BoxFile(args.boxes)
        started = time.perf_counter()
        progress = Progress(len(source.data["annotations"]), "boxes", logger)
        result = label_images(source, args.images, labeler, progress.update)
        extra = {"seed": args.seed, "seconds": round(time.perf_counter() - started, 1)}
        manifest = write_label_file(args.output, source, result, labeler.describe(), extra)
    except DataError as error:
        logger.error("%s", error)
        return 1
    except OSError as error:
        # A failing write does not know its file; the output is the only one written.
        where, problem = error.filename or args.output, error.strerror or error
        logger.error("%s: %s. Remedy: check disk space and rights, then repeat.", where, problem)
        return 1
    logger.info("%s: %d boxes in, %s", args.output, manifest["annotations_in"], manifest["counts"])
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
