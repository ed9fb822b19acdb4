"""Write the COCO JSON of a split of Cityscapes (fine annotations), with a mask per instance.

    python datasets/convert_cityscapes.py ROOT --split train --output instances_train.json

ROOT holds `leftImg8bit/<split>/<city>/*_leftImg8bit.png` and, beside it, `gtFine/<split>/<city>/`
with `*_gtFine_instanceIds.png` and `*_gtFine_labelIds.png`. A `file_name` is relative to
`leftImg8bit`. Category ids are Cityscapes' label ids.

What a pixel of `instanceIds` says, by the format's documentation:

- class * 1000 + n: instance n of a class that has instances. One annotation each.
- 24 ... 33, such a class alone: a group whose members were not told apart. One annotation per class
  and image, with `iscrowd` 1: training leaves it out, and COCO's evaluation ignores detections that
  lie in it.
- any other number below 34: stuff, or void. It belongs to no annotation.

A COCO JSON has no void. Cityscapes' own evaluation forgives a detection on a void pixel; the COCO
evaluation of this file counts it as false. So its AP is not the AP of the Cityscapes server.

Images without any object stay in the list. By default the eight classes of Cityscapes' instance
task are kept; `--classes` also knows caravan and trailer. An object of a class left out is no
annotation, not even a crowd.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from pseudolabel.conversion import (
    CocoWriter,
    check_same_size,
    image_size,
    read_label_map,
    regions,
    run_conversion,
)
from pseudolabel.errors import DataError

THINGS = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    29: "caravan",
    30: "trailer",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
NOT_IN_TASK = ("caravan", "trailer")
TASK_CLASSES = tuple(name for name in THINGS.values() if name not in NOT_IN_TASK)
LABELS = 34
"""Label ids are 0 ... 33."""
FOLDERS = ("leftImg8bit", "gtFine")
"""Of the data set; nothing is written into them."""
IMAGE_ENDING = "_leftImg8bit.png"


def convert(root: Path, split: str, classes: tuple[str, ...] = TASK_CLASSES) -> CocoWriter:
    """Converts one split.

    Args:
        root: holds `leftImg8bit` and `gtFine`.
        split: "train" or "val".
        classes: names out of `THINGS`.

    Raises:
        DataError: an image without its label maps or the other way round, sizes that differ,
            unknown numbers, or two label maps that contradict each other.
    """
    kept = {key: name for key, name in THINGS.items() if name in classes}
    writer = CocoWriter(f"Cityscapes gtFine {split}", kept)
    for image, instance_file, label_file in _triples(root, split):
        size = image_size(image)
        label_map = _read_labels(instance_file, label_file, size)
        writer.add_image(image.relative_to(root / "leftImg8bit").as_posix(), size)
        for region in regions(label_map):
            is_group = region.value < LABELS
            category = region.value if is_group else region.value // 1000
            if category in kept:
                writer.add_region(region, category, iscrowd=is_group)
    return writer


def _triples(root: Path, split: str) -> list[tuple[Path, Path, Path]]:
    """Image, instanceIds and labelIds of every image of the split, sorted by path."""
    image_folder, truth_folder = root / "leftImg8bit" / split, root / "gtFine" / split
    for folder in (image_folder, truth_folder):
        if not folder.is_dir():
            raise DataError(folder, "no such folder", "give the folder that holds both trees")
    triples = []
    for image in sorted(image_folder.glob(f"*/*{IMAGE_ENDING}")):
        stem = image.name.removesuffix(IMAGE_ENDING)
        truth = truth_folder / image.parent.name / f"{stem}_gtFine_"
        triples.append((image, Path(f"{truth}instanceIds.png"), Path(f"{truth}labelIds.png")))
    if not triples:
        problem = f"holds no <city>/*{IMAGE_ENDING}"
        raise DataError(image_folder, problem, "unpack leftImg8bit_trainvaltest.zip here")
    expected = {instance_file for _, instance_file, _ in triples}
    for found in sorted(truth_folder.glob("*/*_gtFine_instanceIds.png")):
        if found not in expected:
            raise DataError(found, "has no image in leftImg8bit", "restore the image")
    return triples


def _read_labels(instance_file: Path, label_file: Path, size: tuple[int, int]) -> np.ndarray:
    """The instanceIds map (H, W), once it is known to be sound and to agree with labelIds."""
    instances, labels = read_label_map(instance_file), read_label_map(label_file)
    check_same_size(instances, instance_file, size)
    check_same_size(labels, label_file, size)
    for value in np.flatnonzero(np.bincount(instances.ravel())):
        if value >= LABELS and value // 1000 not in THINGS:
            raise DataError(
                instance_file,
                f"holds {value}, which is neither a label (0 to {LABELS - 1}) nor class * 1000 + n "
                "of a class with instances (24 to 33)",
                "take the file from gtFine_trainvaltest.zip, not a copy with train ids",
            )
    implied = np.where(instances < LABELS, instances, instances // 1000)
    wrong = np.argwhere(implied != labels)
    if len(wrong):
        y, x = wrong[0]
        raise DataError(
            label_file,
            f"says {labels[y, x]} at row {y}, column {x}, where {instance_file.name} says "
            f"{instances[y, x]}; {len(wrong)} pixels contradict each other",
            "take both files from the same release",
        )
    return instances


def main() -> int:
    """Writes the JSON. Returns 0; 1 with one clear error line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="the folder of leftImg8bit and gtFine")
    parser.add_argument("--split", choices=("train", "val"), required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--classes", nargs="+", choices=THINGS.values(), default=TASK_CLASSES)
    return run_conversion(lambda o: convert(o.root, o.split, tuple(o.classes)), parser, FOLDERS)


if __name__ == "__main__":
    sys.exit(main())
