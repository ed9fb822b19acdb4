"""The meta-architecture end to end on tiny random networks, its labeler and its monitor."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

import mal.data
from mal.fill_monitor import FillMonitor, box_fill
from mal.labeler import mal
from mal.mask_auto_labeler import MaskAutoLabeler
from pseudolabel.errors import DataError
from pseudolabel.masks import decode_segmentation
from pseudolabel.quality import expected_iou
from tests.tiny import tiny_config, write_coco

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def cfg(tmp_path):
    return tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out")


@pytest.fixture
def model(cfg):
    torch.manual_seed(0)
    return MaskAutoLabeler(cfg)


def batch(count=3, side=32):
    generator = torch.Generator().manual_seed(0)
    box = torch.zeros(side, side, dtype=torch.uint8)
    box[8:24, 6:26] = 1
    views = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return [
        {"student_view": v, "teacher_view": v, "box_mask": box, "box_area": 100.0 * 10**i}
        for i, v in enumerate(views)
    ]


def test_losses_are_finite_and_reach_the_student_alone(model):
    model.train()
    model.steps.fill_(50)
    with EventStorage():
        losses = model(batch())
    assert set(losses) == {"loss_mil", "loss_crf"}
    sum(losses.values()).backward()
    # The class token's own output is not used, so what feeds only it has no gradient.
    grads = [p.grad is not None for p in model.student.parameters()]
    assert np.mean(grads) > 0.9
    assert all(p.grad is None for p in model.teacher.parameters())


def test_warm_up_starts_at_zero_and_ends_at_the_weight(model):
    model.train()
    with EventStorage():
        first = model(batch())
        model.steps.fill_(10**6)
        last = model(batch())
    assert first["loss_mil"] == first["loss_crf"] == 0
    assert 0 < last["loss_mil"] <= 4 * 2
    assert 0 < last["loss_crf"] <= 0.5


def test_teacher_starts_as_the_student_and_follows_it(model):
    student, teacher = (net.decoder.key[0].weight for net in (model.student, model.teacher))
    assert torch.equal(student, teacher)
    with torch.no_grad():
        student += 1
    expected = 0.99 * teacher + 0.01 * student
    model.update_teacher()
    assert torch.allclose(teacher, expected)
    assert int(model.steps) == 1


def test_one_record_per_box_within_its_box(model):
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    boxes = np.array([[5, 5, 30, 40], [60, 40, 90, 80], [10, 10, 11, 30], [0, 0, 70, 50]], float)
    out = model.eval()([{"image": image, "boxes": boxes}])[0]
    assert set(out) == {"student", "teacher"}
    for records in out.values():
        assert len(records) == 4
        assert records[2].mask_source == "filled_tiny"  # one pixel wide
        for record, (x0, y0, x1, y1) in zip(records, boxes):
            mask = decode_segmentation(record.segmentation, 50, 70)
            rows, columns = np.nonzero(mask)
            assert mask.sum() == record.area > 0
            assert rows.min() >= y0
            assert rows.max() < y1
            assert columns.min() >= x0
            assert columns.max() < x1
            assert 0 <= record.quality <= 1
    assert model.predict(image, np.zeros((0, 4))) == {"student": [], "teacher": []}


def test_a_box_does_not_change_with_its_neighbours_beyond_the_batch(model):
    """Batches are cut in box order: the first 16 boxes never depend on the ones that follow."""
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    boxes = np.array([[i, i, i + 20, i + 15] for i in range(20)], float)
    few, many = (model.eval().predict(image, b)["student"] for b in (boxes[:16], boxes))
    assert few == many[:16]


@pytest.mark.parametrize(
    ("probability", "mask", "expected"),
    [
        ([[1.0, 1.0], [0.0, 0.0]], [[1, 1], [0, 0]], 1.0),  # certain and right
        ([[0.8, 0.8], [0.2, 0.2]], [[1, 1], [0, 0]], 1.6 / 2.4),
        ([[0.4, 0.4], [0.4, 0.4]], [[0, 0], [0, 0]], 0.0),  # nothing above the threshold
        ([[0.0, 0.0], [0.0, 0.0]], [[0, 0], [0, 0]], 0.0),  # and nothing at all
    ],
)
def test_expected_iou(probability, mask, expected):
    mask = np.array(mask, bool)
    assert expected_iou(np.array(probability), mask) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (0.97, "collapsing to the filled box"),
        (0.03, "collapsing to nothing"),
        (0.70, None),  # healthy
        (0.90, None),  # the limit itself
    ],
)
def test_monitor_warns_of_a_collapse(fill, message, caplog):
    monitor = FillMonitor("predicted mask", patience=20)
    for _ in range(60):
        monitor.update(fill)
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    if message is None:
        assert texts == []
    else:
        assert len(texts) == 3  # once per patience, not once per step
        assert all(message in text for text in texts)


def test_box_fill_counts_inside_the_box_only():
    box = torch.zeros(1, 4, 4)
    box[:, :2] = 1
    mask = torch.zeros(1, 4, 4)
    mask[:, :, :2] = 1  # half of the box, and as much outside
    assert box_fill(mask, box).tolist() == [0.5]


def save(cfg, model):
    out = Path(cfg.OUTPUT_DIR)
    out.mkdir(exist_ok=True)
    torch.save({"model": model.state_dict()}, out / "model_final.pth")
    (out / "config.yaml").write_text(cfg.dump())
    return out


def test_label_command_with_a_trained_checkpoint(cfg, model, tmp_path):
    out = save(cfg, model)
    command = [sys.executable, str(ROOT / "tools/label.py"), "--labeler", "mal"]
    command += ["--boxes", str(tmp_path / "instances.json"), "--images", str(tmp_path)]
    command += ["--output", str(tmp_path / "labels.json")]
    command += ["--config-file", str(out / "config.yaml")]
    command += ["--weights", str(out / "model_final.pth")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    labels = json.loads((tmp_path / "labels.json").read_text())
    truth = json.loads((tmp_path / "instances.json").read_text())
    assert [a["id"] for a in labels["annotations"]] == [a["id"] for a in truth["annotations"]]
    assert all(0 <= a["agreement"] <= 1 for a in labels["annotations"])
    manifest = json.loads((tmp_path / "labels.manifest.json").read_text())
    assert manifest["labeler"]["network"] == cfg.MODEL.MAL.TEST.NETWORK == "teacher"
    assert len(manifest["labeler"]["weights_sha256"]) == 64


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b"junk"), "not a safe checkpoint"),
        (lambda path: torch.save({"model": {"x": torch.zeros(1)}}, path), "does not fit the model"),
    ],
)
def test_unusable_weights_are_refused(damage, message, cfg, model):
    out = save(cfg, model)
    damage(out / "model_final.pth")
    with pytest.raises(DataError, match=message):
        mal(str(out / "config.yaml"), str(out / "model_final.pth"))


def test_labeler_needs_config_and_weights():
    with pytest.raises(DataError, match="needs a config and weights"):
        mal()
