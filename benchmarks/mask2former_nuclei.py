#!/usr/bin/env python3
"""Does Mask2Former on human masks of nuclei reach the AP from which retention can be told?

    python benchmarks/mask2former_nuclei.py --record      # `make results NAME=mask2former_nuclei`

Retention counts only where the human-mask arm has 25 AP; this is the search for a schedule of CPU
minutes that gets there. Settings are compared on a fifth of the training images that they are not
trained on; val is not read. 10 to 20 minutes of a core per setting; an interrupted run continues.
Where one gets there, tools/retention.py with it makes the row.
"""

import argparse
import math
import random
import sys
from pathlib import Path
from typing import Any

from boxes_to_masks import config_files
from commands import data_folder, finish_measurement
from mask2former_overfit import last_numbers, with_images
from results import config_facts, data_facts, measurement
from stages import ROOT, Runner, Stage

from pseudolabel.files import read_json, write_json
from pseudolabel.retention import MIN_HUMAN_AP

CONFIG = ROOT / "projects/mask2former/configs/nuclei.yaml"
OUTPUT = ROOT / "output/mask2former_nuclei"
HELD_OUT, DRAW = 0.2, 7
# What is tried: name -> what it is, and its KEY VALUE overrides.
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "as_is": ("nuclei.yaml: lr 1e-3, 150 queries, 1024 points", ["SOLVER.MAX_ITER", "800"]),
    "points": (
        "lr 5e-4, 100 queries, 4096 points",
        [
            *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "4096", "SOLVER.BASE_LR", "0.0005"),
            *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "100", "SOLVER.MAX_ITER", "400"),
        ],
    ),
}


def split(source: Path, fit: Path, held: Path) -> None:
    """Writes two COCO JSONs: images to train on, and a fixed draw of images to test on."""
    data = read_json(source)
    ids = [image["id"] for image in data["images"]]
    random.Random(DRAW).shuffle(ids)
    drawn = set(ids[: round(HELD_OUT * len(ids))])
    for path, wanted in ((fit, set(ids) - drawn), (held, drawn)):
        write_json(path, with_images(data, wanted))


def training(name: str, output: Path, images: Path, weights: Path, seed: int) -> Stage:
    """The run of a setting."""
    fit, held, run = output / "fit.json", output / "held.json", output / name
    entries = [
        {"name": path.stem, "json": str(path), "image_root": str(images)} for path in (fit, held)
    ]
    _, options = SETTINGS[name]
    command = ["tools/train_net.py", "--resume", "--config-file", str(CONFIG)]
    command += ["DATASETS.REGISTER", str(entries), "DATASETS.TRAIN", "('fit',)"]
    command += ["DATASETS.TEST", "('held',)", "MODEL.WEIGHTS", str(weights)]
    command += ["SEED", str(seed), "OUTPUT_DIR", str(run), *options]
    steps = int(options[options.index("SOLVER.MAX_ITER") + 1])
    inputs = [fit, held, weights, *config_files(CONFIG)]
    outputs = [run / "model_final.pth", run / "metrics.json"]
    return Stage(name, command, inputs, outputs, 1.2 * steps, run, steps)


def result(output: Path, names: list[str], seed: int) -> dict[str, Any]:
    """The measurement of the runs that are there.

    Raises:
        DataError: a run was not evaluated.
    """
    rows, raw = [], {}
    for name in names:
        numbers = last_numbers(output / name)
        # Without instances of a size its AP is not a number.
        numbers = {key: value for key, value in numbers.items() if not math.isnan(value)}
        raw[name] = {key: value for key, value in numbers.items() if "/" in key or "dice" in key}
        shown = [f"{numbers[f'segm/{key}']:.2f}" for key in ("AP", "AP50", "AP75")]
        dice = [f"{numbers[key]:.2f}" for key in ("loss_dice_0", "loss_dice")]
        title, options = SETTINGS[name]
        steps = options[options.index("SOLVER.MAX_ITER") + 1]
        rows.append([title, steps, *shown, " to ".join(dice)])
    best = max(numbers["segm/AP"] for numbers in raw.values())
    reached = best >= MIN_HUMAN_AP
    verdict = "A retention row can be made." if reached else "**Under-trained**: no retention row."
    text = (
        f"Mask2Former on the human masks of four fifths of nuclei's training images, tested on the "
        f"other fifth; frozen ImageNet trunk, all else from random numbers. "
        f"{verdict} Retention needs {MIN_HUMAN_AP:g} AP. Dice loss (times its weight) of queries "
        f"that have not looked at the image, and of the last layer: where the two are equal, the "
        f"decoder adds nothing."
    )
    header = ["setting", "steps", "mask AP", "AP50", "AP75", "dice loss, layer 0 to last"]
    made = measurement("mask2former_nuclei", text, header, rows, raw)
    data = {name: data_facts(output / f"{name}.json") for name in ("fit", "held")}
    return made | {"seeds": [seed], "data": data, "configs": {"nuclei": config_facts(CONFIG)}}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--collect-only", action="store_true", help="train nothing")
    parser.add_argument("--record", action="store_true", help="write docs/results")
    args = parser.parse_args(argv)
    data = data_folder("dsb2018_dev")
    if data is None:
        return 1

    def work() -> dict[str, Any]:
        output = args.output.resolve()
        if args.collect_only:
            return result(output, args.settings, args.seed)
        weights = output / "resnet50_trunk.pth"
        split(data / "annotations/instances_train.json", output / "fit.json", output / "held.json")
        trunk = data.parent / "weights/resnet50_caffe_c2c4.fp16.pth"
        convert = ["tools/convert_weights.py", str(trunk), str(weights)]
        convert += ["--prefix", "model.pixel_level_module.encoder.backbone."]
        groups = [[Stage("convert", convert, [trunk], [weights])]]
        groups += [
            [training(name, output, data / "images", weights, args.seed)] for name in args.settings
        ]
        Runner(output, groups).run()
        return result(output, args.settings, args.seed)

    return finish_measurement(work, args.record)


if __name__ == "__main__":
    sys.exit(main())
