"""COCO JSON with polygons: for programs that cannot read run-length codes, and for label tools."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pseudolabel.checks import image_name
from pseudolabel.export.outlines import flatten_ring, segmentation_to_rings
from pseudolabel.export.source import ExportReport, Labels, refuse_existing
from pseudolabel.files import write_json
from pseudolabel.masks import decode_segmentation

STANDARD = {
    "images": ("id", "width", "height", "license", "flickr_url", "coco_url", "date_captured"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"),
    "categories": ("id", "name", "supercategory"),
}
"""The keys of COCO's own format, `file_name` apart."""


def export_polygons(labels: Labels, output: str | Path) -> ExportReport:
    """The labels with polygons for masks; nothing else changes. Exact (`outlines`).

    Crowds keep a run-length code, as in COCO's own files: readers tell them by it.
    """
    refuse_existing(output)
    report = labels.report(output)
    annotations = [
        {**annotation, "segmentation": _outline(annotation, labels)}
        for annotation in labels.drawn(_in_order(labels), report)
    ]
    report.written = len(annotations)
    write_json(output, {**labels.data, "annotations": annotations})
    return report


def export_label_tool(labels: Labels, output: str | Path) -> ExportReport:
    """COCO as label tools import it: its standard keys alone, all others under `attributes`.

    Ids are kept, so that `review` can merge the corrected file back. Values that are no text,
    number or truth value have no place in `attributes`; the report counts them.
    """
    refuse_existing(output)
    report = labels.report(output)
    dropped: Counter[str] = Counter()
    annotations = []
    for annotation in labels.drawn(_in_order(labels), report):
        entry = {key: annotation[key] for key in STANDARD["annotations"] if key in annotation}
        entry["segmentation"] = _outline(annotation, labels)
        entry["iscrowd"] = annotation.get("iscrowd", 0)
        entry["attributes"] = _attributes(annotation, dropped)
        annotations.append(entry)
    report.written = len(annotations)
    for kind in ("images", "categories"):
        dropped.update(_other_keys(kind, labels.data[kind]))
    report.losses += [f"{key} in {n} records" for key, n in sorted(dropped.items())]
    data = {
        "info": labels.data.get("info", {}),
        "licenses": labels.data.get("licenses", []),
        "images": [_image(image) for image in labels.images],
        "annotations": annotations,
        "categories": [_standard("categories", entry) for entry in labels.data["categories"]],
    }
    write_json(output, data)
    return report


def _in_order(labels: Labels) -> list[dict]:
    return sorted(labels.data["annotations"], key=lambda annotation: annotation["id"])


def _outline(annotation: dict, labels: Labels) -> Any:
    size = labels.sizes[annotation["image_id"]]
    if not annotation.get("iscrowd", 0):
        rings = segmentation_to_rings(annotation["segmentation"], *size)
        return [flatten_ring(ring) for ring in rings]
    flat = decode_segmentation(annotation["segmentation"], *size).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return {"size": list(size), "counts": np.diff(edges, prepend=0, append=flat.size).tolist()}


def _attributes(annotation: dict, dropped: Counter[str]) -> dict[str, Any]:
    given = annotation.get("attributes")
    attributes = dict(given) if isinstance(given, dict) else {}
    for key, value in annotation.items():
        if key in STANDARD["annotations"] or (key == "attributes" and value is given):
            continue
        if isinstance(value, str | int | float):
            attributes[key] = value
        else:
            dropped[f"annotations.{key}"] += 1
    return attributes


def _image(image: dict) -> dict[str, Any]:
    return {**_standard("images", image), "file_name": image_name(image)}


def _standard(kind: str, entry: dict) -> dict[str, Any]:
    return {key: entry[key] for key in STANDARD[kind] if key in entry}


def _other_keys(kind: str, entries: list[dict]) -> Counter[str]:
    known = {*STANDARD[kind], "file_name"}
    return Counter(f"{kind}.{key}" for entry in entries for key in entry if key not in known)
