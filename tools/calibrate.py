#!/usr/bin/env python3
"""Fits the quality of a labeler to true mask IoU on images with human masks.

    tools/label.py --boxes human.json ... --output human_labels.json
    tools/calibrate.py human_labels.json human.json --output calibration.json
    tools/label.py --boxes rest.json ... MODEL.MAL.TEST.CALIBRATION calibration.json

The order of masks by quality hardly changes; the numbers come to mean IoU. The images that were
used are named in the file and in the manifest of everything labelled with it.
"""

import argparse
import logging
import sys

from detectron2.utils.logger import setup_logger

from pseudolabel.calibration import fit_from_files
from pseudolabel.errors import DataError
from pseudolabel.files import failure_line, refuse_overwrite
from pseudolabel.store import output_paths

logger = logging.getLogger("masksmith.calibrate")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", help="label file of the human-masked images, manifest beside it")
    parser.add_argument("truth", help="COCO or LVIS JSON with their human masks")
    parser.add_argument("--output", required=True, help="calibration JSON to write")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Fits and writes. Returns 0; 1 with one clear error line."""
    setup_logger(name="masksmith")
    try:
        for source in (*output_paths(args.labels), args.truth):
            refuse_overwrite(source, args.output)
        calibration = fit_from_files(args.labels, args.truth)
        calibration.save(args.output)
    except (DataError, OSError) as error:
        logger.error("%s", failure_line(error, args.output))
        return 1
    facts = calibration.facts
    logger.info(
        "%s: %s fitted on %d masks of %d images, %d levels",
        *(args.output, facts["measure"], facts["instances"], len(facts["image_ids"])),
        len(calibration.quality),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
