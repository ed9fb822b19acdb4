"""LVIS AP on hand-made cases: categories that were not checked in an image do not count."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator
from detectron2.evaluation.lvis_evaluation import LVISEvaluator as FromModule
from detectron2.structures import Boxes, Instances

lvis = pytest.importorskip("lvis")

SIZE = 100
BOX = (10, 10, 50, 50)
METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
# id -> frequency; images 1 and 2 have an object of category 1, image 1 one of category 3.
CATEGORIES = {1: "f", 2: "c", 3: "r"}


def _truth(annotations=True, negative=(), not_exhaustive=()):
    x0, y0, x1, y1 = BOX
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    objects = [(1, 1), (2, 1), (1, 3)] if annotations else []
    return {
        "images": [
            {
                "id": image_id,
                "width": SIZE,
                "height": SIZE,
                "neg_category_ids": list(negative),
                "not_exhaustive_category_ids": list(not_exhaustive),
            }
            for image_id in (1, 2)
        ],
        "categories": [
            {"id": c, "name": f"c{c}", "synonyms": [f"c{c}"], "frequency": frequency}
            for c, frequency in CATEGORIES.items()
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "segmentation": [polygon],
            }
            for number, (image_id, category) in enumerate(objects, start=1)
        ],
    }


@pytest.fixture
def make(tmp_path):
    """Makes an evaluator on _truth(...)."""
    name = "lite_lvis_evaluation"

    def do(truth=None, metadata=None, **kwargs):
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(_truth() if truth is None else truth))
        MetadataCatalog.pop(name, None)
        MetadataCatalog.get(name).set(json_file=str(path), **(metadata or {}))
        return LVISEvaluator(name, **kwargs)

    yield do
    MetadataCatalog.pop(name, None)


def _instances(rows, masks=True):
    """Rows of (class index, score[, box])."""
    out = Instances((SIZE, SIZE))
    boxes = [row[2] if len(row) > 2 else BOX for row in rows]
    out.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    out.scores = torch.tensor([row[1] for row in rows], dtype=torch.float32)
    out.pred_classes = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    if masks:
        out.pred_masks = torch.zeros((len(rows), SIZE, SIZE), dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(out.pred_masks, boxes):
            mask[y0:y1, x0:x1] = True
    return out


def _evaluate(evaluator, first, second=(), masks=True):
    evaluator.reset()
    for image_id, rows in ((1, first), (2, second)):
        instances = _instances(rows, masks)
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


PERFECT = [(0, 0.9), (2, 0.8)], [(0, 0.7)]


def test_perfect_predictions(make):
    results = _evaluate(make(), *PERFECT)
    assert list(results) == ["bbox", "segm"]
    for scores in results.values():
        assert list(scores) == METRICS
        assert [scores[m] for m in ("AP", "AP50", "AP75", "APm", "APr", "APf")] == pytest.approx(
            [100] * 6
        )
        # -1 of the LVIS API, in percent: there is no ground truth of that kind.
        assert [scores[m] for m in ("APs", "APl", "APc")] == [-100] * 3


# (lists of the images, AP of class 1 when a class 1 and a class 2 box are wrongly predicted)
FEDERATED = [
    # category 2 was not looked for: predictions of it do not count
    ({}, {"APf": 100, "APc": -100}),
    # it is known to be absent, but no object of it is anywhere: no AP, nothing lost
    ({"negative": [2]}, {"APf": 100, "APc": -100}),
    # category 3 is known to be absent from image 2: the wrong box there comes first, and costs
    ({"negative": [3]}, {"APr": 50}),
    # category 3 may have unmarked objects: the wrong box is neither right nor wrong
    ({"negative": [3], "not_exhaustive": [3]}, {"APr": 100}),
]


@pytest.mark.parametrize(("lists", "expected"), FEDERATED)
def test_only_checked_categories_count(make, lists, expected):
    evaluator = make(_truth(**lists), tasks=("bbox",))
    wrong = (60, 60, 90, 90)
    results = _evaluate(
        evaluator,
        [(0, 0.9), (2, 0.5), (1, 0.9, wrong)],
        [(0, 0.9), (2, 0.95, wrong), (1, 0.9, wrong)],
    )
    assert {m: results["bbox"][m] for m in expected} == pytest.approx(expected, abs=0.6)


def test_limit_of_detections(make):
    rows = [(1, 0.99), (0, 0.9), (2, 0.8)]
    assert _evaluate(make(max_dets_per_image=3), rows, [(0, 0.7)])["bbox"]["AP"] == 100
    assert _evaluate(make(max_dets_per_image=2), rows, [(0, 0.7)])["bbox"]["APr"] == 0


def test_classes_by_map(make):
    mapping = {3: 0, 1: 1}
    evaluator = make(metadata={"thing_dataset_id_to_contiguous_id": mapping})
    assert _evaluate(evaluator, [(1, 0.9), (0, 0.8)], [(1, 0.7)])["segm"]["AP"] == 100
    with pytest.raises(AssertionError, match=r"class 2.*NUM_CLASSES"):
        _evaluate(evaluator, [(2, 0.9)])


def test_tasks(make):
    assert list(_evaluate(make(tasks=("segm",)), *PERFECT)) == ["segm"]
    assert list(_evaluate(make(), *PERFECT, masks=False)) == ["bbox"]
    with pytest.raises(ValueError, match="keypoints"):
        make(tasks=("keypoints",))


def test_files(make, tmp_path):
    out = tmp_path / "out"
    _evaluate(make(output_dir=str(out)), *PERFECT)
    rows = json.loads((out / "lvis_instances_results.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(1, 1), (1, 3), (2, 1)]
    assert rows[0]["bbox"] == [10, 10, 40, 40]
    saved = torch.load(out / "instances_predictions.pth", weights_only=True)
    assert [image["image_id"] for image in saved] == [1, 2]


def test_nothing_predicted(make, caplog):
    assert make().evaluate() == {}
    assert "no predictions" in caplog.text
    assert all(math.isnan(v) for v in _evaluate(make(), [])["bbox"].values())


def test_set_without_annotations_is_only_written(make, tmp_path):
    evaluator = make(_truth(annotations=False), output_dir=str(tmp_path / "out"))
    assert _evaluate(evaluator, *PERFECT) == {}
    assert (tmp_path / "out" / "lvis_instances_results.json").is_file()


def test_numpy_is_left_alone(make):
    before = lvis.eval.np
    _evaluate(make(), *PERFECT)
    assert lvis.eval.np is before is np
    assert not hasattr(np, "float")


def test_missing_package(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "lvis", None)
    with pytest.raises(ImportError, match="pip install lvis"):
        make()


def test_dataset_without_file():
    with pytest.raises(AttributeError, match="json_file"):
        LVISEvaluator("lite_lvis_unknown")
    MetadataCatalog.pop("lite_lvis_unknown", None)
    assert FromModule is LVISEvaluator
