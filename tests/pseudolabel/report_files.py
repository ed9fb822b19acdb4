"""A small label file with everything that a page shows, and markup wherever a file holds text."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from pseudolabel.errors import DataError
from pseudolabel.files import file_hash
from pseudolabel.masks import encode_rle
from pseudolabel.store import output_paths
from tests.tiny import SIDE, write_coco

# Each would run a script or load something if it became markup.
SCRIPT = "<script>document.title='ran'</script>"
LOADS = '"><img src="http://trap.invalid/a" onerror="document.title=1">'
TRAP_FILE = "\"><img src=x onerror=document.title='ran'>.png"


def write_labels(folder: Path) -> Path:
    """`labels.json` with manifest and rejects: annotations 10, 11 of image 1 up to 40, 41 of image
    4 in two classes; quality rises with the id. Annotation 21 is a reject, 41 a crowd.
    `human.json` has the true masks.
    """
    human = write_coco(folder)
    data = json.loads(human.read_text())
    data["categories"][0]["name"] = SCRIPT
    data["images"][0]["file_name"] = TRAP_FILE
    (folder / "1.png").rename(folder / TRAP_FILE)
    human.with_name("human.json").write_text(json.dumps(data))
    path = folder / "labels.json"
    lost = [annotation for annotation in data["annotations"] if annotation["id"] == 21]
    for annotation in lost:
        data["annotations"].remove(annotation)
    for rank, annotation in enumerate(data["annotations"]):
        _draw_ellipse(annotation, crowd=annotation["id"] == 41)
        if annotation["id"] != 41:
            annotation["quality"] = round(0.3 + 0.05 * rank, 4)
    for image in data["images"]:
        image["status"] = "labelled"
    path.write_text(json.dumps(data))
    rejects = [
        {"id": 21, "image_id": 2, "bbox": [500, 500, 4, 4]}
        | {"reason": "box_outside", "detail": "bbox [500, 500, 4, 4] on a 64x64 image"}
        for _ in lost
    ]
    _, rejects_path, manifest_path = output_paths(path)
    rejects_path.write_text("".join(json.dumps(row) + "\n" for row in rejects))
    manifest = {
        "input": "boxes.json",
        "output_sha256": file_hash(path),
        "rejects_sha256": file_hash(rejects_path),
        "annotations_in": len(data["annotations"]) + len(lost),
        "labeler": {"name": "ellipse", "quality": 0.62},
        "note": SCRIPT,
    }
    manifest_path.write_text(json.dumps(manifest))
    return path


def _draw_ellipse(annotation: dict, crowd: bool) -> None:
    """Draws the ellipse inscribed in the box into the annotation, by its equation."""
    x, y, width, height = annotation["bbox"]
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    distance = ((columns - x) / width * 2 - 1) ** 2 + ((rows - y) / height * 2 - 1) ** 2
    mask = distance <= 1
    annotation.update(segmentation=encode_rle(mask), area=int(mask.sum()), iscrowd=int(crowd))
    annotation["mask_source"] = "input" if crowd else "model"


def edit_json(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


class Page(HTMLParser):
    """Tags with attributes and the visible text; fails where tags are not nested soundly."""

    VOID = ("meta", "img", "br", "path", "rect", "circle")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data + " "

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def naive_rank_correlation(a, b):
    """Pearson's correlation of average ranks, from its definition."""

    def ranks(values):
        return [
            sum(other < value for other in values) + (sum(o == value for o in values) + 1) / 2
            for value in values
        ]

    ra, rb = np.array(ranks(list(a))), np.array(ranks(list(b)))
    da, db = ra - ra.mean(), rb - rb.mean()
    return float((da * db).sum() / np.sqrt((da**2).sum() * (db**2).sum()))


def problem_of(call) -> str:
    """The message of the DataError that a call raises."""
    try:
        call()
    except DataError as error:
        return str(error)
    raise AssertionError("no DataError")
