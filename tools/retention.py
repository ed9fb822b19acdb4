#!/usr/bin/env python3
"""How much of the AP of human masks do labels keep? Trains the pairs that are missing; one table.

    tools/retention.py --config-file configs/mask_rcnn/nuclei.yaml --images DIR \\
        --human instances_train.json --val instances_val.json \\
        --labels mal=labels_mal_seed{seed}.json ellipse=labels_ellipse.json --bar ellipse \\
        --seeds 0 1 2 --output output/retention [--record NAME] [--opts KEY VALUE ...]
    tools/retention.py ... --collect-only    # the table of what is finished; trains nothing

A run is OUTPUT/rcnn_ARM_seedN; finished ones are kept, unfinished ones go on. `{seed}` in a name
is the seed. --record writes docs/results/NAME.json for benchmarks/tables.py.
"""

import argparse
import sys
from pathlib import Path

from pseudolabel.retention import HUMAN

# The runner of stages and the form of a result are those of the benchmarks, which is no package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from commands import finish_measurement
from retention_runs import Comparison
from stages import Runner

KEYS = (
    *("config_file", "arms", "images", "val", "val_images", "format", "bar", "seeds", "output"),
    "opts",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", type=Path, required=True, help="of the detector")
    add("--human", required=True, help="JSON of train with human masks")
    add("--images", required=True, help="folder of train's images, and of val's by default")
    add("--val", required=True, help="JSON of val with human masks")
    add("--val-images", help="folder of val's images")
    add("--format", default="coco", help="coco or lvis")
    add("--labels", nargs="+", required=True, metavar="ARM=JSON", help="label files of train")
    add("--bar", default="ellipse", help="arm that the others should clear")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--output", type=Path, required=True)
    add("--collect-only", action="store_true", help="train nothing")
    add("--record", default="", metavar="NAME", help="write docs/results/NAME.json")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides of every run")
    args = parser.parse_args(argv)
    pairs = [text.partition("=") for text in args.labels]
    if not all(name and path for name, _, path in pairs) or HUMAN in (name for name, _, _ in pairs):
        parser.error(f"--labels takes ARM=JSON, with any name but {HUMAN!r}")
    if len({name for name, _, _ in pairs}) < len(pairs) or len(set(args.seeds)) < len(args.seeds):
        parser.error("an arm or a seed is given twice")
    args.arms = {HUMAN: args.human, **{name: path for name, _, path in pairs}}
    if args.bar not in args.arms:
        parser.error(f"--bar {args.bar} is none of the arms: {', '.join(args.arms)}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    comparison = Comparison(**{key: getattr(args, key) for key in KEYS})

    def work() -> dict:
        todo = [] if args.collect_only else comparison.plan()
        if todo:
            Runner(args.output, todo).run()
        return comparison.collect(args.record or "retention")

    return finish_measurement(work, bool(args.record))


if __name__ == "__main__":
    sys.exit(main())
