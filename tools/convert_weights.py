#!/usr/bin/env python3
"""Rewrites torchvision-named ResNet weights to a Detectron2 checkpoint.

    tools/convert_weights.py resnet50.pth output/resnet50_d2.pth

The result goes into MODEL.WEIGHTS. Set INPUT.FORMAT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and
MODEL.RESNETS.STRIDE_IN_1X1 (False for torchvision's own weights) as the weights were trained.
"""

import argparse
import sys

from pseudolabel.errors import DataError
from pseudolabel.weights import FPN_PREFIX, convert_file


def main(argv: list[str] | None = None) -> int:
    """Converts and says what became of every entry. Returns 0; 1 with one clear error line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", help=".pth with torchvision's names")
    parser.add_argument("output", help="Detectron2 checkpoint to write")
    parser.add_argument("--prefix", default=FPN_PREFIX, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        converted = convert_file(args.input, args.output, args.prefix)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {len(converted.model)} tensors, float32")
    classifier = [name for name in converted.dropped if name.startswith("fc.")]
    counters = len(converted.dropped) - len(classifier)
    if converted.dropped:
        named = ", ".join(classifier) or "no classifier"
        print(f"dropped: {named}; {counters} num_batches_tracked counters")
    if converted.absent:
        print(f"absent, so they start at random: {', '.join(converted.absent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
