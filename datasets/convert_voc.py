"""Write the COCO JSON of a segmentation split of PASCAL VOC, with a mask per object.

    python datasets/convert_voc.py VOCdevkit/VOC2012 --split train --output instances_train.json

The folder holds `ImageSets/Segmentation/<split>.txt`, `JPEGImages`, `SegmentationObject` (a number
per object) and `SegmentationClass` (a number per class), as VOC2007 and VOC2012 are unpacked. A
`file_name` is relative to `JPEGImages`; category ids are VOC's, 1 to 20.

A pixel that is 255 in either map is void, the border that VOC draws around each object: it belongs
to no mask. On all others the maps have to agree: an object has one class throughout, and a pixel of
a class belongs to an object. A COCO JSON has no void, so a detection is measured against the object
without its border.

Boxes are those of the masks, not those of the `Annotations` XML, which are drawn around the border
as well; its flags (difficult, truncated) are not carried over. No annotation is a crowd.
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
    read_image_list,
    read_label_map,
    regions,
    run_conversion,
)
from pseudolabel.errors import DataError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
VOID = 255
FOLDERS = ("ImageSets", "JPEGImages", "SegmentationObject", "SegmentationClass", "Annotations")
"""Of the data set; nothing is written into them."""


def convert(root: Path, split: str) -> CocoWriter:
    """Converts one list of `ImageSets/Segmentation`.

    Args:
        root: the folder of one year, such as `VOCdevkit/VOC2012`.
        split: name of the list: train, val, trainval, ...

    Raises:
        DataError: a file is missing, sizes differ, or the two maps contradict each other.
    """
    writer = CocoWriter(f"{root.name} segmentation {split}", dict(enumerate(CLASSES, start=1)))
    for name in read_image_list(root / "ImageSets" / "Segmentation" / f"{split}.txt"):
        image = root / "JPEGImages" / f"{name}.jpg"
        size = image_size(image)
        objects, classes = _read_maps(root, name, size)
        writer.add_image(f"{name}.jpg", size)
        for region in regions(objects):
            rows, columns = region.patch.shape
            window = classes[region.y0 : region.y0 + rows, region.x0 : region.x0 + columns]
            writer.add_region(region, int(window[region.patch][0]))
    return writer


def _read_maps(root: Path, name: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Object and class numbers (H, W), void as 0 in both, once they are known to agree."""
    object_file = root / "SegmentationObject" / f"{name}.png"
    class_file = root / "SegmentationClass" / f"{name}.png"
    objects, classes = read_label_map(object_file), read_label_map(class_file)
    check_same_size(objects, object_file, size)
    check_same_size(classes, class_file, size)
    unknown = np.setdiff1d(classes, (*range(len(CLASSES) + 1), VOID))
    if len(unknown):
        raise DataError(
            class_file,
            f"holds {unknown[0]}, which is no class (1 to {len(CLASSES)}), background or void",
            "give the original PNG; a copy in grey or in colour has lost the numbers",
        )
    clear = (objects != VOID) & (classes != VOID)
    for number in np.unique(objects[(objects > 0) & (objects != VOID)]):
        _check_one_class(object_file, int(number), classes[clear & (objects == number)])
    ownerless = np.argwhere(clear & (objects == 0) & (classes > 0))
    if len(ownerless):
        y, x = ownerless[0]
        raise DataError(
            object_file,
            f"has no object on {len(ownerless)} pixels of a class, first of "
            f"{CLASSES[classes[y, x] - 1]} at row {y}, column {x}",
            "take both files from the same release",
        )
    return np.where(clear, objects, 0), np.where(clear, classes, 0)


def _check_one_class(object_file: Path, number: int, classes: np.ndarray) -> None:
    """`classes`: what SegmentationClass says on the object's pixels, without void."""
    found, counts = np.unique(classes, return_counts=True)
    if len(found) == 1 and found[0] > 0:
        return
    names = ("background", *CLASSES)
    shares = ", ".join(f"{count} {names[key]}" for key, count in zip(found, counts))
    raise DataError(
        object_file,
        f"the pixels of an object are of {shares or 'void alone'} in SegmentationClass, not of one "
        "class",
        "take both files from the same release, or remove the image from the list",
        f"object {number}",
    )


def main() -> int:
    """Writes the JSON. Returns 0; 1 with one clear error line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="the folder of one year: VOCdevkit/VOC2012")
    parser.add_argument("--split", required=True, help="a list in ImageSets/Segmentation")
    parser.add_argument("--output", type=Path, required=True)
    return run_conversion(lambda options: convert(options.root, options.split), parser, FOLDERS)


if __name__ == "__main__":
    sys.exit(main())
