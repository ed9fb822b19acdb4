"""A small job for tests: images, boxes, labelers, and runs of it in processes that may die."""

import json
import multiprocessing
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from pseudolabel.errors import DataError
from pseudolabel.job.found import FoundInstance
from pseudolabel.job.inputs import JobInput
from pseudolabel.job.options import JobOptions
from pseudolabel.job.run import run_job
from pseudolabel.yardsticks import ellipse

WIDTH, HEIGHT = 40, 30
OUTPUTS = ("labels.json", "labels.rejects.jsonl")


class Counting:
    """The ellipse labeler, with weights to be mistaken about; counts the boxes it labels."""

    name = "ellipse"

    def __init__(self, weights="a" * 64):
        self.weights, self.boxes = weights, 0

    def label(self, image, boxes):
        self.boxes += len(boxes)
        return ellipse().label(image, boxes)

    def describe(self):
        return {"name": self.name, "weights_sha256": self.weights}


class Slow(Counting):
    """Takes its time."""

    def label(self, image, boxes):
        time.sleep(0.05)
        return super().label(image, boxes)


class Blocks:
    """Finds its own boxes: one on each quarter of the image that is bright on average."""

    name = "blocks"
    categories = [{"id": 1, "name": "bright"}]

    def label(self, image, boxes=None):
        found = []
        for y in (0, HEIGHT // 2):
            for x in (0, WIDTH // 2):
                box = (x, y, x + WIDTH // 2, y + HEIGHT // 2)
                mean = float(image[y : y + HEIGHT // 2, x : x + WIDTH // 2].mean())
                if mean > 128:
                    record = ellipse().label(image, np.array([box]))[0]
                    found.append(FoundInstance(box, 1, mean / 255, record))
        return found

    def describe(self):
        return {"name": self.name}


def write_job(folder: Path, images: int = 12, boxes: int = 60, seed: int = 0) -> Path:
    """Images and a boxes JSON in no order: some boxes are bad, one image is missing, one cut off,
    one empty."""
    rng = np.random.default_rng(seed)
    ids = (rng.permutation(images) * 7 + 3).tolist()
    for key in ids:
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{key}.png")
    cut_off = folder / f"{ids[1]}.png"
    cut_off.write_bytes(cut_off.read_bytes()[:200])
    (folder / f"{ids[2]}.png").unlink()
    entries = [{"id": k, "file_name": f"{k}.png", "width": WIDTH, "height": HEIGHT} for k in ids]
    annotations = []
    for number, key in enumerate(rng.permutation(boxes * 3)[:boxes].tolist()):
        x, y = int(rng.integers(0, WIDTH - 6)), int(rng.integers(0, HEIGHT - 6))
        box = [x, y, *rng.integers(1, 20, 2).tolist()]
        bad = {5: [90, 1, 4, 4], 6: [1, 1, 0, 4]}.get(number)
        annotations.append(
            {
                "id": key + 1,
                "image_id": ids[int(rng.integers(1, images))],
                "category_id": 7,
                "bbox": bad or box,
                "iscrowd": int(number % 11 == 0),
            }
        )
    data = {"annotations": annotations, "info": {"year": 2026}, "images": entries}
    data["categories"] = [{"id": 7, "name": "thing"}]
    path = folder / "boxes.json"
    path.write_text(json.dumps(data))
    return path


def label(folder, boxes="boxes.json", labeler=None, images_json=None, build=Counting, **options):
    """Runs the whole job of `write_job` in this process, or in forked ones (`workers`)."""
    labeler = labeler or Counting()
    given = JobInput(
        folder,
        boxes and folder / boxes,
        images_json and folder / images_json,
        tuple(getattr(labeler, "categories", ())),
    )
    settings = {"images": folder, "output": folder / "out/labels.json"}
    settings.update({"shard_boxes": 4, "start_method": "fork"})
    options = JobOptions(**{**settings, **options})
    return run_job(given, labeler, build, options)


def outputs(folder):
    return {name: (folder / "out" / name).read_bytes() for name in OUTPUTS}


def assert_all_accounted_for(folder):
    """Every annotation of the input is in the labels or among the rejects, once."""
    given = Counter(a["id"] for a in json.loads((folder / "boxes.json").read_text())["annotations"])
    labels = json.loads((folder / "out/labels.json").read_text())
    lines = (folder / "out/labels.rejects.jsonl").read_text().splitlines()
    rows = [*labels["annotations"], *map(json.loads, lines)]
    assert Counter(row["id"] for row in rows) == given
    order = [a["id"] for a in labels["annotations"]]
    assert order == sorted(order)


def start(target, *arguments, **options):
    """Forks a process with a group of its own, so that it can be killed with its children."""

    def body():
        os.setsid()
        try:
            target(*arguments, **options)
        except (DataError, OSError) as error:
            print(error, flush=True)  # noqa: T201
            os._exit(3)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process


# A module of someone else, with a labeler that finds its boxes, and factories of none.
FOREIGN = """
import numpy as np
from pseudolabel.job.found import FoundInstance
from pseudolabel.yardsticks import ellipse

class Middle:
    name, categories = "middle", [{"id": 1, "name": "thing"}]

    def label(self, image, boxes=None):
        h, w = image.shape[:2]
        box = (w / 4, h / 4, 3 * w / 4, 3 * h / 4)
        return [FoundInstance(box, 1, 0.5, ellipse().label(image, np.array([box]))[0])]

    def describe(self):
        return {"name": self.name}

class Unready(Middle):
    def describe(self):
        return {"weights": object()}

def thing():
    return 3

def with_options(weights, config_file="x"):
    return Middle()

number = 3
"""
