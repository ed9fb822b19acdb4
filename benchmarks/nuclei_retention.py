#!/usr/bin/env python3
"""How much of the AP of human masks do MAL's labels and the yardsticks keep on nuclei?

    python benchmarks/nuclei_retention.py --seeds 0 1 2 --record    # `make results NAME=retention`

One MAL per seed, its labels of train, and Mask R-CNN with that seed on five versions of the masks:
about 35 minutes of one core per seed. Resumable; the runs are those of tools/retention.py.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from boxes_to_masks import config_files
from commands import data_folder, finish
from stages import ROOT, Runner, Stage

YARDSTICKS = ("ellipse", "grabcut", "filled_box")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=ROOT / "output/retention_nuclei")
    parser.add_argument("--record", action="store_true", help="write docs/results/retention.json")
    return parser.parse_args()


def label_stages(data: Path, output: Path, seeds: list[int]) -> list[list[Stage]]:
    """Boxes, detector weights, yardsticks' labels, and per seed a MAL and its labels of train."""
    human, boxes = data / "annotations/instances_train.json", output / "boxes_train.json"
    trunk = data.parent / "weights/resnet50_caffe_c2c4.fp16.pth"
    weights = ROOT / "output/nuclei/resnet50.pth"
    groups = [
        [
            Stage("strip", ["datasets/strip_masks.py", str(human), str(boxes)], [human], [boxes]),
            Stage("convert", ["tools/convert_weights.py", str(trunk), str(weights)], [], [weights]),
        ]
    ]
    common = ["--boxes", str(boxes), "--images", str(data / "images")]
    for name in YARDSTICKS:
        labels = output / f"labels_{name}.json"
        command = ["tools/label.py", "--labeler", name, *common, "--output", str(labels)]
        groups.append([Stage(f"label_{name}", command, [boxes], [labels], seconds=30)])
    for seed in seeds:
        run, labels = output / f"mal_seed{seed}", output / f"labels_mal_seed{seed}.json"
        sets = [("boxes_train", boxes), ("val", data / "annotations/instances_val.json")]
        entries = [
            {"name": name, "json": str(path), "image_root": str(data / "images")}
            for name, path in sets
        ]
        train = ["tools/train_net.py", "--resume", "--config-file", "configs/mal/nuclei.yaml"]
        train += ["DATASETS.REGISTER", str(entries), "DATASETS.TRAIN", "('boxes_train',)"]
        train += ["DATASETS.TEST", "('val',)", "SEED", str(seed), "OUTPUT_DIR", str(run)]
        final = run / "model_final.pth"
        label = ["tools/label.py", "--labeler", "mal", *common, "--output", str(labels)]
        label += ["--config-file", str(run / "config.yaml"), "--weights", str(final)]
        options = {"seconds": 200, "run_dir": run, "max_iter": 600}
        inputs = [boxes, *config_files(ROOT / "configs/mal/nuclei.yaml")]
        groups.append([Stage(f"mal_seed{seed}", train, inputs, [final], **options)])
        inputs = [final, run / "config.yaml"]
        groups.append([Stage(f"label_mal_seed{seed}", label, inputs, [labels], seconds=60)])
    return groups


def main() -> int:
    args = parse_args()
    data = data_folder("dsb2018_dev")
    if data is None:
        return 1
    output = args.output.resolve()
    status, _ = finish(Runner(output, label_stages(data, output, args.seeds)).run)
    if status:
        return status
    arms = [f"{name}={output}/labels_{name}.json" for name in YARDSTICKS]
    command = [sys.executable, "tools/retention.py", "--config-file"]
    command += ["configs/mask_rcnn/nuclei.yaml", "--images", str(data / "images")]
    command += ["--human", str(data / "annotations/instances_train.json")]
    command += ["--val", str(data / "annotations/instances_val.json")]
    command += ["--labels", f"mal={output}/labels_mal_seed{{seed}}.json", *arms]
    command += ["--bar", "ellipse", "--seeds", *map(str, args.seeds), "--output", str(output)]
    command += ["--record", "retention"] if args.record else []
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
