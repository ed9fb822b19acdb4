"""MAL's samples: which boxes are trained on, and what a crop holds."""

import itertools
import json
import logging
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image

import mal.data
from mal.crops import box_mask, train_window
from mal.data import BoxCropMapper, ImageBoxes, box_records
from mal.mask_auto_labeler import MaskAutoLabeler  # noqa: F401  (registers itself)
from pseudolabel.errors import DataError
from pseudolabel.files import read_image
from pseudolabel.masks import encode_rle
from pseudolabel.trainer import Trainer
from tests.tiny import tiny_config, write_coco


def dataset(*boxes, **annotation):
    """One image with XYWH boxes; ids from 1."""
    annotation = {"category_id": 2, **annotation}
    annotations = [
        {"id": i, "bbox": list(b), "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0, **annotation}
        for i, b in enumerate(boxes, start=1)
    ]
    image = {"file_name": "a.png", "image_id": 1, "height": 100, "width": 100}
    return [{**image, "annotations": annotations}]


@pytest.mark.parametrize(
    ("boxes", "limits", "kept"),
    [
        ([(0, 0, 9, 9), (0, 0, 1, 1)], (0, 1e10), [1, 2]),  # no limit: every box
        ([(0, 0, 32, 64), (0, 0, 32, 65)], (2048, 1e10), [2]),  # strictly above the paper's 2048
        ([(0, 0, 10, 10), (0, 0, 20, 20)], (0, 400), [1]),  # strictly below the maximum
        ([(0, 0, 0, 9), (0, 0, 9, 9), (5, 5, 4, -1)], (0, 1e10), [2]),  # no extent
        ([(100, 0, 9, 9), (0, -9, 9, 9), (0, 0, 9, 9)], (0, 1e10), [3]),  # wholly outside
        ([(1, 1, 9), (1, 1, 9, float("nan")), (0, 0, 9, 9)], (0, 1e10), [3]),  # malformed
        ([(-90, 0, 100, 50), (-80, 0, 100, 50)], (999, 1e10), [2]),  # only the inside counts
    ],
)
def test_boxes_within_the_limits_are_kept(boxes, limits, kept):
    records = box_records(dataset(*boxes), *limits)
    assert [record["annotation_id"] for record in records] == kept


def test_boxes_are_clipped_to_the_image():
    (record,) = box_records(dataset((-10, 20, 30, 150)))
    assert record["box"] == (0, 20, 20, 100)


def test_boxes_of_another_mode_are_understood():
    corners = dataset((10, 20, 30, 50), bbox_mode=BoxMode.XYXY_ABS)
    (record,) = box_records(corners)
    assert record["box"] == (10, 20, 30, 50)


def test_left_out_boxes_are_counted_by_reason(caplog):
    caplog.set_level(logging.INFO, logger="mal.data")
    box_records(
        dataset((0, 0, 50, 50), (0, 0, 2, 2), (200, 0, 9, 9), (200, 9, 9, 9), (1, 1, 9)), 100
    )
    (message,) = (record.getMessage() for record in caplog.records)
    assert "1 of 5 boxes" in message
    for part in ("2 box_outside", "1 box_malformed", "1 outside the area limits (100, 1e+10)"):
        assert part in message


def test_crowds_are_left_out():
    assert box_records(dataset((0, 0, 9, 9), iscrowd=1)) == []


@pytest.mark.parametrize(
    ("small", "level"),
    [
        (1, logging.INFO),  # 1 of 20 = 5 %: not more than 5 %
        (2, logging.WARNING),  # 2 of 20 = 10 %
    ],
)
def test_a_filter_that_excludes_more_than_five_percent_warns(small, level, caplog):
    caplog.set_level(logging.INFO, logger="mal.data")
    boxes = [(0, 0, 5, 5)] * small + [(0, 0, 50, 50)] * (20 - small)
    box_records(dataset(*boxes), min_area=100)
    (message,) = caplog.records
    assert message.levelno == level
    assert f"{20 - small} of 20 boxes" in message.getMessage()


@pytest.fixture
def record(tmp_path):
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[20:40, 30:60] = (200, 40, 10)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 1,
        "height": 60,
        "width": 80,
        "annotation_id": 7,
        "category": 2,
        "box": (30.0, 20.0, 60.0, 40.0),
    }


def test_crop_holds_the_object_and_its_box_mask_lies_on_it(record):
    mapper = BoxCropMapper(crop_size=64, margin=1.2, gated=True, inclusive=False, cache=1)
    for seed in range(10):
        np.random.seed(seed)
        sample = mapper(record)
        assert sample["student_view"].shape == sample["teacher_view"].shape == (3, 64, 64)
        assert sample["box_area"] == 600
        assert sample["annotation_id"] == 7
        assert sample["category"].dtype == torch.int64
        assert sample["category"] == 2
        assert "true_mask" not in sample
        # The object fills its box here, so box mask and red pixels agree but for resampling.
        red = sample["teacher_view"][0] > 100
        inside = sample["box_mask"] > 0
        overlap = (red & inside).sum() / (red | inside).sum()
        assert overlap > 0.9


def disc(height, width):
    rows, columns = np.mgrid[:height, :width]
    return (rows - 22) ** 2 + (columns - 76) ** 2 <= 60


def naive_crop(array, window, size, border):
    """By numpy's padding and one pixel at a time."""
    mode = {"wrap": "wrap", "reflect": "reflect", "replicate": "edge"}[border]
    padded = np.pad(array, 100, mode=mode)[100 + window.y0 :, 100 + window.x0 :]
    return np.array(
        [
            [
                padded[(2 * i + 1) * window.height // (2 * size)][
                    (2 * j + 1) * window.width // (2 * size)
                ]
                for j in range(size)
            ]
            for i in range(size)
        ]
    )


@pytest.mark.parametrize("border", ["wrap", "reflect", "replicate"])
def test_the_human_mask_lies_in_the_window_of_the_box_mask(border, record, monkeypatch):
    """The same window, flip and border for both, here at the right edge of the image."""
    true = disc(60, 80)
    record = {**record, "box": (69.0, 15.0, 80.0, 30.0), "segmentation": encode_rle(true)}
    windows = []

    def seen(*args):
        windows.append(train_window(*args))
        return windows[-1]

    monkeypatch.setattr(mal.data, "train_window", seen)
    mapper = BoxCropMapper(crop_size=24, margin=1.2, gated=True, border=border, cache=1)
    flips = set()
    for seed in range(12):
        np.random.seed(seed)
        sample = mapper(record)
        assert sample["true_mask"].dtype == sample["box_mask"].dtype == torch.uint8
        both = [
            naive_crop(mask, windows[-1], 24, border)
            for mask in (box_mask(record["box"], 60, 80), true)
        ]
        found = sample["box_mask"].numpy(), sample["true_mask"].numpy()
        kept, turned = (
            all(np.array_equal(m[:, ::step], f) for m, f in zip(both, found, strict=True))
            for step in (1, -1)
        )
        assert kept != turned
        flips.add(turned)
    assert flips == {True, False}
    assert any(window.x1 > 80 for window in windows)


def test_a_border_changes_what_lies_outside_alone(record):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(record["file_name"])
    for box, views in (((30.0, 20.0, 60.0, 40.0), 1), ((0.0, 0.0, 80.0, 60.0), 3)):
        seen = set()
        for border in ("wrap", "reflect", "replicate"):
            mapper = BoxCropMapper(crop_size=64, margin=1.2, gated=True, border=border)
            np.random.seed(1)
            seen.add(mapper({**record, "box": box})["teacher_view"].numpy().tobytes())
        assert len(seen) == views


def test_a_training_on_masks_refuses_a_box_without_one(tmp_path):
    opts = ["MODEL.MAL.SUPERVISION", "mask", "DATASETS.TEST", "()"]
    cfg = tiny_config("mal/sample", write_coco(tmp_path, masks=False), tmp_path / "out", opts)
    with pytest.raises(
        DataError,
        match=r"1\.png \(annotation 10\): a box has no human mask.*SUPERVISION to 'box'",
    ):
        Trainer.build_train_loader(cfg)


def test_a_training_on_masks_learns_from_the_json_s_masks(tmp_path):
    opts = ["MODEL.MAL.SUPERVISION", "mask", "MODEL.MAL.BORDER", "reflect", "DATASETS.TEST", "()"]
    opts += ["SOLVER.MAX_ITER", 2, "DATALOADER.NUM_WORKERS", 0]
    cfg = tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out", opts)
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    samples = trainer.data_loader.last_samples
    assert {int(sample["category"]) for sample in samples} <= {0, 1}
    # A disc covers pi / 4 of its box.
    shares = [float(s["true_mask"].sum() / s["box_mask"].sum()) for s in samples]
    assert all(0.6 < share < 0.9 for share in shares)
    assert trainer.storage.history("loss_dice").latest() > 0


def test_a_mask_of_another_image_size_is_named(record):
    mapper = BoxCropMapper(crop_size=24, margin=1.2, gated=True)
    record["segmentation"] = encode_rle(np.ones((5, 5), bool))
    with pytest.raises(DataError, match=r"a\.png \(annotation 7\): .*Remedy: correct the mask"):
        mapper(record)


@pytest.mark.parametrize("crops", [1, 3])
def test_each_box_is_seen_equally_often_and_an_image_is_decoded_once_for_its_crops(
    crops, tmp_path, monkeypatch
):
    """10 images with 2 boxes each, of which the first one has 6 more; no images are kept."""
    json_file = write_coco(tmp_path, images=10)
    data = json.loads(json_file.read_text())
    extra = [{**data["annotations"][0], "id": 1000 + i} for i in range(6)]
    json_file.write_text(json.dumps({**data, "annotations": data["annotations"] + extra}))
    opts = ["MODEL.MAL.CROPS_PER_IMAGE", crops, "MODEL.MAL.IMAGE_CACHE", 0]
    opts += ["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 1]
    cfg = tiny_config("mal/sample", json_file, tmp_path / "out", opts)
    decoded = []
    monkeypatch.setattr(
        "pseudolabel.image_cache.read_image", lambda path: decoded.append(path) or read_image(path)
    )
    batches = iter(Trainer.build_train_loader(cfg))
    epoch = [next(batches) for _ in range(-(-26 // crops))]
    assert {len(batch) for batch in epoch} == {crops}
    counts = Counter(sample["annotation_id"] for batch in epoch for sample in batch)
    assert len(counts) == 26
    assert set(counts.values()) <= {1, 2}
    changes = sum(
        1 + sum(a["image_id"] != b["image_id"] for a, b in itertools.pairwise(batch))
        for batch in epoch
    )
    # Also the image of the batch before may be the right one.
    assert len(decoded) <= changes <= 26
    assert len(decoded) < 26 or crops == 1
    # The same box twice in a batch is cropped anew.
    views = {sample["teacher_view"].numpy().tobytes() for batch in epoch for sample in batch}
    assert len(views) == len(epoch) * crops


def test_views_differ_in_colour_only_and_repeat_with_the_seed(record):
    mapper = BoxCropMapper(crop_size=64, margin=1.2, gated=True, cache=1)
    np.random.seed(3)
    first = mapper(record)
    np.random.seed(3)
    second = mapper(record)
    assert torch.equal(first["student_view"], second["student_view"])
    assert torch.equal(first["box_mask"], second["box_mask"])


def test_wrong_size_in_the_json_is_named(record):
    mapper = BoxCropMapper(crop_size=64, margin=1.2, gated=True, cache=1)
    with pytest.raises(DataError, match=r"a\.png \(image 1\): is 80x60, the JSON says 80x61"):
        mapper({**record, "height": 61})


def test_test_sample_holds_every_box_but_crowds(record):
    crowd = {"id": 2, "bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1}
    box = {"id": 1, "bbox": [30, 20, 30, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 4}
    sample = ImageBoxes([{**record, "annotations": [crowd, box]}])[0]
    assert sample["annotation_ids"] == [1]
    assert sample["boxes"].tolist() == [[30, 20, 60, 40]]
    assert sample["classes"].tolist() == [4]
    assert sample["image"].shape == (60, 80, 3)


def test_unusable_boxes_are_left_out_of_the_evaluation_by_name(record, caplog):
    boxes = [[30, 20, 30, 20], [80, 0, 9, 9], [1, 2, 3]]
    annotations = [
        {"id": key, "bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        for key, box in enumerate(boxes, start=1)
    ]
    sample = ImageBoxes([{**record, "annotations": annotations}])[0]
    assert sample["annotation_ids"] == [1]
    assert sample["boxes"].shape == (1, 4)
    (message,) = (entry.getMessage() for entry in caplog.records)
    assert "2 boxes are left out" in message
    assert f"annotation 2 of {record['file_name']}: box_outside" in message
    assert f"annotation 3 of {record['file_name']}: box_malformed" in message


def test_training_and_evaluation_survive_an_outside_box(tmp_path):
    """The mask network is trained and evaluated on a file with one box beside its image."""
    json_file = write_coco(tmp_path)
    data = json.loads(json_file.read_text())
    data["annotations"][0]["bbox"] = [500, 500, 20, 20]
    json_file.write_text(json.dumps(data))
    cfg = tiny_config("mal/sample", json_file, tmp_path / "out", ["SOLVER.MAX_ITER", 1])
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    scores = json.loads(next((tmp_path / "out").rglob("mask_iou.json")).read_text())
    assert scores["student"]["n"] == 7


def test_mapper_can_be_sent_to_a_spawned_loader_process(record):
    mapper = BoxCropMapper(crop_size=32, margin=1.2, gated=True, cache=2)
    np.random.seed(3)
    expected = mapper(record)
    copy = pickle.loads(pickle.dumps(mapper))
    np.random.seed(3)
    assert torch.equal(copy(record)["student_view"], expected["student_view"])
