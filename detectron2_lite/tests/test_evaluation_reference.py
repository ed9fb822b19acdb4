"""COCO and LVIS AP on real annotations, against the numbers that upstream Detectron2 gave.

The predictions are the ground truth, disturbed. Upstream (with its pure-Python COCO evaluation, and
numpy.float restored for LVIS) was given the same predictions.
"""

import json
import os
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, LVISEvaluator
from detectron2.structures import Boxes, Instances

SIX = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# (evaluator, file below $MASKSMITH_DATA, metrics, what upstream gave)
REFERENCE = {
    "coco": (
        COCOEvaluator,
        "coco_dev/annotations/instances_val.json",
        SIX,
        {
            "bbox": (36.90347306, 62.46795933, 38.90042045, 39.7821226, 38.19020371, 41.80222812),
            "segm": (42.72346668, 55.04141633, 45.23205281, 29.7195632, 48.81255766, 67.39705442),
        },
    ),
    "lvis": (
        LVISEvaluator,
        "lvis_dev/annotations/lvis_v0.5_val_subset.json",
        (*SIX, "APr", "APc", "APf"),
        {
            "bbox": (
                *(41.98234524, 69.22824434, 44.44767544, 45.22443962, 41.83402445, 43.25064173),
                *(70.0, 44.0692038, 41.47900596),
            ),
            "segm": (
                *(44.14990959, 59.40990756, 45.72840766, 34.62083459, 50.88322173, 64.3540154),
                *(95.0, 49.76742987, 42.9963816),
            ),
        },
    ),
}


@pytest.fixture(scope="module")
def data_dir():
    """Folder of the small real data sets; skips where it is not there, fails where it must be."""
    value = os.environ.get("MASKSMITH_DATA", "")
    if value and Path(value).is_dir():
        return Path(value)
    if os.environ.get("MASKSMITH_REQUIRE_DATA"):
        pytest.fail(f"MASKSMITH_DATA is {value!r}, but this run requires the data")
    pytest.skip("MASKSMITH_DATA is not set")


def _rle(segmentation, height, width):
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def _disturbed(content):
    """(image id, Instances): moved boxes and masks, missing and doubled objects, wrong classes."""
    random = np.random.RandomState(0)
    ids = sorted(category["id"] for category in content["categories"])
    for image in content["images"]:
        height, width = image["height"], image["width"]
        boxes, masks, classes = [], [], []
        for annotation in content["annotations"]:
            if annotation["image_id"] != image["id"]:
                continue
            for _ in range(random.choice([0, 1, 1, 1, 2])):
                x, y, w, h = annotation["bbox"]
                noise = 0.08 * random.randn(4) * (w, h, w, h)
                boxes.append(np.add((x, y, x + w, y + h), noise))
                mask = mask_util.decode(_rle(annotation["segmentation"], height, width))
                masks.append(np.roll(mask, random.randint(-4, 5), axis=1))
                wrong = random.rand() < 0.1
                right = ids.index(annotation["category_id"])
                classes.append(random.choice(len(ids)) if wrong else right)
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(torch.tensor(np.reshape(boxes, (-1, 4)), dtype=torch.float32))
        instances.scores = torch.tensor(random.rand(len(boxes)), dtype=torch.float32)
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        instances.pred_masks = torch.from_numpy(np.reshape(masks, (-1, height, width))).bool()
        yield image["id"], instances


@pytest.mark.parametrize("kind", REFERENCE)
def test_equal_to_upstream(kind, data_dir):
    evaluator_class, file, metrics, expected = REFERENCE[kind]
    if kind == "lvis":
        pytest.importorskip("lvis")
    content = json.loads((data_dir / file).read_text())
    name = f"lite_reference_{kind}"
    ids = sorted(category["id"] for category in content["categories"])
    MetadataCatalog.get(name).set(
        json_file=str(data_dir / file),
        thing_dataset_id_to_contiguous_id={category: i for i, category in enumerate(ids)},
    )
    evaluator = evaluator_class(name)
    for image_id, instances in _disturbed(content):
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    results = evaluator.evaluate()
    MetadataCatalog.remove(name)
    assert list(results) == list(expected)
    for task, values in expected.items():
        found = tuple(results[task][metric] for metric in metrics)
        assert found == pytest.approx(values, abs=1e-6), task
