"""The inference loop, COCO AP against hand-made cases and pycocotools, printing."""

import contextlib
import io
import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2 import evaluation
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    flatten_results_dict,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

HEIGHT, WIDTH = 120, 160
# per image: (category index, XYXY box)
OBJECTS = {4: [(0, (10, 10, 60, 50)), (1, (70, 20, 150, 110))], 9: [(0, (5, 60, 25, 80))], 11: []}


def _polygon(box):
    x0, y0, x1, y1 = box
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def _mask(box):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    return mask


def _compressed(box):
    rle = mask_util.encode(_mask(box))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def _uncompressed(box):
    flat = _mask(box).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], edges, [flat.size]])
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(bounds).tolist()}


KINDS = {"polygon": _polygon, "rle": _compressed, "uncompressed": _uncompressed, "none": None}


def _write(path, segmentation, minimal=False):
    annotations = []
    for image_id, objects in OBJECTS.items():
        for category, box in objects:
            x0, y0, x1, y1 = box
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": 10 * (category + 1),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
            if not minimal:
                annotation.update(area=(x1 - x0) * (y1 - y0), iscrowd=0)
            if segmentation is not None:
                annotation["segmentation"] = segmentation(box)
            annotations.append(annotation)
    images = [{"id": i, "file_name": f"{i}", "height": HEIGHT, "width": WIDTH} for i in OBJECTS]
    categories = [{"id": 10 * (i + 1), "name": n} for i, n in enumerate(["cat", "dog", "eel"])]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


@pytest.fixture
def register(tmp_path):
    """Registers the data set of OBJECTS with a kind of segmentation; forgets it afterwards."""
    used = []

    def do(kind="polygon", **kwargs):
        name = f"lite_eval_{kind}_{len(used)}"
        path = tmp_path / f"{name}.json"
        _write(path, KINDS[kind], **kwargs)
        register_coco_instances(name, {}, str(path), str(tmp_path))
        DatasetCatalog.get(name)  # fills the metadata
        used.append(name)
        return name

    yield do
    for name in used:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _instances(objects, scores=None, masks=True, shift=0):
    out = Instances((HEIGHT, WIDTH))
    boxes = [tuple(v + shift for v in box) for _, box in objects]
    out.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    out.scores = torch.tensor(scores or [0.9] * len(objects))
    out.pred_classes = torch.tensor([c for c, _ in objects], dtype=torch.int64)
    if masks:
        stack = [_mask(box) for box in boxes]
        out.pred_masks = torch.from_numpy(
            np.stack(stack) if stack else np.zeros((0, HEIGHT, WIDTH))
        ).bool()
    return out


def _evaluate(evaluator, predictions):
    evaluator.reset()
    for image_id, instances in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def _perfect(**kwargs):
    return {image_id: _instances(objects, **kwargs) for image_id, objects in OBJECTS.items()}


@pytest.mark.parametrize("kind", ["polygon", "rle", "uncompressed"])
def test_perfect_predictions(kind, register, tmp_path):
    evaluator = COCOEvaluator(register(kind), output_dir=str(tmp_path / "out"))
    results = _evaluate(evaluator, _perfect())
    assert list(results) == ["bbox", "segm"]
    for scores in results.values():
        assert list(scores)[:6] == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
        assert scores["AP"] == pytest.approx(100)
        found = [scores[key] for key in ("APs", "APm", "AP-cat", "AP-dog")]
        assert found == pytest.approx([100] * 4)
        assert math.isnan(scores["AP-eel"])  # the category has no ground truth
    rows = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert {row["category_id"] for row in rows} == {10, 20}  # ids of the file
    assert rows[0]["bbox"] == [10, 10, 50, 40]
    assert mask_util.area(rows[0]["segmentation"]) == 2000
    dump = torch.load(tmp_path / "out" / "instances_predictions.pth", weights_only=True)
    assert {entry["image_id"] for entry in dump} == set(OBJECTS)


def test_files_without_area_and_iscrowd(register):
    results = _evaluate(COCOEvaluator(register("rle", minimal=True)), _perfect())
    assert [results["segm"][key] for key in ("AP", "APm")] == pytest.approx([100, 100])
    boxes_only = _evaluate(COCOEvaluator(register("none", minimal=True)), _perfect(masks=False))
    assert list(boxes_only) == ["bbox"]
    assert boxes_only["bbox"]["APs"] == pytest.approx(100)


def test_equals_pycocotools(register):
    name = register("polygon")
    rng = np.random.default_rng(0)
    predictions = {}
    for image_id, objects in OBJECTS.items():
        noisy = []
        for category, box in objects * 4:
            moved = np.array(box) + rng.integers(-6, 7, 4)
            moved = np.clip(moved, 0, [WIDTH, HEIGHT] * 2)
            noisy.append((category if rng.random() < 0.8 else 2, tuple(map(int, moved))))
        predictions[image_id] = _instances(noisy, scores=rng.random(len(noisy)).tolist())
    results = _evaluate(COCOEvaluator(name), predictions)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(MetadataCatalog.get(name).json_file)
        rows = [r for i, p in predictions.items() for r in instances_to_coco_json(p, i)]
        for row in rows:
            row["category_id"] = 10 * (row["category_id"] + 1)
        for task in ("bbox", "segm"):
            given = [{k: v for k, v in r.items() if task != "segm" or k != "bbox"} for r in rows]
            run = COCOeval(truth, truth.loadRes(given), task)
            run.evaluate()
            run.accumulate()
            run.summarize()
            expected = [s * 100 if s >= 0 else math.nan for s in run.stats[:6]]
            found = list(results[task].values())[:6]
            assert found == pytest.approx(expected, nan_ok=True), task
            assert 0 < found[0] < 100


def test_limit_of_detections(register):
    name = register("polygon")
    predictions = _perfect()
    # Nine wrong boxes of higher scores come before each right one.
    for image_id, objects in OBJECTS.items():
        wrong = [(c, (0, 0, 5, 5)) for c, _ in objects for _ in range(9)]
        scores = [0.95] * len(wrong) + [0.9] * len(objects)
        predictions[image_id] = _instances(wrong + objects, scores)
    few = _evaluate(COCOEvaluator(name, max_dets_per_image=(1, 5, 9)), predictions)
    # COCO counts at 10 in any case, and AP is that at the largest number.
    ten = _evaluate(COCOEvaluator(name, max_dets_per_image=9), predictions)
    many = _evaluate(COCOEvaluator(name, max_dets_per_image=(1, 10, 100)), predictions)
    assert few["bbox"]["AP"] == few["bbox"]["AP50"] == 0
    assert ten["bbox"]["AP"] == many["bbox"]["AP"] > 5


def test_chosen_images_only(register):
    evaluator = COCOEvaluator(register(), ("bbox",))
    predictions = _perfect()
    predictions[9] = _instances([])  # misses the only object of image 9
    assert _evaluate(evaluator, predictions)["bbox"]["AP"] < 100
    assert evaluator.evaluate(img_ids=[4, 11])["bbox"]["AP"] == pytest.approx(100)


def test_no_detections_and_no_input(register, caplog):
    evaluator = COCOEvaluator(register(), ("bbox", "segm"))
    results = _evaluate(evaluator, {i: _instances([]) for i in OBJECTS})
    assert set(results) == {"bbox", "segm"}
    assert all(math.isnan(v) for scores in results.values() for v in scores.values())
    assert _evaluate(evaluator, {}) == {}
    assert "no predictions" in caplog.text


def test_unknown_class_is_refused(register):
    with pytest.raises(AssertionError, match=r"class 7.*0\.\.2"):
        _evaluate(COCOEvaluator(register()), {4: _instances([(7, (1, 1, 9, 9))])})


def test_wrong_tasks(register):
    name = register()
    with pytest.raises((ValueError, AssertionError), match="sem_seg"):
        COCOEvaluator(name, ("sem_seg",))
    with pytest.raises(NotImplementedError, match="keypoints"):
        COCOEvaluator(name, ("keypoints",))


def test_data_without_json_is_converted(tmp_path):
    name = "lite_eval_dicts"
    record = {"file_name": "a", "image_id": 4, "height": HEIGHT, "width": WIDTH}
    record["annotations"] = [
        {
            "bbox": box,
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": category,
            "segmentation": _polygon(box),
        }
        for category, box in OBJECTS[4]
    ]
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).thing_classes = ["cat", "dog"]
    with pytest.raises(ValueError, match="output_dir"):
        COCOEvaluator(name)
    results = _evaluate(COCOEvaluator(name, output_dir=str(tmp_path)), {4: _instances(OBJECTS[4])})
    assert results["segm"]["AP"] == pytest.approx(100)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


class _Count(DatasetEvaluator):
    def __init__(self, key):
        self.key = key

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += list(zip(inputs, outputs))

    def evaluate(self):
        return {self.key: len(self.seen)}


class _Model(nn.Module):
    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        return x


def test_inference_restores_the_mode_and_calls_back():
    model, calls = _Model().train(), []
    callbacks = {
        name: lambda name=name: calls.append(name)
        for name in ("start", "before_inference", "after_inference", "end")
    }
    results = inference_on_dataset(model, [[1, 2], [3]], [_Count("a"), _Count("b")], callbacks)
    assert results == {"a": 3, "b": 3}
    assert model.training
    assert calls == ["start", *["before_inference", "after_inference"] * 2, "end"]
    assert inference_on_dataset(model, [[1]], None) == {}
    assert inference_on_dataset(lambda x: x, [[1]] * 8, _Count("a")) == {"a": 8}  # any callable


def test_mode_is_restored_after_an_error():
    model = _Model().train()
    with pytest.raises(KeyError), inference_context(model):
        raise KeyError
    assert model.training


def test_evaluators_may_not_report_one_key_twice():
    both = DatasetEvaluators([_Count("a"), _Count("a")])
    both.reset()
    with pytest.raises(AssertionError, match="'a'"):
        both.evaluate()


def test_csv_lines(caplog):
    caplog.set_level("INFO")
    print_csv_format({"bbox": {"AP": 1.5, "AP50": math.nan, "AP-cat": 3.0}, "x": 2})
    lines = [r.message for r in caplog.records]
    assert lines == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 1.5000,nan",
        "copypaste: x=2",
    ]


def test_flatten():
    assert flatten_results_dict({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {
        "a/b": 1,
        "a/c/d": 2,
        "e": 3,
    }


# (expected results, passes) for bbox AP 38.5
VERIFY = [
    ([], True),
    ([["bbox", "AP", 38.4, 0.2]], True),
    ([["bbox", "AP", 38.0, 0.2]], False),
    ([["segm", "AP", 38.0, 0.2]], False),  # missing
    ([["bbox", "AP75", 1.0, 99.0]], False),  # NaN
]


@pytest.mark.parametrize(("expected", "passes"), VERIFY)
def test_verify_results(expected, passes):
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = expected
    results = {"bbox": {"AP": 38.5, "AP75": math.nan}}
    if passes:
        assert verify_results(cfg, results)
    else:
        with pytest.raises(SystemExit):
            verify_results(cfg, results)


@pytest.mark.parametrize(
    "name",
    [
        "COCOPanopticEvaluator",
        "CityscapesInstanceEvaluator",
        "CityscapesSemSegEvaluator",
        "PascalVOCDetectionEvaluator",
        "RotatedCOCOEvaluator",
    ],
)
def test_upstream_only_evaluators_say_so(name):
    with pytest.raises(NotImplementedError, match=name):
        getattr(evaluation, name)
