"""The generated sample is frozen: its pixels, its JSON, and how hard it is for the yardsticks."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pseudolabel.yardsticks  # noqa: F401  (registers the yardsticks)
from pseudolabel.labeler import LABELERS
from pseudolabel.masks import decode_segmentation, mask_iou, size_bin, xywh_to_xyxy

DATASETS = Path(__file__).parents[1] / "datasets"

PIXELS = {
    "train": "ba0ea519d9595a7ad5f569d1d75d586e6cfa2990a2624a2253bc6eb5e4ff732c",
    "val": "498ecc6bd5dc826c1ae65e54482c02088cdc1b05422f8abed38a7b300b930c15",
}
ANNOTATIONS = {
    "train": "3b2b71d259371da2f35e75f86520bfde1df74a3520ab21c4d3b199487c1e7ab8",
    "val": "01fa80ae4bb93fd353a13f6f74edab840bf020cee34521ef02005d433ac94220",
}


@pytest.fixture(scope="module")
def script():
    # The scripts are plain siblings, not a package: `datasets` is another library's name.
    sys.path.insert(0, str(DATASETS))
    try:
        spec = importlib.util.spec_from_file_location("make_sample", DATASETS / "make_sample.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["make_sample"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(DATASETS))
        sys.modules.pop("make_sample", None)


@pytest.fixture(scope="module")
def sample(script, tmp_path_factory):
    """Folder with the default sample."""
    folder = tmp_path_factory.mktemp("sample")
    script.make_sample(folder)
    return folder


def load(folder, split):
    """COCO dictionary and the images (H, W, 3) by image id."""
    data = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
    pixels = {
        i["id"]: np.asarray(Image.open(folder / "images" / i["file_name"])) for i in data["images"]
    }
    return data, pixels


def hashes(data, pixels):
    digest = hashlib.sha256()
    for image_id in sorted(pixels):
        digest.update(pixels[image_id].tobytes())
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    return digest.hexdigest(), hashlib.sha256(canonical).hexdigest()


@pytest.mark.parametrize("split", ["train", "val"])
def test_frozen(sample, split):
    # A change here makes every published result on the sample void.
    assert hashes(*load(sample, split)) == (PIXELS[split], ANNOTATIONS[split])


@pytest.mark.parametrize(("split", "count"), [("train", 96), ("val", 24)])
def test_layout(sample, split, count):
    data, pixels = load(sample, split)
    assert len(data["images"]) == count
    assert {p.shape for p in pixels.values()} == {(192, 192, 3)}
    assert data["info"]["seed"] == 0
    assert "CC0" in data["info"]["description"]
    assert len(data["categories"]) == 6
    ids = [a["id"] for a in data["annotations"]]
    assert len(set(ids)) == len(ids)
    per_image = dict.fromkeys(pixels, 0)
    for record in data["annotations"]:
        per_image[record["image_id"]] += 1
    assert min(per_image.values()) >= 5
    assert max(per_image.values()) <= 10


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_are_exact_and_populate_all_bins(sample, split):
    data, pixels = load(sample, split)
    taken = {i: np.zeros((192, 192), dtype=bool) for i in pixels}
    bins = {"small": 0, "medium": 0, "large": 0}
    for record in data["annotations"]:
        mask = decode_segmentation(record["segmentation"], 192, 192)
        rows, cols = np.nonzero(mask)
        x, y, w, h = record["bbox"]
        assert (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1) == (x, y, x + w, y + h)
        assert record["area"] == mask.sum() >= 40
        assert not (mask & taken[record["image_id"]]).any()  # a pixel belongs to one object
        taken[record["image_id"]] |= mask
        bins[size_bin(record["area"])] += 1
    total = len(data["annotations"])
    assert 0.35 < bins["small"] / total < 0.55
    assert 0.3 < bins["medium"] / total < 0.5
    assert 0.1 < bins["large"] / total < 0.2
    by_class = np.bincount([a["category_id"] for a in data["annotations"]], minlength=7)[1:]
    assert by_class.min() >= 0.08 * total


def test_yardsticks_neither_fail_nor_suffice(sample):
    data, pixels = load(sample, "val")
    scores = {"filled_box": [], "ellipse": [], "grabcut": []}
    for image_id, image in pixels.items():
        records = [a for a in data["annotations"] if a["image_id"] == image_id]
        truth = [decode_segmentation(a["segmentation"], 192, 192) for a in records]
        boxes = xywh_to_xyxy([a["bbox"] for a in records])
        for name, values in scores.items():
            for guess, mask in zip(LABELERS.get(name)().label(image, boxes), truth):
                values.append(mask_iou(decode_segmentation(guess.segmentation, 192, 192), mask))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    assert means["filled_box"] < 0.6
    assert 0.5 <= means["ellipse"] <= 0.8
    assert 0.5 <= means["grabcut"] <= 0.8


def test_another_seed_is_another_sample(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "SCENES", {"val": 1})
    for seed in (0, 1):
        script.make_sample(tmp_path / str(seed), seed)
    first, second = (load(tmp_path / str(seed), "val") for seed in (0, 1))
    assert all(a != b for a, b in zip(hashes(*first), hashes(*second)))
