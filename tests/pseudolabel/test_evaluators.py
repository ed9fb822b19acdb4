"""From a model's `Instances` to the numbers of each data set's kind, with either Detectron2."""

import json
import logging
import math
import uuid

import detectron2.evaluation
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from pseudolabel import evaluators
from pseudolabel.ap_backends import numpy_float_alias
from pseudolabel.errors import DataError
from pseudolabel.evaluators import InstanceEvaluator, result_rows
from pseudolabel.masks import decode_segmentation
from pseudolabel.trainer import Trainer, check_evaluation
from tests.pseudolabel.made_up import detect
from tests.tiny import SIDE, tiny_config, write_coco

ONE_PIXEL = {"height": 1, "width": 1}


def register(json_file, **metadata):
    """A data set of any category ids, under a new name."""
    name = f"evaluated_{uuid.uuid4().hex}"
    data = json.loads(json_file.read_text())
    ids = sorted(category["id"] for category in data["categories"])
    names = {category["id"]: category["name"] for category in data["categories"]}
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        thing_classes=[names[i] for i in ids],
        thing_dataset_id_to_contiguous_id={i: index for index, i in enumerate(ids)},
        **metadata,
    )
    return name


def as_instances(rows, image, ids, dtype=torch.bool):
    """Results of one image as a model gives them."""
    instances = Instances((image["height"], image["width"]))
    boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.scores = torch.tensor([float(row["score"]) for row in rows])
    instances.pred_classes = torch.tensor([ids.index(row["category_id"]) for row in rows]).long()
    size = image["height"], image["width"]
    masks = [decode_segmentation(row["segmentation"], *size) for row in rows]
    instances.pred_masks = torch.tensor(np.array(masks).reshape(-1, *size)).to(dtype)
    return instances


def feed(evaluator, data, rows, dtype=torch.bool):
    """One image a batch, all images of the data set."""
    ids = sorted(category["id"] for category in data["categories"])
    evaluator.reset()
    for image in data["images"]:
        mine = [row for row in rows if row["image_id"] == image["id"]]
        instances = as_instances(mine, image, ids, dtype)
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
    return evaluator


@pytest.fixture
def coco(tmp_path):
    """(data set name, content of its JSON)."""
    path = write_coco(tmp_path)
    return register(path, evaluator_type="coco"), json.loads(path.read_text())


def perfect(data):
    return [{**a, "score": 0.5} for a in data["annotations"]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_the_truth_scores_100_and_is_written_with_the_files_ids(coco, dtype, tmp_path):
    name, data = coco
    evaluator = InstanceEvaluator(name, output_dir=tmp_path / "out")
    results = feed(evaluator, data, perfect(data), dtype).evaluate()
    assert list(results) == ["bbox", "segm"]
    for task in results.values():
        assert list(task) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-left", "AP-right"]
        assert task["AP"] == task["AP-left"] == pytest.approx(100)
        assert math.isnan(task["APm"])
    rows = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    for row, annotation in zip(rows, data["annotations"], strict=True):
        assert row.keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
        for key in ("image_id", "category_id", "bbox", "segmentation"):
            assert row[key] == annotation[key]


def test_a_model_without_detections_scores_0(coco, caplog):
    name, data = coco
    with caplog.at_level(logging.WARNING):
        results = feed(InstanceEvaluator(name), data, []).evaluate()
    assert results["bbox"]["AP"] == results["segm"]["AP"] == results["segm"]["AP-left"] == 0
    assert not caplog.records


def test_images_not_seen_count_as_missed_and_are_named(coco, caplog):
    name, data = coco
    evaluator = InstanceEvaluator(name)
    feed(evaluator, {**data, "images": data["images"][:2]}, perfect(data))
    with caplog.at_level(logging.WARNING):
        assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(50, abs=1)
    assert "2 of 4 images" in caplog.text


def test_ranks_are_joined_and_an_image_seen_twice_counts_once(coco, monkeypatch):
    name, data = coco
    evaluator = feed(InstanceEvaluator(name), data, perfect(data))
    halves = {1: [1, 2, 3], 2: [3, 4]}
    parts = [{k: evaluator._rows[k] for k in keys} for keys in halves.values()]
    monkeypatch.setattr(evaluators.comm, "gather", lambda rows: parts)
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)
    monkeypatch.setattr(evaluators.comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() is None


def test_boxes_alone_need_no_masks(coco):
    name, data = coco
    for annotation in data["annotations"]:
        del annotation["segmentation"], annotation["area"], annotation["iscrowd"]
    with open(MetadataCatalog.get(name).json_file, "w") as file:
        json.dump(data, file)
    with pytest.raises(DataError, match="8 of 8 annotations have no segmentation"):
        InstanceEvaluator(name)
    evaluator = InstanceEvaluator(name, tasks=("bbox",))
    for image in data["images"]:
        boxes = [a["bbox"] for a in data["annotations"] if a["image_id"] == image["id"]]
        instances = Instances((SIDE, SIDE), scores=torch.ones(2), pred_classes=torch.arange(2))
        boxes = torch.tensor(boxes).float()
        instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert list(results) == ["bbox"]
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_a_test_set_without_annotations_gets_predictions_and_no_numbers(tmp_path, caplog):
    """By the whole of the tool: loaded, checked, predicted, written."""
    path = write_coco(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    opts = ["TEST.DETECTIONS_PER_IMAGE", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    cfg = tiny_config("mask_rcnn/sample", path, tmp_path / "out", opts)
    check_evaluation(cfg)
    with caplog.at_level(logging.INFO):
        assert Trainer.test(cfg, Trainer.build_model(cfg)) == {}
    assert "no annotations to evaluate against" in caplog.text
    (file,) = (tmp_path / "out/inference").glob("*/coco_instances_results.json")
    assert len(json.loads(file.read_text())) == 8


def test_the_logged_table_has_the_classes_with_instances(coco, caplog):
    name, data = coco
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] == 3]
    data["categories"] += [{"id": i, "name": f"unseen{i}"} for i in range(20, 50)]
    file = MetadataCatalog.get(name).json_file
    with open(file, "w") as stream:
        json.dump(data, stream)
    evaluator = InstanceEvaluator(name, tasks=("bbox",))
    with caplog.at_level(logging.INFO):
        results = feed(evaluator, data, perfect(data)).evaluate()
    table = caplog.records[-1].getMessage().splitlines()
    assert table[2:] == ["left 100.00", "(31 classes without instances are left out)"]
    assert math.isnan(results["bbox"]["AP-unseen20"])


@pytest.mark.parametrize(
    ("values", "dtype", "inside"),
    [
        # the four pixels of the first row; from .5 on a pixel is inside
        ([0.3, 0.6, 0.5, 0.4999], torch.float32, [False, True, True, False]),
        ([0.3, 0.6, 0.5, 1.0], torch.float16, [False, True, True, True]),
        ([0, 1, 1, 0], torch.bool, [False, True, True, False]),
    ],
)
def test_masks_of_floats_are_cut_at_a_half(values, dtype, inside):
    masks = torch.zeros(1, 3, 4, dtype=dtype)
    masks[0, 0] = torch.tensor(values).to(dtype)
    instances = Instances((3, 4), scores=torch.ones(1), pred_classes=torch.zeros(1).long())
    instances.set("pred_boxes", Boxes(torch.tensor([[0.0, 0, 4, 1]])))
    instances.set("pred_masks", masks)
    (row,) = result_rows(instances, 7, masks=True)
    found = decode_segmentation(row["segmentation"], 3, 4)
    assert found[0].tolist() == inside
    assert not found[1:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_classes": torch.tensor([0, 2])}, "predicts class 2, the data set has 2 classes"),
        ({"scores": torch.tensor([0.5, math.nan])}, "not finite"),
        ({"pred_boxes": Boxes(torch.full((2, 4), math.inf))}, "not finite"),
    ],
)
def test_impossible_predictions_are_refused(change, message, coco):
    name, data = coco
    ids = [3, 8]
    instances = as_instances(perfect(data)[:2], data["images"][0], ids)
    for field, value in change.items():
        instances.set(field, value)
    with pytest.raises(ValueError, match=f"image 1: .*{message}"):
        InstanceEvaluator(name).process([{"image_id": 1}], [{"instances": instances}])


def test_numbers_are_those_of_detectron2s_own_evaluator(data_dir):
    file = data_dir / "coco_dev/annotations/instances_val.json"
    name = register(file, evaluator_type="coco")
    data = json.loads(file.read_text())
    rows = detect(data, seed=1, missed=0.5, copies=1)
    ours = feed(InstanceEvaluator(name), data, rows).evaluate()
    theirs = detectron2.evaluation.COCOEvaluator(
        name, tasks=("bbox", "segm"), distributed=False, use_fast_impl=False
    )
    for task, numbers in feed(theirs, data, rows).evaluate().items():
        assert ours[task].keys() == numbers.keys()
        for metric, value in numbers.items():
            assert ours[task][metric] == pytest.approx(value, abs=1e-4, nan_ok=True), metric


@pytest.mark.skipif(
    "LVISEvaluator" not in dir(detectron2.evaluation), reason="this build has no LVISEvaluator"
)
def test_stock_lvis_evaluation_works_inside_the_alias_and_gives_our_numbers(data_dir, tmp_path):
    file = data_dir / "lvis_dev/annotations/lvis_v0.5_val_subset.json"
    name = register(file, evaluator_type="lvis")
    data = json.loads(file.read_text())
    rows = detect(data, seed=1, missed=0.5, copies=1)
    ours = feed(InstanceEvaluator(name), data, rows).evaluate()
    theirs = detectron2.evaluation.LVISEvaluator(
        name, tasks=("segm",), distributed=False, output_dir=str(tmp_path)
    )
    with numpy_float_alias():
        numbers = feed(theirs, data, rows).evaluate()["segm"]
    for metric in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"):
        assert ours["segm"][metric] == pytest.approx(numbers[metric], abs=1e-4), metric


# Config to evaluator


def test_the_trainer_evaluates_lvis_where_the_metadata_says_so(tmp_path):
    path = write_coco(tmp_path)
    cfg = tiny_config("mask_rcnn/sample", path, tmp_path / "out")
    assert Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0]).truth.style == "coco"
    name = register(path, evaluator_type="lvis")
    cfg.TEST.EVALUATOR.PER_CLASS = False
    evaluator = Trainer.build_evaluator(cfg, name)
    results = feed(evaluator, json.loads(path.read_text()), []).evaluate()
    assert list(results["segm"])[6:] == ["APr", "APc", "APf"]


def test_a_cut_of_the_model_below_the_limit_is_told(tmp_path, caplog):
    opts = ["TEST.EVALUATOR.MAX_DETS", 200]
    cfg = tiny_config("mask_rcnn/sample", write_coco(tmp_path), tmp_path / "out", opts)
    with caplog.at_level(logging.WARNING):
        Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])
    assert "200 detections per image would count, but the model gives 100" in caplog.text
    caplog.clear()
    cfg.TEST.DETECTIONS_PER_IMAGE = 200
    Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])
    assert not caplog.records


@pytest.mark.parametrize(
    ("opts", "masks", "message"),
    [
        # what a Mask R-CNN run would have found out at its end
        ([], False, "8 of 8 annotations have no segmentation"),
        (["TEST.EVALUATOR.BACKEND", "pycoco"], True, "unknown backend 'pycoco'"),
        (["TEST.EVALUATOR.MAX_DETS", -1], True, "TEST.EVALUATOR.MAX_DETS: is -1"),
        # fine
        (["MODEL.MASK_ON", False], False, None),
        (["DATASETS.TEST", "()"], False, None),
        ([], True, None),
    ],
)
def test_evaluation_is_checked_before_a_run(opts, masks, message, tmp_path):
    cfg = tiny_config("mask_rcnn/sample", write_coco(tmp_path, masks=masks), tmp_path / "o", opts)
    if message is None:
        check_evaluation(cfg)
        return
    with pytest.raises(DataError, match=message):
        check_evaluation(cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # as of the label files
        (lambda d: d.update(annotations=None), r"has no list 'annotations'.*an empty list where"),
        (lambda d: d["annotations"][1].update(id=10), r"\(annotation 10\): id 10 occurs twice"),
        (lambda d: d["annotations"][0].update(bbox=[math.nan, 1, 2, 3]), "bbox is"),
        (lambda d: d["annotations"][0].update(image_id=77), "unknown image_id 77"),
        (
            lambda d: d["annotations"][0].update(segmentation={"size": [9, 9], "counts": [81]}),
            r"\(annotation 10\): run-length code is for a \[9, 9\] image",
        ),
        (lambda d: d["images"][0].update(file_name="../1.png"), "file_name '../1.png' is not"),
        # as of the images
        (lambda d: d["images"][1].update(file_name="no.png"), r"\(image 2\): 'no.png' does not"),
        (lambda d: d["images"][1].update(file_name="void.png"), "'void.png' has 0 bytes"),
        (lambda d: d["images"][1].update(file_name="deep.png"), "'deep.png' has mode I;16"),
        (lambda d: d["images"][1].update(file_name="instances.json"), "cannot be read"),
        (
            lambda d: (d["annotations"].clear(), d["images"][2].update(width=60, height=50)),
            r"\(image 3\): '3.png' is 64x64, the JSON says 60x50",
        ),
        # and what can be evaluated
        (lambda d: d["images"][1].update(status="rejected", file_name="no.png"), None),
        (lambda d: d["annotations"][0].update(bbox=[-9, -9, 3, 3]), None),
        (lambda d: d["images"].append({"id": 9, "file_name": "1x1.png", **ONE_PIXEL}), None),
    ],
)
def test_defects_of_a_test_set_are_found_before_a_run(change, message, tmp_path):
    path = write_coco(tmp_path)
    (tmp_path / "void.png").touch()
    Image.new("RGB", (1, 1)).save(tmp_path / "1x1.png")
    Image.fromarray(np.full((SIDE, SIDE), 999, dtype=np.uint16)).save(tmp_path / "deep.png")
    cfg = tiny_config("mask_rcnn/sample", path, tmp_path / "out")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    if message is None:
        check_evaluation(cfg)
        return
    with pytest.raises(DataError, match=message):
        check_evaluation(cfg)


def test_data_sets_of_other_kinds_are_refused(tmp_path):
    path = write_coco(tmp_path)
    with pytest.raises(DataError, match="evaluator type 'sem_seg'"):
        InstanceEvaluator(register(path, evaluator_type="sem_seg"))
