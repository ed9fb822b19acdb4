#!/usr/bin/env python3
"""Does a MAL that was trained on boxes of COCO's classes draw objects of other classes as well?

    python benchmarks/boxes_to_masks.py --name coco_dev    # trains the labeler
    python benchmarks/open_set.py --record                 # `make results NAME=open_set`

It labels the boxes of lvis_dev (LVIS v0.5), as do the yardsticks, all through tools/label.py, and
the masks are compared with LVIS's. The labeler is told no class, neither in training nor here.

What counts as seen: a category of LVIS whose name or synonym is one of COCO's 80 classes, one that
is by definition a kind of such a class (a taxi is a car), and one that COCO's annotators put under
it (a monitor under tv). In doubt it is seen. Everything else is unseen, parts of seen objects (a
wheel) included. `SEEN` spells that out for the categories with instances in lvis_dev.
"""

import argparse
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from boxes_to_masks import LABELERS, label_stage
from commands import finish_measurement
from mal_run import require_run
from results import config_facts, data_facts, labeler_facts, measurement
from stages import ROOT, Runner, Stage
from tables import clears_text, iou_cell, labeler_name

from pseudolabel.errors import DataError
from pseudolabel.files import nan_to_null, read_json, write_json
from pseudolabel.mask_iou import TrueMasks, summarize_ious
from pseudolabel.masks import SIZE_BINS

NAME = "open_set"
CONFIG = ROOT / "configs/mal/coco_dev.yaml"
GROUPS = {"all": "all classes", "seen": "seen classes", "unseen": "unseen classes"}
HEADER = ["boxes, labels", "n (S, M, L)", "mIoU", "S < 32²", "M < 96²", "L ≥ 96²"]
# LVIS v0.5 category -> the COCO class that holds it.
SEEN = {
    # The same name, or a synonym of LVIS's or COCO's.
    **{name: name for name in ("airplane", "backpack", "banana", "bicycle", "cat", "chair")},
    **{name: name for name in ("clock", "cow", "cup", "elephant", "fork", "handbag", "horse")},
    **{name: name for name in ("kite", "knife", "pizza", "skateboard", "snowboard", "surfboard")},
    **{name: name for name in ("toothbrush", "truck", "umbrella", "vase")},
    "baby": "person",
    "baseball_bat": "baseball bat",
    "baseball_glove": "baseball glove",
    "bus_(vehicle)": "bus",
    "cellular_telephone": "cell phone",
    "computer_keyboard": "keyboard",
    "dining_table": "dining table",
    "fireplug": "fire hydrant",
    "laptop_computer": "laptop",
    "mouse_(computer_equipment)": "mouse",
    "necktie": "tie",
    "orange_(fruit)": "orange",
    "ski": "skis",
    "sofa": "couch",
    "television_set": "tv",
    "tennis_racket": "tennis racket",
    "traffic_light": "traffic light",
    "train_(railroad_vehicle)": "train",
    # A kind of it.
    "baseball": "sports ball",
    "bull": "cow",
    "cab_(taxi)": "car",
    "canoe": "boat",
    "garbage_truck": "truck",
    "minivan": "car",
    "police_cruiser": "car",
    "tennis_ball": "sports ball",
    # What COCO's annotators put there, or may.
    "coffee_table": "dining table",
    "control": "remote",
    "duffel_bag": "handbag",
    "glass_(drink_container)": "cup",
    "monitor_(computer_equipment) computer_monitor": "tv",
    "pop_(soda)": "bottle",
    "shopping_bag": "handbag",
    "stool": "chair",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    trained = ROOT / "output/coco_dev/mal"
    parser.add_argument("--mal-run", type=Path, default=trained, help="folder of the trained MAL")
    parser.add_argument("--seed", type=int, default=0, help="that it was trained with")
    parser.add_argument("--output", type=Path, default=ROOT / "output/open_set")
    parser.add_argument("--record", action="store_true", help="write docs/results/open_set.json")
    return parser.parse_args(argv)


class OpenSet:
    """Paths and stages.

    Args:
        data: folder that holds coco_dev/ and lvis_dev/.
        mal_run: folder of the MAL trained on the boxes of coco_dev.
        output: everything that is written goes below it.
        seed: of that training.
    """

    def __init__(self, data: Path, mal_run: Path, output: Path, seed: int = 0):
        self.mal_run, self.output, self.seed = mal_run.resolve(), output.resolve(), seed
        self.train = data / "coco_dev/annotations/instances_train.json"
        self.truth = data / "lvis_dev/annotations/lvis_v0.5_val_subset.json"
        self.images = data / "lvis_dev/images"

    def labels(self, labeler: str, split: str = "val") -> Path:
        """The pseudo-label file of a labeler; LVIS has one split here."""
        return self.output / f"labels_{labeler}.json"

    def plan(self) -> list[list[Stage]]:
        """One stage after the other, so that their seconds add up."""
        boxes = self.output / "boxes.json"
        command = ["datasets/strip_masks.py", str(self.truth), str(boxes)]
        strip = Stage("strip", command, [self.truth], [boxes], seconds=2)
        source = (boxes, self.images)
        labelled = [
            label_stage(f"label_{name}", name, source, self.labels(name), self.mal_run)
            for name in LABELERS
        ]
        return [[stage] for stage in (strip, *labelled)]

    def overlap(self) -> set[int]:
        """Ids of images that the labeler was trained on; COCO and LVIS share image ids."""
        trained, tested = ({i["id"] for i in read_json(f)["images"]} for f in self._files())
        return trained & tested

    def result(self, seconds: dict[str, float]) -> dict[str, Any]:
        """The record of the table, all stages done.

        Raises:
            DataError: a label file does not have what it should.
        """
        overlap = self.overlap()
        seen = seen_ids(read_json(self.truth)["categories"])
        truth = TrueMasks(self.truth)
        scores = {name: group_scores(self.labels(name), truth, seen, overlap) for name in LABELERS}
        labelled_by = labeler_facts(self, LABELERS)
        raw = {"scores": scores, "seen": SEEN, "overlap": sorted(overlap)}
        result = measurement(
            NAME,
            _text(truth, seen, overlap),
            HEADER,
            to_rows(scores, labelled_by),
            {**raw, "labelled_by": labelled_by},
        )
        return result | {
            "note": verdict(scores),
            "seeds": [self.seed],
            "data": dict(zip(("COCO train", "LVIS"), map(data_facts, self._files()))),
            "configs": {"mal": config_facts(CONFIG)},
            "seconds": seconds,
        }

    def _files(self) -> tuple[Path, Path]:
        return self.train, self.truth


def seen_ids(categories: list[dict]) -> set[int]:
    """Ids of the categories of LVIS that count as seen.

    Raises:
        DataError: a name of `SEEN` is missing.
    """
    ids = {category["name"]: category["id"] for category in categories}
    missing = sorted(SEEN.keys() - ids.keys())
    if missing:
        problem = f"has no category {', '.join(missing)}"
        raise DataError("LVIS", problem, "use LVIS v0.5; v1 names some differently")
    return {ids[name] for name in SEEN}


def group_scores(
    label_file: Path, truth: TrueMasks, seen: Collection[int], overlap: Collection[int] = ()
) -> dict[str, dict[str, float | None]]:
    """Mask IoU of a label file on all instances, and on those of seen and of unseen classes.

    Args:
        label_file: pseudo-labels of the instances of `truth`.
        truth: human masks.
        seen: ids of categories.
        overlap: ids of images that do not count.

    Returns:
        "all", "seen", "unseen" -> as `summarize_ious`; None is a mean over nothing.

    Raises:
        DataError: an instance has no label.
    """
    labels = {a["id"]: a["segmentation"] for a in read_json(label_file)["annotations"]}
    wanted = [key for key, a in truth.annotations.items() if a["image_id"] not in overlap]
    missing = [key for key in wanted if key not in labels]
    if missing:
        problem = f"{len(missing)} instances of {truth.json_file} have no label"
        raise DataError(label_file, problem, "look for rejects beside it", f"id {missing[0]}")
    rows = [truth.compare(key, labels[key]) for key in wanted]
    parts = {
        "all": rows,
        "seen": [row for row in rows if row[2] in seen],
        "unseen": [row for row in rows if row[2] not in seen],
    }
    return {group: nan_to_null(summarize_ious(part)) for group, part in parts.items()}


def to_rows(scores: dict[str, dict], labelled_by: dict[str, Any]) -> list[list[str]]:
    """The cells: for each group of classes a row per labeler."""
    rows = []
    for group, title in GROUPS.items():
        for name in scores:
            table = scores[name][group]
            sizes = ", ".join(str(table[f"n_{size}"]) for size in SIZE_BINS)
            cells = [iou_cell(table[key]) for key in ("mIoU", *SIZE_BINS)]
            title_of = f"{title}, {labeler_name(name, labelled_by)}"
            rows.append([title_of, f"{table['n']} ({sizes})", *cells])
    return rows


def verdict(scores: dict[str, dict]) -> str:
    """For each group of classes whether MAL is better than every yardstick."""
    sentences = (
        f"{title[0].upper()}{title[1:]}: {clears_text({n: s[group] for n, s in scores.items()})}"
        for group, title in GROUPS.items()
    )
    return " ".join(sentences)


def _text(truth: TrueMasks, seen: Collection[int], overlap: Collection[int]) -> str:
    counted = [a for a in truth.annotations.values() if a["image_id"] not in overlap]
    present = {a["category_id"] for a in counted}
    shared = (
        f"{len(overlap)} images that are among the training images are left out"
        if overlap
        else "none of its images is among the training images"
    )
    return (
        "MAL trained on the boxes of coco_dev labels the boxes of lvis_dev (LVIS v0.5, "
        f"{len(truth.images) - len(overlap)} images; {shared}): IoU with LVIS's masks, mean over "
        f"instances; sizes by box area in px². Of its classes {len(present & set(seen))} are seen, "
        f"since COCO has them, and {len(present - set(seen))} are unseen, by the rule in "
        "`benchmarks/open_set.py`. MAL is class-agnostic: it is told no class, and unseen means "
        "that no box of that kind was in training. Its encoder starts from ImageNet's image "
        "labels, which name some of the unseen classes."
    )


def main(argv: list[str] | None = None) -> int:
    """Runs what is left to do and prints the table. Returns 0; 1 with one clear error line."""
    args = parse_args(argv)
    data = os.environ.get("MASKSMITH_DATA")
    if not data:
        print("error: no data. Remedy: export MASKSMITH_DATA", file=sys.stderr)
        return 1

    def work() -> dict:
        job = OpenSet(Path(data).resolve(), args.mal_run, args.output, args.seed)
        require_run(job.mal_run, CONFIG, job.train, job.seed, ROOT)
        result = job.result(Runner(job.output, job.plan()).run())
        write_json(job.output / "result.json", result, indent=1)
        return result

    return finish_measurement(work, args.record)


if __name__ == "__main__":
    sys.exit(main())
