"""Weights in a JSON, through registration, loader and mapper, to the losses of this model."""

import json
import math

import pytest
from detectron2.utils.events import EventStorage

from pseudolabel.loader import seed_everything
from pseudolabel.pipeline import build_pipeline
from tests.projects.mask2former.tiny_model import tiny_model, tiny_run
from tests.tiny import write_coco

# Image id -> its weight, and those of its two annotations; None: the file has no such key.
STATED = {1: (0.5, 2.0, 0.0), 2: (None, None, 3), 3: (0, None, None), 4: (1, 0.25, 1e-3)}


def weighted_json(folder, stated=STATED):
    """`write_coco` with weights; annotations of image i are 10 i and 10 i + 1."""
    path = write_coco(folder)
    data = json.loads(path.read_text())
    for image in data["images"]:
        if stated[image["id"]][0] is not None:
            image["weight"] = stated[image["id"]][0]
    for annotation in data["annotations"]:
        value = stated[annotation["image_id"]][1 + annotation["id"] % 10]
        if value is not None:
            annotation["weight"] = value
    path.write_text(json.dumps(data))
    return path


def batches(cfg, count):
    stream = iter(build_pipeline(cfg).train_loader(cfg))
    return [sample for _ in range(count) for sample in next(stream)]


@pytest.mark.parametrize("file_format", ["coco", "lvis"])
def test_every_weight_of_the_file_is_on_its_instance_and_its_image(file_format, tmp_path):
    cfg = tiny_run(weighted_json(tmp_path), tmp_path / "out", file_format=file_format)
    samples = {sample["image_id"]: sample for sample in batches(cfg, 2)}
    assert samples.keys() == STATED.keys()
    for image, (whole, *parts) in STATED.items():
        assert samples[image].get("weight") == whole
        instances = samples[image]["instances"]
        order = instances.gt_classes.tolist()  # annotation 10 i is of class 0
        expected = [1.0 if parts[index] is None else parts[index] for index in order]
        assert instances.gt_weights.tolist() == pytest.approx(expected)


def test_the_losses_are_those_of_the_stated_weights(tmp_path):
    """Twice the weights are twice the mask losses; weights of zero take them away."""
    found = {}
    for factor in (1, 2, 0):
        folder = tmp_path / str(factor)
        folder.mkdir()
        path = weighted_json(folder, dict.fromkeys(STATED, (None, factor, factor)))
        seed_everything(0)
        cfg = tiny_run(path, folder / "out")
        batch = batches(cfg, 1)
        model = tiny_model(["MODEL.ROI_HEADS.NUM_CLASSES", 2]).train()
        seed_everything(0)
        with EventStorage():
            losses = model(batch)
        found[factor] = {name: value.item() for name, value in losses.items()}
    masks = [name for name in found[1] if "cross" not in name]
    assert len(masks) == 6
    for name in masks:
        assert math.isclose(found[2][name], 2 * found[1][name], rel_tol=1e-5)
        assert found[0][name] == 0
