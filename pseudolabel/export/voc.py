"""Pascal VOC: palette PNGs of classes and of objects, one number per pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pseudolabel.errors import DataError
from pseudolabel.export.outlines import segmentation_patch
from pseudolabel.export.source import ExportReport, Labels, place, whole_folder
from pseudolabel.files import write_json

VOID = 255
"""Neither object nor background; crowds are drawn with it."""
MOST = 254
"""Objects per image and classes per file that leave room for background and void."""


def export_voc(labels: Labels, output: str | Path) -> ExportReport:
    """Writes `SegmentationClass/`, `SegmentationObject/`, a list, the classes and `objects.json`.

    A pixel holds one object. The smaller mask lies on top, at equal area the higher id; what it
    covers of the others is lost, and the report names the pixels by instance. Crowds become void
    below all objects.

    Raises:
        DataError: more than 254 classes, or objects in one image.
    """
    report = labels.report(output)
    targets = labels.targets(".png")
    classes = _class_indices(labels)
    objects, listed, void = {}, [], []
    with whole_folder(output) as folder:
        for image in labels.labelled_images(report):
            target = targets[image["id"]]
            rows = list(labels.drawn(labels.by_image[image["id"]], report))
            void += [row["id"] for row in rows if row.get("iscrowd", 0)]
            maps = draw_maps(labels, image["id"], rows, classes, report)
            for kind, pixels in zip(("Class", "Object"), maps):
                _save(place(folder, Path(f"Segmentation{kind}", target)), pixels)
            report.written += len(rows)
            listed.append(target.with_suffix("").as_posix() + "\n")
            things = [row["id"] for row in rows if not row.get("iscrowd", 0)]
            objects[target.as_posix()] = {str(k): key for k, key in enumerate(things, 1)}
        lists = place(folder, "ImageSets/Segmentation/all.txt")
        lists.write_text("".join(listed), encoding="utf-8")
        place(folder, "labelmap.txt").write_text(_labelmap(labels, classes), encoding="utf-8")
        write_json(place(folder, "objects.json"), objects, indent=1)
    if void:
        report.losses.append(f"the classes of {len(void)} crowds, drawn as void ({VOID})")
    if report.hidden:
        total = sum(report.hidden.values())
        report.losses.append(f"{total} px of {len(report.hidden)} overlapped masks")
    report.losses.append("scores and qualities; ids stand in objects.json")
    return report


def draw_maps(
    labels: Labels, image_id: int, rows: list[dict], classes: dict[int, int], report: ExportReport
) -> tuple[np.ndarray, np.ndarray]:
    """Class and object numbers of one image, uint8 (H, W) each; objects count from 1 by id.

    Args:
        rows: annotations of the image, in id order.
        classes: category id to class number.
        report: takes the hidden pixels.

    Raises:
        DataError: more than 254 objects.
    """
    size = labels.sizes[image_id]
    things = [row for row in rows if not row.get("iscrowd", 0)]
    if len(things) > MOST:
        problem = f"has {len(things)} objects, a palette PNG holds {MOST}"
        remedy = "choose another format, or cut the image into tiles"
        raise DataError(labels.path, problem, remedy, f"image {image_id}")
    by_object = np.zeros(size, dtype=np.uint8)
    to_class = np.zeros(256, dtype=np.uint8)
    to_class[VOID] = VOID
    for row in rows:
        if row.get("iscrowd", 0):
            patch, x0, y0 = segmentation_patch(row["segmentation"], *size)
            by_object[y0 : y0 + patch.shape[0], x0 : x0 + patch.shape[1]][patch] = VOID
    drawn = []
    for number, row in enumerate(things, 1):
        patch, x0, y0 = segmentation_patch(row["segmentation"], *size)
        to_class[number] = classes[row["category_id"]]
        drawn.append((-int(patch.sum()), number, patch, x0, y0))
    for _, number, patch, x0, y0 in sorted(drawn, key=lambda item: item[:2]):
        by_object[y0 : y0 + patch.shape[0], x0 : x0 + patch.shape[1]][patch] = number
    visible = np.bincount(by_object.ravel(), minlength=256)
    for area, number, *_ in drawn:
        if hidden := -area - int(visible[number]):
            report.hidden[things[number - 1]["id"]] = hidden
    return to_class[by_object], by_object


def palette() -> list[int]:
    """The 256 colours of VOC, flat: the bits of a number go to red, green, blue in turn, each
    colour filled from its highest bit on.
    """
    colours = []
    for number in range(256):
        for channel in range(3):
            bits = [number >> (3 * k + channel) & 1 for k in range(3)]
            colours.append(sum(bit << (7 - k) for k, bit in enumerate(bits)))
    return colours


def _class_indices(labels: Labels) -> dict[int, int]:
    categories = labels.data["categories"]
    if len(categories) > MOST:
        problem = f"has {len(categories)} categories, a palette PNG holds {MOST}"
        raise DataError(labels.path, problem, "choose another format, or fewer classes")
    return {category["id"]: k for k, category in enumerate(categories, 1)}


def _labelmap(labels: Labels, classes: dict[int, int]) -> str:
    """The lines `name:r,g,b:parts:actions` that CVAT and others read."""
    colours = palette()
    lines = ["# label:color_rgb:parts:actions\n", "background:0,0,0::\n"]
    for category in labels.data["categories"]:
        name, key = category["name"], 3 * classes[category["id"]]
        if ":" in name or not name.isprintable() or name.startswith("#"):
            problem = f"the name {name!r} has a ':', begins with '#' or does not print"
            remedy = "rename the category; the list of classes is a text file"
            raise DataError(labels.path, problem, remedy, f"category {category['id']}")
        lines.append(f"{name}:{','.join(map(str, colours[key : key + 3]))}::\n")
    return "".join(lines)


def _save(path: Path, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    image.putpalette(palette())
    image.save(path, "PNG")
