"""One HTML page to look at: masks of all labelers over val images, and the worst boxes."""

import html
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tables import LABELER_NAMES, experiment_table

from pseudolabel.files import atomic_write, guarded_join, read_image, read_json
from pseudolabel.mask_iou import TrueMasks
from pseudolabel.masks import decode_segmentation
from pseudolabel.report.drawing import Panel, window_around

IMAGES = 12
WORST = 16
PANEL_SIDE = 480
CROP_SIDE = 160
# Detections below this score are not drawn; Mask R-CNN lists many that nobody would keep.
MIN_SCORE = 0.5
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #1c1c1c; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .8rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
ul { color: #555; font-size: .87rem; padding-left: 1.2rem; overflow-wrap: anywhere; }
.row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(230px, 480px); gap: 6px;
       margin: .3rem 0 1.2rem; overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: 1.2rem; }
.tile { width: 660px; max-width: 100%; }
.tile .row { grid-auto-columns: 160px; margin: .2rem 0; align-items: end; }
figure { margin: 0; } img { max-width: 100%; display: block; background: #eee; }
.row img { width: 100%; height: auto; } .tile img { width: auto; }
figcaption { font-size: .82rem; color: #444; }
p.name { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
p.name span { font-weight: 400; color: #555; }
"""


class ValMasks:
    """Truth, labels and detections of the val split, with the IoU of every label.

    Args:
        experiment: `boxes_to_masks.Experiment` with the label files of `labelers`.
        labelers: "mal" and at least one yardstick.

    Attributes:
        jobs: image entry and annotations (no crowds) of each image that MAL has labelled.
        ious: {labeler: {annotation id: IoU}}.
        yardstick: the labeler that is no model with the best mean IoU.
        detections: {image id: results of Mask R-CNN on MAL labels, best first}, None without run.
    """

    def __init__(self, experiment: Any, labelers: Iterable[str]):
        truth_file, self.root = experiment.splits["val"]
        self.truth = TrueMasks(truth_file)
        data = read_json(truth_file)
        self.categories = {c["id"]: c["name"] for c in data["categories"]}
        self.labels = {
            name: {a["id"]: a for a in read_json(experiment.labels(name, "val"))["annotations"]}
            for name in labelers
        }
        self.ious = {
            name: {
                key: self.truth.compare(key, labels[key]["segmentation"])[0]
                for key in sorted(self.truth.annotations.keys() & labels.keys())
            }
            for name, labels in self.labels.items()
        }
        yardsticks = [name for name in self.labels if name != "mal"]
        self.yardstick = max(yardsticks, key=self.mean_iou)
        grouped = defaultdict(list)
        for key in self.ious["mal"]:
            annotation = self.truth.annotations[key]
            grouped[annotation["image_id"]].append(annotation)
        images = sorted(data["images"], key=lambda image: image["id"])
        self.jobs = [(image, grouped[image["id"]]) for image in images if image["id"] in grouped]
        self.detections = _detections(experiment.output / "rcnn_mal/inference")

    def mean_iou(self, labeler: str, keys: Iterable[int] | None = None) -> float:
        """Mean IoU over all, or over some annotations; NaN over none."""
        ious = self.ious[labeler]
        chosen = [ious[key] for key in (ious if keys is None else keys) if key in ious]
        return float(np.mean(chosen)) if chosen else float("nan")

    def image(self, entry: dict) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return read_image(guarded_join(self.root, entry["file_name"], "val"))

    def masks(self, source: str, entry: dict, annotations: list[dict]) -> list[tuple]:
        """(colour index, mask (H, W)) of "truth" or a labeler; boxes without label are left out."""
        found = self.truth.annotations if source == "truth" else self.labels[source]
        return [
            (
                i,
                decode_segmentation(
                    found[a["id"]]["segmentation"], entry["height"], entry["width"]
                ),
            )
            for i, a in enumerate(annotations)
            if a["id"] in found
        ]


def _detections(folder: Path) -> dict[int, list[dict]] | None:
    files = sorted(folder.rglob("coco_instances_results.json"))
    if not files:
        return None
    grouped = defaultdict(list)
    for row in sorted(json.loads(files[-1].read_text()), key=lambda row: -row["score"]):
        if row["score"] >= MIN_SCORE and row.get("segmentation"):
            grouped[row["image_id"]].append(row)
    return grouped


def write_page(experiment: Any, labelers: Iterable[str]) -> Path:
    """Writes `overlays.html` into the experiment's folder: one file, no external asset.

    Args:
        experiment: `boxes_to_masks.Experiment`, all stages done.
        labelers: whose label files of val exist; "mal" and at least one yardstick.

    Raises:
        DataError: a file is missing or malformed.
    """
    val = ValMasks(experiment, labelers)
    result = experiment.output / "result.json"
    parts = [
        f"<h1>Masks from boxes: {html.escape(experiment.name)}</h1>",
        # Without the section's heading, which repeats the page's.
        _markdown_to_html(experiment_table(read_json(result)).partition("\n\n")[2])
        if result.exists()
        else "",
        *_image_rows(val),
        *_worst_tiles(val),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(experiment.name)}: masks from boxes</title>"
        f"<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )
    path = experiment.output / "overlays.html"
    with atomic_write(path) as file:
        file.write(page)
    return path


def _image_rows(val: ValMasks) -> list[str]:
    count = min(IMAGES, len(val.jobs))
    chosen = np.unique(np.linspace(0, len(val.jobs) - 1, count).round().astype(int)).tolist()
    rows = [
        "<h2>Images of val</h2>",
        f"<p>{count} of {len(val.jobs)} images, evenly spaced by id, not picked. One colour is one "
        "instance; the left four panels share colours.</p>",
    ]
    return rows + [_image_row(val, *val.jobs[index]) for index in chosen]


def _image_row(val: ValMasks, entry: dict, annotations: list[dict]) -> str:
    image = val.image(entry)
    keys = [a["id"] for a in annotations]
    boxes = list(enumerate(a["bbox"] for a in annotations))
    best = _labeler(val.yardstick)
    panels = [
        _figure(Panel(image, PANEL_SIDE).boxes(boxes), f"the input: {len(boxes)} boxes"),
        _figure(_masked(val, "truth", image, entry, annotations), "human masks"),
        _figure(
            _masked(val, "mal", image, entry, annotations),
            f"MAL, mean IoU {_iou(val.mean_iou('mal', keys))}",
        ),
        _figure(
            _masked(val, val.yardstick, image, entry, annotations),
            f"best yardstick: {best}, mean IoU {_iou(val.mean_iou(val.yardstick, keys))}",
        ),
    ]
    if val.detections is not None:
        rows = val.detections.get(entry["id"], [])
        size = entry["height"], entry["width"]
        masks = ((i, decode_segmentation(r["segmentation"], *size)) for i, r in enumerate(rows))
        caption = f"Mask R-CNN on MAL labels: {len(rows)} detections, score ≥ {MIN_SCORE}"
        panels.append(_figure(Panel(image, PANEL_SIDE).masks(masks), caption))
    name = html.escape(str(entry["file_name"]))
    size = f"{entry['width']} × {entry['height']} px"
    return f'<p class="name">{name} <span>{size}</span></p><div class="row">{"".join(panels)}</div>'


def _masked(val: ValMasks, source: str, image: np.ndarray, entry: dict, annotations: list) -> Panel:
    return Panel(image, PANEL_SIDE).masks(val.masks(source, entry, annotations))


def _worst_tiles(val: ValMasks) -> list[str]:
    worst = sorted(val.ious["mal"], key=lambda key: (val.ious["mal"][key], key))[:WORST]
    entries = {entry["id"]: entry for entry, _ in val.jobs}
    tiles = [_worst_tile(val, entries, key) for key in worst]
    intro = f"<h2>The {len(worst)} boxes of val where MAL's mask is worst</h2>"
    return [intro, f'<div class="tiles">{"".join(tiles)}</div>']


def _worst_tile(val: ValMasks, entries: dict[int, dict], key: int) -> str:
    annotation = val.truth.annotations[key]
    entry = entries[annotation["image_id"]]
    image = val.image(entry)
    window = window_around(annotation["bbox"], entry["height"], entry["width"])
    figures = [_figure(Panel(image, CROP_SIDE, window).boxes([(0, annotation["bbox"])]), "box")]
    for source in ("truth", "mal", val.yardstick):
        panel = Panel(image, CROP_SIDE, window).masks(val.masks(source, entry, [annotation]))
        iou = val.ious.get(source, {}).get(key)
        name = "human mask" if source == "truth" else _labeler(source)
        caption = name if iou is None else f"{name}, IoU {_iou(iou)}"
        figures.append(_figure(panel, caption))
    width, height = annotation["bbox"][2:]
    facts = [
        f"box {width:.0f} × {height:.0f} px",
        str(val.categories.get(annotation["category_id"], "unknown class")),
        str(entry["file_name"]),
    ]
    source = val.labels["mal"][key].get("mask_source", "model")
    facts += [f"mask source: {source}"] if source != "model" else []
    text = html.escape(", ".join(facts))
    title = f'<p class="name">annotation {key} <span>{text}</span></p>'
    return f'<div class="tile">{title}<div class="row">{"".join(figures)}</div></div>'


def _figure(panel: Panel, caption: str) -> str:
    """A panel with its caption (plain text)."""
    width, height = panel.size
    text = html.escape(caption)
    return (
        f'<figure><img src="{panel.uri()}" width="{width}" height="{height}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _labeler(name: str) -> str:
    return {"mal": "MAL", **LABELER_NAMES}.get(name, name)


def _iou(value: float) -> str:
    return f"{value:.3f}" if value == value else "–"


def _markdown_to_html(text: str) -> str:
    """The Markdown that `tables` writes (headings, tables, lists, paragraphs, `code`) as HTML."""
    blocks = [block for block in text.split("\n\n") if block.strip()]
    return "\n".join(_block(block.strip().split("\n")) for block in blocks)


def _block(lines: list[str]) -> str:
    first = lines[0]
    if first.startswith("## "):
        return f"<h2>{_inline(first[3:])}</h2>"
    if first.startswith("|"):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        head, body = _cells(rows[0], "th"), "".join(_cells(row, "td") for row in rows[2:])
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    if first.startswith("- "):
        return "<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def _cells(row: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in row) + "</tr>"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
