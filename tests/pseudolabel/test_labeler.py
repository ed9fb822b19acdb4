"""The labelers' shared rules, and the yardsticks on drawn and real images."""

import json

import numpy as np
import pytest
from PIL import Image

from pseudolabel.labeler import FILLED_QUALITY, LABELERS, Labeler, finish_record
from pseudolabel.masks import (
    decode_segmentation,
    encode_rle,
    filled_box_mask,
    mask_iou,
    xywh_to_xyxy,
)
from pseudolabel.yardsticks import Yardstick

NAMES = ["filled_box", "ellipse", "grabcut"]


def decoded(record, height, width):
    return decode_segmentation(record.segmentation, height, width)


def test_model_mask_is_kept():
    patch = np.array([[1, 0, 1], [0, 1, 0]])
    record = finish_record(patch, 2, 4, np.array([4.0, 2.0, 7.0, 5.0]), 9, 8, 0.75, 0.5)
    expected = np.zeros((9, 8), dtype=bool)
    expected[2:4, 4:7] = patch
    assert record.segmentation == encode_rle(expected)
    assert (record.area, record.quality, record.agreement) == (3, 0.75, 0.5)
    assert record.mask_source == "model"


@pytest.mark.parametrize(
    ("box", "full", "source"),
    [
        ((3.0, 3.0, 5.0, 9.0), True, "filled_tiny"),  # two px wide, although the model has a mask
        ((3.0, 3.0, 9.0, 3.0), True, "filled_tiny"),  # no height at all
        ((3.2, 3.2, 3.4, 3.4), False, "filled_tiny"),  # between two pixel centres
        ((3.0, 3.0, 5.01, 9.0), False, "filled_empty"),
        ((-4.0, -4.0, 40.0, 40.0), False, "filled_empty"),  # larger than the image
        ((9.5, 9.5, 14.0, 14.0), False, "filled_empty"),  # mostly outside
    ],
)
def test_stand_ins(box, full, source):
    patch = np.full((2, 2), full)
    record = finish_record(patch, 3, 3, np.array(box), 10, 10, 0.9, 0.9)
    assert record.mask_source == source
    assert (decoded(record, 10, 10) == filled_box_mask(box, 10, 10)).all()
    assert record.area == filled_box_mask(box, 10, 10).sum() >= 1
    assert record.quality == FILLED_QUALITY
    assert record.agreement is None


@pytest.mark.parametrize(
    ("box", "quality", "agreement", "message"),
    [
        ((12.0, 0.0, 15.0, 5.0), 0.5, None, "misses the 10x10 image"),
        ((5.0, 0.0, 1.0, 5.0), 0.5, None, "inverted"),
        ((0.0, 0.0, float("nan"), 5.0), 0.5, None, "misses"),
        ((0.0, 0.0, 5.0, 5.0), 1.1, None, "quality must"),
        ((0.0, 0.0, 5.0, 5.0), float("nan"), None, "quality must"),
        ((0.0, 0.0, 5.0, 5.0), 0.5, -0.1, "agreement must"),
    ],
)
def test_bad_input(box, quality, agreement, message):
    with pytest.raises(ValueError, match=message):
        finish_record(np.ones((1, 1)), 0, 0, np.array(box), 10, 10, quality, agreement)


@pytest.fixture(scope="module")
def disc():
    """Bright speckled disc on dark ground, with its mask and box."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :64] + 0.5
    mask = (x - 30) ** 2 + (y - 22) ** 2 <= 11**2
    image = np.where(mask[..., None], (200, 170, 60), (40, 60, 90)) + rng.integers(
        -12, 13, (48, 64, 3)
    )
    return image.astype(np.uint8), mask, np.array([19.0, 11.0, 41.0, 33.0])


@pytest.mark.parametrize("name", NAMES)
def test_labeler_contract(name, disc):
    image, _, box = disc
    before = image.copy()
    labeler = LABELERS.get(name)()
    assert isinstance(labeler, Labeler)
    assert labeler.name == name
    assert json.loads(json.dumps(labeler.describe()))["name"] == name
    boxes = np.array([box, [0, 0, 64, 48], [5, 5, 6, 30], [-3, -3, 9, 9], [60.5, 40.2, 70, 60]])
    records = labeler.label(image, boxes)
    assert len(records) == len(boxes)
    for record, one in zip(records, boxes):
        mask = decoded(record, 48, 64)
        assert record.area == mask.sum() > 0
        touched = np.zeros_like(mask)
        x0, y0, x1, y1 = np.clip(one, 0, [64, 48, 64, 48])
        touched[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
        assert not (mask & ~touched).any()
    assert records[2].mask_source == "filled_tiny"
    # No record depends on the others, nor on an earlier call.
    assert labeler.label(image, boxes[::-1]) == records[::-1]
    assert labeler.label(image, np.zeros((0, 4))) == []
    assert (image == before).all()


def test_filled_box(disc):
    image, _, box = disc
    (record,) = LABELERS.get("filled_box")().label(image, box[None])
    assert (decoded(record, 48, 64) == filled_box_mask(box, 48, 64)).all()
    assert record.mask_source == "model"


@pytest.mark.parametrize(
    "box", [(19, 11, 41, 33), (2.3, 5.7, 40.9, 17.2), (-6, 4, 20, 30), (7, 7, 10.2, 47)]
)
def test_ellipse_is_exact(box):
    x0, y0, x1, y1 = box
    naive = np.zeros((48, 64), dtype=bool)
    for y in range(48):
        for x in range(64):
            u = (2 * (x + 0.5) - x0 - x1) / (x1 - x0)
            v = (2 * (y + 0.5) - y0 - y1) / (y1 - y0)
            naive[y, x] = u * u + v * v <= 1
    (record,) = LABELERS.get("ellipse")().label(np.zeros((48, 64, 3), np.uint8), [box])
    assert (decoded(record, 48, 64) == naive).all()


def test_grabcut_finds_a_plain_object(disc):
    image, mask, box = disc
    (record,) = LABELERS.get("grabcut")().label(image, box[None])
    assert record.mask_source == "model"
    assert mask_iou(decoded(record, 48, 64), mask) > 0.9


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 64, 48),  # fills the image: no background to learn from, OpenCV refuses
        (1, 1, 4, 4),
    ],
)
def test_grabcut_falls_back(box):
    flat = np.zeros((48, 64, 3), dtype=np.uint8)
    (record,) = LABELERS.get("grabcut")().label(flat, [box])
    assert record.mask_source == "filled_empty"


def test_grabcut_takes_a_collapsed_mask_for_empty(disc):
    image, mask, box = disc
    filled = mask.sum() / (box[2] - box[0]) / (box[3] - box[1])  # what the cut finds, about
    for share, source in ((0.5 * filled, "model"), (1.2 * filled, "filled_empty")):
        (record,) = LABELERS.get("grabcut")(min_fill=share).label(image, box[None])
        assert record.mask_source == source


@pytest.mark.parametrize("options", [{"iterations": 0}, {"context": 1.0}, {"min_fill": 1.0}])
def test_grabcut_options(options):
    with pytest.raises(ValueError, match="grabcut needs"):
        LABELERS.get("grabcut")(**options)


def test_a_mask_outside_the_box_is_the_labelers_own_matter():
    # finish_record does not clip: a labeler may know better than a sloppy box.
    labeler = Yardstick("probe", lambda image, box: (np.ones((8, 8), bool), 0, 0), 0.5)
    (record,) = labeler.label(np.zeros((9, 9, 3), np.uint8), [[2, 2, 6, 6]])
    assert record.area == 64


def test_yardsticks_on_nuclei(data_dir):
    # Human masks: the published figures are .749 (box) and .805 (ellipse) on another sample.
    folder = data_dir / "dsb2018_dev"
    data = json.loads((folder / "annotations" / "instances_val.json").read_text())
    scores = {"filled_box": [], "ellipse": []}
    for info in data["images"]:
        image = np.asarray(Image.open(folder / "images" / info["file_name"]).convert("RGB"))
        size = image.shape[:2]
        records = [a for a in data["annotations"] if a["image_id"] == info["id"]][:12]
        boxes = xywh_to_xyxy([a["bbox"] for a in records])
        for name, values in scores.items():
            for guess, truth in zip(LABELERS.get(name)().label(image, boxes), records):
                mask = decode_segmentation(truth["segmentation"], *size)
                values.append(mask_iou(decoded(guess, *size), mask))
    assert len(scores["ellipse"]) > 300
    assert np.mean(scores["filled_box"]) == pytest.approx(0.749, abs=0.02)
    assert np.mean(scores["ellipse"]) == pytest.approx(0.805, abs=0.02)
