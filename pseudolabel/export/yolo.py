"""YOLO segmentation: per image a text file, one line `class x1 y1 x2 y2 ...` per instance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from pseudolabel.checks import image_name
from pseudolabel.export.outlines import INSET, Ring, segmentation_patch, segmentation_to_rings
from pseudolabel.export.source import ExportReport, Labels, place, whole_folder

HEADER = (
    "# Put or link the images below images/, and name a list for val.\n"
    "train: images.txt\n"
    "val: images.txt\n"
)


def export_yolo(labels: Labels, output: str | Path) -> ExportReport:
    """Writes `labels/`, `images.txt` and `data.yaml`; classes count from 0 as the file lists them.

    A line holds one polygon. The parts of a mask are joined by lines of no width; a reader that
    fills at pixel centres gets the identical mask, one that paints the line as well adds the
    pixels below the joints, which the report counts. Crowds have no place and are left out.
    """
    report = labels.report(output)
    targets = labels.targets(".txt")
    classes = {c["id"]: k for k, c in enumerate(labels.data["categories"])}
    joined = painted = 0
    with whole_folder(output) as folder:
        listed = []
        for image in labels.labelled_images(report):
            lines = []
            for annotation in labels.drawn(labels.by_image[image["id"]], report):
                if annotation.get("iscrowd", 0):
                    report.left_out.append((f"annotation {annotation['id']}", "is a crowd"))
                    continue
                size = labels.sizes[image["id"]]
                rings = segmentation_to_rings(annotation["segmentation"], *size, INSET)
                ring = join_rings(rings)
                if len(rings) > 1:
                    joined += 1
                    painted += _painted_more(ring, annotation["segmentation"], size)
                lines.append(_line(classes[annotation["category_id"]], ring, size))
            report.written += len(lines)
            place(folder, Path("labels", targets[image["id"]])).write_text(
                "".join(lines), encoding="utf-8"
            )
            listed.append(f"./images/{image_name(image)}\n".replace("\\", "/"))
        place(folder, "images.txt").write_text("".join(listed), encoding="utf-8")
        names = [f"  {classes[c['id']]}: {_quoted(c['name'])}\n" for c in labels.data["categories"]]
        text = HEADER + "names:\n" + "".join(names)
        place(folder, "data.yaml").write_text(text, encoding="utf-8")
    if joined:
        report.losses.append(
            f"{joined} masks of several parts are joined by lines: {painted} px more where a "
            "reader paints the line (OpenCV), none where it fills at pixel centres"
        )
    report.losses.append("the format has no ids, scores and qualities")
    return report


def join_rings(rings: list[Ring]) -> Ring:
    """One ring of several: each is joined where it comes nearest to those before it."""
    joined = list(rings[0])
    for ring in rings[1:]:
        distances, nearest = cKDTree(joined).query(ring)
        k = int(np.argmin(distances))
        at = int(nearest[k])
        joined = joined[: at + 1] + ring[k:] + ring[: k + 1] + joined[at:]
    return joined


def _painted_more(ring: Ring, segmentation: Any, size: tuple[int, int]) -> int:
    """Pixels in which OpenCV's reading of a ring differs from its mask."""
    import cv2

    patch, x0, y0 = segmentation_patch(segmentation, *size)
    canvas = np.zeros(patch.shape, dtype=np.uint8)
    cv2.fillPoly(canvas, [np.array(ring).astype(np.int32) - (x0, y0)], 1)
    return int(np.count_nonzero((canvas != 0) != patch))


def _line(class_index: int, ring: Ring, size: tuple[int, int]) -> str:
    height, width = size
    # An error of INSET would move a line across a pixel centre; this is below a tenth of it.
    digits = max(6, len(str(max(size))) + 2)
    numbers = (f"{x / width:.{digits}f} {y / height:.{digits}f}" for x, y in ring)
    return f"{class_index} {' '.join(numbers)}\n"


def _quoted(name: str) -> str:
    """A YAML text in double quotes."""
    letters = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in name)
    return f'"{"".join(letters)}"'
