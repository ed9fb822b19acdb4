#!/usr/bin/env python3
"""Turns boxes and images into a pseudo-label file; repeated, it goes on where it was stopped.

    tools/label.py --boxes boxes.json --images DIR --output labels.json --labeler mal \\
        --config-file output/mal/config.yaml --weights output/mal/model_final.pth
    tools/label.py --boxes boxes.json --images DIR --output ellipse.json --labeler ellipse
    tools/label.py --boxes results.json --images-json images.json --images DIR ...
    tools/label.py --images DIR --labeler detector --config-file ... --weights ... --output ...

Labelers: mal, detector, filled_box, ellipse, grabcut, package.module:factory (docs/labelling.md).
"""

import sys

from pseudolabel.job import stopping

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    stopping.quit_when_stopped()

import argparse
import functools
import logging
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from pseudolabel.errors import DataError
from pseudolabel.files import failure_line, refuse_overwrite
from pseudolabel.job.dry_run import calibrate, describe_cost
from pseudolabel.job.found import require_finder
from pseudolabel.job.inputs import JobInput
from pseudolabel.job.labelers import load_labeler
from pseudolabel.job.merge import nothing_labelled
from pseudolabel.job.options import JobOptions, parse_share
from pseudolabel.job.run import run_job
from pseudolabel.labeler import Labeler
from pseudolabel.store import output_paths

logger = logging.getLogger("masksmith.label")
# Where the labelers that take seconds to import are registered.
HOMES = {"mal": "mal.labeler", "detector": "pseudolabel.detector"}
LINE, DATE = "[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--boxes", default="", help="COCO or LVIS JSON (masks in it are unused) or COCO results")
    add("--images-json", default="", help="images and categories of results, or of bare images")
    add("--images", required=True, help="folder of the images")
    add("--output", required=True, help="pseudo-label JSON to write")
    add("--labeler", required=True, help="name, or package.module:factory")
    add("--config-file", default="", help="mal, detector: YAML of the training run")
    add("--weights", default="", help="mal, detector: checkpoint of the training run")
    add("--seed", type=int, default=0)
    add("--allow-links", action="store_true", help="links may lead out of the image folder")
    add("--workers", type=int, default=1, help="processes on this machine, one thread each")
    add("--shard", default="", help="I/N, or env: this task's part of the shards")
    add("--shard-boxes", type=int, default=None, help="boxes per shard (about 15000)")
    add("--restart", action="store_true", help="begin anew, whatever is there")
    add("--keep-job", action="store_true", help="keep OUTPUT.job after the merge")
    add("--dry-run", action="store_true", help="label 200 boxes, print the cost, write nothing")
    add("--scale-to", type=int, default=None, help="dry run: extrapolate to so many boxes")
    add("opts", nargs=argparse.REMAINDER, help="mal, detector: KEY VALUE config overrides")
    return parser.parse_args(argv)


def build_labeler(args: argparse.Namespace) -> Labeler:
    """The labeler that the command line names; options that it does not have are refused."""
    options = {"config_file": args.config_file, "weights": args.weights, "opts": args.opts}
    if args.labeler == "detector":
        from masksmith import new_config, register_methods  # takes seconds

        register_methods()
        # The keys of every method, of which the YAML of a run states some.
        options["new_config"] = new_config
    return load_labeler(args.labeler, options, HOMES)


def run(args: argparse.Namespace, on_ready: Callable[[], None] = lambda: None) -> int:
    """The job of a command line. Returns 0. Calls `on_ready` when the labeler is built.

    Raises:
        DataError: bad input, or no image could be used; labels and rejects are written even so.
    """
    options = JobOptions(
        images=Path(args.images),
        output=Path(args.output),
        workers=args.workers,
        shard=parse_share(args.shard, os.environ),
        shard_boxes=args.shard_boxes,
        seed=args.seed,
        allow_links=args.allow_links,
        restart=args.restart,
        keep_job=args.keep_job,
        command=shlex.join(sys.argv),
    )
    options.check()
    for source in filter(None, (args.boxes, args.images_json)):
        refuse_overwrite(source, *output_paths(args.output))
    labeler = build_labeler(args)
    if not args.boxes:
        require_finder(labeler)
    given = JobInput(
        options.images,
        Path(args.boxes) if args.boxes else None,
        Path(args.images_json) if args.images_json else None,
        tuple(getattr(labeler, "categories", ())),
    )
    on_ready()
    if args.dry_run:
        source = given.open()
        links = options.allow_links
        cost = calibrate(source, labeler, options.images, args.seed, allow_links=links)
        print(describe_cost(cost, source, args.shard_boxes, args.workers, args.scale_to))
        return 0
    manifest = run_job(given, labeler, functools.partial(build_labeler, args), options)
    if manifest is None:
        return 0
    counts, images = manifest["counts"], manifest["job"]["images"]
    logger.info("%s: %d boxes in, %s", args.output, manifest["annotations_in"], counts)
    rejected, where = counts["images"].get("rejected", 0), output_paths(args.output)[1]
    if nothing_labelled(manifest):
        problem = f"every image was rejected ({where} says why); {options.job} is kept"
        raise DataError(args.images, problem, "correct the folder, then add --restart")
    if rejected:
        logger.warning("%d of %d images were rejected; %s says why", rejected, images, where)
    return 0


def main(args: argparse.Namespace) -> int:
    """Runs the job. Returns 0; 1 with one clear error line; 130 when stopped, and how to go on."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format=LINE, datefmt=DATE)
    try:
        return run(args, stopping.raise_when_stopped)
    except KeyboardInterrupt:
        logger.warning(stopping.MESSAGE)
        return stopping.STATUS
    except (DataError, OSError) as error:
        logger.error("%s", failure_line(error, args.output))
        return 1


if __name__ == "__main__":
    status = main(parse_args())
    stopping.end_undisturbed()
    sys.exit(status)
