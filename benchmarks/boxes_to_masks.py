#!/usr/bin/env python3
"""The whole job: boxes -> MAL -> labels -> Mask R-CNN on labels and on human masks -> one table.

    python benchmarks/boxes_to_masks.py --name sample            # `make demo`
    python benchmarks/boxes_to_masks.py --name own --data DIR    # `make demo DATA=DIR`
    python benchmarks/boxes_to_masks.py --name nuclei --record   # `make results NAME=nuclei`
    python benchmarks/boxes_to_masks.py --name coco_dev --record # label quality alone

DIR holds annotations/instances_train.json, annotations/instances_val.json and images/ (or COCO's
own names: instances_train2017.json with train2017/). The human masks of train are used by the
human arm only (left out where train has none), those of val by the evaluation only: MAL and the
labels see boxes. --mal-run DIR uses a MAL that tools/train_net.py has trained with the same keys on
the same boxes.
"""

import argparse
import os
import sys
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode
from mal_run import require_run, run_seconds
from overlays import write_page
from results import collect, record
from stages import ROOT, Runner, Stage, StageError, say
from tables import experiment_table

from pseudolabel.errors import DataError
from pseudolabel.files import expand_path, read_json, write_json

LABELERS = ("filled_box", "ellipse", "grabcut", "mal")
ARMS = ("mal", "human")
# Seconds of the two long stages on two idle cores, for the ETA alone.
SECONDS = {"sample": (190, 400), "nuclei": (160, 300), "own": (190, 400), "coco_dev": (900, 0)}
# Real data below $MASKSMITH_DATA.
FOLDERS = {"nuclei": "dsb2018_dev", "coco_dev": "coco_dev"}
# A detector of 80 classes needs more than 243 images: its retention would say nothing.
WITHOUT_DETECTORS = {"coco_dev"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--name", default="sample", help="sample, nuclei, coco_dev, or own with --data"
    )
    parser.add_argument("--data", type=Path, help="folder in the COCO layout")
    parser.add_argument("--output", type=Path, help="default: output/NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mal-config", help="default: configs/mal/NAME.yaml")
    parser.add_argument("--rcnn-config", help="default: configs/mask_rcnn/NAME.yaml")
    parser.add_argument("--mal-run", type=Path, help="folder of a trained MAL, instead of training")
    parser.add_argument(
        "--detectors",
        action=argparse.BooleanOptionalAction,
        help="train Mask R-CNN on the labels and on human masks (default: not for coco_dev)",
    )
    parser.add_argument("--record", action="store_true", help="write docs/results/NAME.json")
    return parser.parse_args()


class Experiment:
    """Paths and stages of one run.

    Attributes:
        name, output, seed: of the run.
        mal_run: folder of the trained labeler; `reuses_mal` where an earlier run is used.
        splits: {"train": (human JSON, image folder), "val": ...}.
    """

    def __init__(self, args: argparse.Namespace):
        self.name, self.seed = args.name, args.seed
        self.seconds = SECONDS.get(args.name, SECONDS["own"])
        self.output = (args.output or ROOT / "output" / args.name).resolve()
        self.reuses_mal = args.mal_run is not None
        self.mal_run = args.mal_run.resolve() if self.reuses_mal else self.output / "mal"
        default = args.name not in WITHOUT_DETECTORS
        self.detectors = default if args.detectors is None else args.detectors
        known = "sample" if args.name == "own" else args.name
        self.mal_config = Path(args.mal_config or ROOT / f"configs/mal/{known}.yaml")
        self.rcnn_config = Path(args.rcnn_config or ROOT / f"configs/mask_rcnn/{known}.yaml")
        # Only the nuclei config starts its detector from ImageNet weights.
        pretrained = "weights/resnet50_caffe_c2c4.fp16.pth" if args.name == "nuclei" else ""
        self.pretrained = (
            Path(os.environ.get("MASKSMITH_DATA", ""), pretrained) if pretrained else None
        )
        self.generated = args.name == "sample" and args.data is None
        self.data = self._data(args)
        self.splits = {} if self.generated else self._find_splits()

    def _data(self, args: argparse.Namespace) -> Path:
        if self.generated:
            return self.output / "data"
        if args.data:
            return args.data.resolve()
        if args.name in FOLDERS and os.environ.get("MASKSMITH_DATA"):
            return Path(os.environ["MASKSMITH_DATA"], FOLDERS[args.name]).resolve()
        known = " and ".join(FOLDERS)
        sys.exit(f"error: no data. Remedy: give --data DIR, or export MASKSMITH_DATA for {known}")

    def _find_splits(self) -> dict[str, tuple[Path, Path]]:
        found = {}
        for split in ("train", "val"):
            for suffix in ("", "2017"):
                annotations = self.data / f"annotations/instances_{split}{suffix}.json"
                folders = (self.data / f"{split}{suffix}", self.data / "images")
                images = next((folder for folder in folders if folder.is_dir()), None)
                if annotations.is_file() and images:
                    found[split] = (annotations, images)
        missing = {"train", "val"} - found.keys()
        if missing:
            sys.exit(
                f"error: {self.data} has no {' and '.join(sorted(missing))} split. Remedy: lay it "
                "out as annotations/instances_{train,val}.json with images/"
            )
        return found

    def boxes(self, split: str) -> Path:
        """The boxes-only copy of a split."""
        return self.output / f"boxes_{split}.json"

    def labels(self, labeler: str, split: str) -> Path:
        """The pseudo-label file of a labeler on a split."""
        return self.output / f"labels_{labeler}_{split}.json"

    def arms(self) -> list[str]:
        """The detectors to train: the one on human masks only where train has them."""
        if not self.detectors:
            return []
        return [arm for arm in ARMS if arm != "human" or has_masks(self.splits["train"][0])]

    def check(self) -> None:
        """Fails before the first stage where the table could not be made at the end.

        Raises:
            DataError: val has no human masks to compare with, or the MAL to use is another one.
        """
        if not has_masks(self.splits["val"][0]):
            raise DataError(
                self.splits["val"][0],
                "has no masks, so nothing could be measured",
                "give human masks for val; to label boxes alone, follow README's single steps",
            )
        if self.reuses_mal:
            require_run(self.mal_run, self.mal_config, self.splits["train"][0], self.seed, ROOT)

    def prepare(self) -> list[list[Stage]]:
        """Stages before the splits are known: make the sample."""
        outputs = [self.data / f"annotations/instances_{s}.json" for s in ("train", "val")]
        command = ["datasets/make_sample.py", "--output", str(self.data)]
        return [[Stage("make_sample", command, outputs=outputs, seconds=30)]]

    def plan(self) -> list[list[Stage]]:
        """The stages; those of one inner list run side by side."""
        strip = [self._strip(split) for split in ("train", "val")]
        weights = [self._convert_weights()] if self.pretrained and self.detectors else []
        training = [] if self.reuses_mal else [self._train_mal()]
        labelled = ("val", "train") if self.detectors else ("val",)
        groups = [
            strip + weights,
            [self._label("filled_box", "val"), self._label("ellipse", "val")],
            [*training, self._label("grabcut", "val")],
            [self._label("mal", split) for split in labelled],
            [self._train_rcnn(arm) for arm in self.arms()],
        ]
        return [group for group in groups if group]

    def register(self, train: Path) -> str:
        """The value of DATASETS.REGISTER: `train` as the training set, human masks for val."""
        entries = [
            {"name": "demo_train", "json": str(train), "image_root": str(self.splits["train"][1])},
            {
                "name": "demo_val",
                "json": str(self.splits["val"][0]),
                "image_root": str(self.splits["val"][1]),
            },
        ]
        return str(entries)

    def _strip(self, split: str) -> Stage:
        source = self.splits[split][0]
        command = ["datasets/strip_masks.py", str(source), str(self.boxes(split))]
        return Stage(f"strip_{split}", command, [source], [self.boxes(split)], seconds=2)

    def _convert_weights(self) -> Stage:
        output = self.output / "resnet50.pth"
        command = ["tools/convert_weights.py", str(self.pretrained), str(output)]
        return Stage("convert_weights", command, [self.pretrained], [output], seconds=5)

    def _command(self, config: Path, train: Path, run_dir: Path) -> list[str]:
        command = ["tools/train_net.py", "--config-file", str(config)]
        command += ["DATASETS.REGISTER", self.register(train)]
        command += ["DATASETS.TRAIN", "('demo_train',)", "DATASETS.TEST", "('demo_val',)"]
        return [*command, "OUTPUT_DIR", str(run_dir), "SEED", str(self.seed)]

    def _train(self, name: str, config: Path, train: Path, seconds: float) -> Stage:
        run_dir = self.output / name
        command = self._command(config, train, run_dir)
        command.insert(1, "--resume")
        inputs = [train, self.splits["val"][0], *config_files(config)]
        if self.pretrained and name != "mal":
            command += ["MODEL.WEIGHTS", str(self.output / "resnet50.pth")]
            inputs.append(self.pretrained)
        return Stage(
            f"train_{name}",
            command,
            inputs,
            [run_dir / "model_final.pth"],
            seconds=seconds,
            run_dir=run_dir,
            max_iter=config_key(config, "MAX_ITER", "SOLVER"),
        )

    def _train_mal(self) -> Stage:
        return self._train("mal", self.mal_config, self.boxes("train"), self.seconds[0])

    def _train_rcnn(self, arm: str) -> Stage:
        train = self.splits["train"][0] if arm == "human" else self.labels(arm, "train")
        return self._train(f"rcnn_{arm}", self.rcnn_config, train, self.seconds[1])

    def _label(self, labeler: str, split: str) -> Stage:
        return label_stage(
            f"label_{labeler}_{split}",
            labeler,
            (self.boxes(split), self.splits[split][1]),
            self.labels(labeler, split),
            self.mal_run,
        )


def label_stage(
    name: str, labeler: str, source: tuple[Path, Path], output: Path, mal_run: Path
) -> Stage:
    """The stage that runs tools/label.py.

    Args:
        name: of the stage.
        labeler: one of `LABELERS`.
        source: JSON of the boxes, and folder of the images.
        output: the pseudo-label file.
        mal_run: folder of the training that the labeler "mal" comes from.
    """
    command = ["tools/label.py", "--labeler", labeler, "--boxes", str(source[0])]
    command += ["--images", str(source[1]), "--output", str(output)]
    inputs = [source[0]]
    if labeler == "mal":
        weights = mal_run / "model_final.pth"
        command += ["--config-file", str(mal_run / "config.yaml"), "--weights", str(weights)]
        inputs.append(weights)
    return Stage(name, command, inputs, [output], seconds=20)


def has_masks(json_file: Path) -> bool:
    """Whether a COCO JSON holds the mask of anything but crowds."""
    annotations = read_json(json_file)["annotations"]
    return any(a.get("segmentation") and not a.get("iscrowd", 0) for a in annotations)


def config_files(config: Path) -> list[Path]:
    """A config, the bases below it, and the weights that it starts from: what decides its run."""
    base = yaml.safe_load(config.read_text()).get("_BASE_")
    files = [config, *(config_files(config.parent / base) if base else [])]
    weights = config_key(config, "WEIGHTS", "MODEL", "MAL", "ENCODER")
    return list(dict.fromkeys(files + ([ROOT / expand_path(weights)] if weights else [])))


def config_key(config: Path, key: str, *section: str):
    """A key of a config file, bases included; None where no file sets it."""
    node = CfgNode.load_yaml_with_base(str(config))
    for name in section:
        node = node.get(name, {})
    return node.get(key)


def main() -> int:
    args = parse_args()
    experiment = Experiment(args)
    seconds = {}
    try:
        if experiment.generated:
            seconds |= Runner(experiment.output, experiment.prepare()).run()
            experiment.splits = experiment._find_splits()
        experiment.check()
        seconds |= Runner(experiment.output, experiment.plan()).run()
        if experiment.reuses_mal:
            seconds["train_mal"] = run_seconds(experiment.mal_run)
        result = collect(experiment, seconds, LABELERS, experiment.arms())
        # The page shows the table of this file.
        write_json(experiment.output / "result.json", result, indent=1)
        page = write_page(experiment, LABELERS)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one ended", file=sys.stderr)
        return 130
    except (StageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say(experiment_table(result))
    say(f"overlays: {page}")
    if args.record:
        say(f"recorded in {record(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
