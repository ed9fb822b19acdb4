"""The sweep of thresholds: equal to label jobs at each of them, and the network runs once."""

import json

import numpy as np
import pytest
import torch

import mal.data  # noqa: F401  (registers its pipeline)
from mal.labeler import MALLabeler
from mal.mask_auto_labeler import MaskAutoLabeler
from mal.sweep import threshold_sweep
from pseudolabel.errors import DataError
from pseudolabel.files import read_image
from pseudolabel.mask_iou import TrueMasks
from pseudolabel.masks import SIZE_BINS, size_bin, xywh_to_xyxy
from tests.tiny import tiny_config, write_coco

STEPS = (0.3, 0.45, 0.5, 0.9)


@pytest.fixture
def made(tmp_path):
    """(labeler of random weights with a threshold for each size, JSON with human masks)."""
    json_file = write_coco(tmp_path)
    torch.manual_seed(0)
    model = MaskAutoLabeler(tiny_config("mal/sample", json_file, tmp_path))
    model.predict_options["thresholds"] = (0.45, 0.5, 0.5)
    return MALLabeler(model, {"weights_sha256": "w"}, "estimate"), json_file


def edit(json_file, change):
    data = json.loads(json_file.read_text())
    change(data)
    json_file.write_text(json.dumps(data))


def naive_sweep(labeler, json_file):
    """Rows (area, IoU at each step) by labelling all anew with each threshold."""
    data, truth = json.loads(json_file.read_text()), TrueMasks(json_file)
    before, rows = labeler.predictor.thresholds, {}
    for step in STEPS:
        labeler.predictor.thresholds = (step,) * 3
        for image in data["images"]:
            own = [a for a in data["annotations"] if a["image_id"] == image["id"]]
            boxes = xywh_to_xyxy(np.array([a["bbox"] for a in own], dtype=float))
            pixels = read_image(json_file.parent / image["file_name"])
            for annotation, record in zip(own, labeler.label(pixels, boxes), strict=True):
                iou, area, _ = truth.compare(annotation["id"], record.segmentation)
                rows.setdefault((annotation["id"], area), []).append(iou)
    labeler.predictor.thresholds = before
    return [(area, ious) for (_, area), ious in rows.items()]


def test_equals_labelling_at_each_threshold(made):
    labeler, json_file = made
    edit(json_file, lambda d: d["annotations"][0].update(bbox=[1, 1, 40, 40]))  # of medium size
    edit(json_file, lambda d: d["annotations"][1].update(bbox=[40, 40, 1, 9]))  # filled_tiny
    expected = naive_sweep(labeler, json_file)
    sweep = threshold_sweep(labeler, json_file, json_file.parent, thresholds=STEPS)
    assert sweep["thresholds"] == list(STEPS)
    assert sweep["mIoU"] == pytest.approx(np.mean([ious for _, ious in expected], axis=0))
    assert (sweep["instances"], sweep["images"]) == (8, 4)
    assert list(sweep["by_size"]) == ["small", "medium"]
    for name, part in sweep["by_size"].items():
        rows = [ious for area, ious in expected if size_bin(area) == name]
        assert part["mIoU"] == pytest.approx(np.mean(rows, axis=0))
        assert part["instances"] == len(rows)
        assert part["chosen"] == labeler.predictor.thresholds[SIZE_BINS.index(name)]
    assert sweep["chosen"] is None
    # Something is measured: a mask depends on where it is cut.
    assert len(set(sweep["mIoU"])) > 1


def test_the_network_runs_once_and_the_labeler_is_left_as_it_was(made):
    labeler, json_file = made
    predictor, ran = labeler.predictor, []
    for name, network in predictor.networks.items():
        network.register_forward_hook(lambda *_, name=name: ran.append(name))
    before = (predictor.networks, predictor.thresholds, predictor.measure)
    sweep = threshold_sweep(labeler, json_file, json_file.parent, limit=3, seed=1)
    assert ran == [labeler.model.label_with] * 3
    assert sweep["images"] == 3
    assert (predictor.networks, predictor.thresholds, predictor.measure) == before
    (json_file.parent / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png"):
        threshold_sweep(labeler, json_file, json_file.parent)
    assert (predictor.networks, predictor.thresholds, predictor.measure) == before


def test_only_boxes_with_a_human_mask_count(made):
    labeler, json_file = made

    def spoil(data):
        del data["annotations"][0]["segmentation"]
        data["annotations"][1]["iscrowd"] = 1
        data["annotations"][2]["bbox"] = [500, 500, 4, 4]

    edit(json_file, spoil)
    sweep = threshold_sweep(labeler, json_file, json_file.parent, thresholds=(0.5,))
    # Nothing is left of image 1.
    assert (sweep["instances"], sweep["images"]) == (5, 3)
    edit(json_file, lambda d: [a.pop("segmentation", None) for a in d["annotations"]])
    edit(json_file, lambda d: d["annotations"][1].update(iscrowd=0))
    with pytest.raises(DataError, match="holds no human mask"):
        threshold_sweep(labeler, json_file, json_file.parent)


def test_a_class_aware_labeler_is_told_the_categories(tmp_path):
    json_file = write_coco(tmp_path)
    edit(json_file, lambda d: d["categories"].append({"id": 99, "name": "unknown to it"}))
    edit(json_file, lambda d: d["annotations"][0].update(category_id=99))
    known = [c["id"] for c in json.loads(json_file.read_text())["categories"] if c["id"] != 99]
    cfg = tiny_config("mal/sample", json_file, tmp_path)
    cfg.MODEL.MAL.DECODER.NUM_CLASSES = len(known)
    torch.manual_seed(0)
    model = MaskAutoLabeler(cfg)
    labeler = MALLabeler(model, {"weights_sha256": "w"}, "estimate", None, known)
    expected = []
    for annotation in json.loads(json_file.read_text())["annotations"][1:]:
        pixels = read_image(tmp_path / f"{annotation['image_id']}.png")
        box = xywh_to_xyxy(np.array([annotation["bbox"]], dtype=float))
        mask = labeler.label(pixels, box, [annotation["category_id"]])[0].segmentation
        expected.append(TrueMasks(json_file).compare(annotation["id"], mask)[0])
    threshold = labeler.predictor.thresholds[0]
    sweep = threshold_sweep(labeler, json_file, tmp_path, thresholds=(threshold,))
    assert sweep["instances"] == 7
    assert sweep["mIoU"] == pytest.approx([np.mean(expected)])
    labeler.category_ids = (12345,)
    with pytest.raises(DataError, match="of a category that the labeler knows"):
        threshold_sweep(labeler, json_file, tmp_path)
