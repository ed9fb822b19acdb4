"""A small label file with everything that a page shows, and markup wherever a file holds text."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from pseudolabel.errors import DataError
from pseudolabel.label_job import label_images
from pseudolabel.store import BoxFile, write_label_file
from pseudolabel.yardsticks import ellipse
from tests.tiny import write_coco

# Each would run a script or load something if it became markup.
SCRIPT = "<script>document.title='ran'</script>"
LOADS = '"><img src="http://trap.invalid/a" onerror="document.title=1">'
TRAP_FILE = "\"><img src=x onerror=document.title='ran'>.png"


def write_labels(folder: Path, images: int = 4, traps: bool = True, reject: bool = True) -> Path:
    """`labels.json` with manifest and rejects: annotations 10, 11 of image 1 up to 40, 41 of image
    4 in two classes; quality rises with the id. The box of annotation 21 is rejected, 41 is a
    crowd. `human.json` has the true masks.
    """
    human = write_coco(folder, images)
    data = json.loads(human.read_text())
    if traps:
        data["categories"][0]["name"] = SCRIPT
        data["images"][0]["file_name"] = TRAP_FILE
        (folder / "1.png").rename(folder / TRAP_FILE)
    human.with_name("human.json").write_text(json.dumps(data))
    by_id = {annotation["id"]: annotation for annotation in data["annotations"]}
    if reject:
        by_id[21]["bbox"] = [500, 500, 4, 4]
    if 41 in by_id:
        by_id[41]["iscrowd"] = 1
    boxes = folder / "boxes.json"
    boxes.write_text(json.dumps(data))
    source = BoxFile(boxes)
    result = label_images(source, folder, ellipse())
    for rank, annotation in enumerate(sorted(result.annotations, key=lambda a: a["id"])):
        if not annotation["iscrowd"]:
            annotation["quality"] = round(0.3 + 0.05 * rank, 4)
    path = folder / "labels.json"
    extra = {"note": SCRIPT} if traps else {}
    write_label_file(path, source, result, ellipse().describe(), extra)
    return path


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
