"""The trainer: resume bit for bit, NaN stops with a dump, both networks are evaluated."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mal.data
import mal.mask_auto_labeler  # noqa: F401  (registers the meta-architecture)
from pseudolabel.ema import unwrap
from pseudolabel.errors import DataError
from pseudolabel.loader import seed_everything
from pseudolabel.trainer import Trainer
from tests.tiny import tiny_config, write_coco


def build(cfg, resume=False):
    seed_everything(cfg.SEED)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def train(cfg, resume=False, stop=None):
    trainer = build(cfg, resume)
    if stop is not None:
        trainer.max_iter = stop
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("method", "workers"),
    [
        ("mal/sample", 0),  # teacher, steps and AdamW state
        ("mal/sample", 2),  # augmentation in worker processes
        ("mask_rcnn/sample", 0),  # proposal sampling inside the model, SGD momentum
        ("mask_rcnn/sample", 2),
    ],
)
def test_twenty_steps_equal_ten_and_ten_resumed(method, workers, tmp_path):
    json_file = write_coco(tmp_path)
    opts = ["DATALOADER.NUM_WORKERS", workers, "DATASETS.TEST", "()"]
    whole = train(tiny_config(method, json_file, tmp_path / "whole", opts))
    cfg = tiny_config(method, json_file, tmp_path / "parts", opts)
    train(cfg, stop=10)
    parts = train(cfg, resume=True)
    assert parts.start_iter == 10
    assert parts.scheduler.last_epoch == whole.scheduler.last_epoch == 20
    expected = whole.model.state_dict()
    for name, value in parts.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_same_seed_same_weights_other_seed_other_weights(tmp_path):
    json_file = write_coco(tmp_path)
    weights = []
    for run, seed in enumerate((0, 0, 1)):
        opts = ["SOLVER.MAX_ITER", 2, "SEED", seed, "DATASETS.TEST", "()"]
        trainer = train(tiny_config("mal/sample", json_file, tmp_path / str(run), opts))
        weights.append(trainer.model.state_dict()["student.decoder.key.0.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_nan_stops_the_run_with_a_dump(tmp_path):
    cfg = tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out")
    trainer = build(cfg)
    with torch.no_grad():
        trainer.model.student.decoder.key[0].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"nan_dump_rank0_iter0\.pth.*Remedy") as error:
        trainer.train()
    dump = torch.load(tmp_path / "out" / "nan_dump_rank0_iter0.pth", weights_only=True)
    assert dump["iteration"] == 0
    assert "loss_mil" in dump["message"]
    assert all(Path(sample["file_name"]).is_file() for sample in dump["samples"])
    assert all(sample["annotation_id"] for sample in dump["samples"])
    assert str(dump["samples"][0]["file_name"]) in str(error.value)
    assert dump["batch"][0]["student_view"].shape == (3, 32, 32)
    assert dump["optimizer"].keys() == trainer.optimizer.state_dict().keys()
    assert dump["config"] == trainer.cfg.dump()
    assert dump["model"].keys() == unwrap(trainer.model).state_dict().keys()
    assert not (tmp_path / "out" / "model_final.pth").exists()


def test_evaluation_reports_student_and_teacher(tmp_path):
    cfg = tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out")
    cfg.SOLVER.MAX_ITER = 2
    train(cfg)
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    last = {key: value for line in lines for key, value in json.loads(line).items()}
    assert 0 < last["student/mIoU"] <= 1
    assert 0 < last["teacher/mIoU"] <= 1
    assert 0 <= last["mal/fill of box, CRF target"] <= 1


def test_corrupt_training_image_is_named(tmp_path):
    json_file = write_coco(tmp_path)
    for image in tmp_path.glob("*.png"):
        image.write_bytes(image.read_bytes()[:50])
    for method in ("mal/sample", "mask_rcnn/sample"):
        trainer = build(tiny_config(method, json_file, tmp_path / method))
        with pytest.raises(DataError, match=r"\d\.png.*Remedy"):
            trainer.train()


def test_fine_tuning_from_a_checkpoint_warms_the_losses_up_anew(tmp_path):
    json_file = write_coco(tmp_path)
    opts = ["SOLVER.MAX_ITER", 3, "DATASETS.TEST", "()"]
    first = train(tiny_config("mal/sample", json_file, tmp_path / "first", opts))
    assert int(first.model.steps) == 3
    opts += ["MODEL.WEIGHTS", str(tmp_path / "first/model_final.pth")]
    second = build(tiny_config("mal/sample", json_file, tmp_path / "second", opts))
    assert int(second.model.steps) == 0
    name = "student.decoder.key.0.weight"
    assert torch.equal(second.model.state_dict()[name], first.model.state_dict()[name])


def test_unknown_optimizer_is_refused(tmp_path):
    cfg = tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out")
    cfg.SOLVER.OPTIMIZER = "Adam"
    with pytest.raises(ValueError, match="use 'SGD' or 'AdamW'"):
        Trainer(cfg)


def test_one_group_of_adamw_with_the_paper_betas(tmp_path):
    cfg = tiny_config("mal/nuclei", write_coco(tmp_path), tmp_path / "out")
    trainer = Trainer(cfg)
    (group,) = trainer.optimizer.param_groups
    assert group["betas"] == (0.9, 0.9)
    assert group["weight_decay"] == pytest.approx(5e-4)
    teacher = {id(p) for p in trainer.model.teacher.parameters()}
    assert not teacher & {id(p) for p in group["params"]}
    assert np.isclose(trainer.cfg.SOLVER.BASE_LR, 2e-4)


def test_boxes_only_test_set_is_refused_before_training(tmp_path):
    cfg = tiny_config("mal/sample", write_coco(tmp_path, masks=False), tmp_path / "out")
    with pytest.raises(
        DataError,
        match=r"instances\.json \(annotation 10\): 8 of 8 .* give human masks for DATASETS\.TEST "
        r"or set it to \(\)",
    ):
        Trainer(cfg)
    cfg.DATASETS.TEST = ()
    Trainer(cfg)


# mal.md section 5: e < 1: lr e; then min + (lr - min) / 2 (1 + cos(pi (e - 1) / 9)); min = lr / 5.
@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0, 0.0), (0.5, 0.5), (1, 1.0), (5.5, 0.6), (10, 0.2)],
)
def test_learning_rate_of_the_paper(epoch, factor, tmp_path):
    steps = 10  # of one epoch
    opts = ["SOLVER.MAX_ITER", 10 * steps, "SOLVER.WARMUP_ITERS", steps]
    opts += ["SOLVER.BASE_LR", 4.8e-5, "SOLVER.BASE_LR_END", 4.8e-5 / 5]
    cfg = tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out", opts)
    model = torch.nn.Linear(1, 1)
    optimizer = Trainer.build_optimizer(cfg, model)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    for _ in range(int(epoch * steps)):
        optimizer.step()
        scheduler.step()
    (lr,) = {group["lr"] for group in optimizer.param_groups}
    assert lr == pytest.approx(4.8e-5 * factor, rel=1e-4, abs=1e-12)


def test_a_run_shorter_than_its_warm_up_still_runs(tmp_path, caplog):
    cfg = tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out")
    cfg.SOLVER.MAX_ITER = 3
    cfg.SOLVER.WARMUP_ITERS = 4
    cfg.DATASETS.TEST = ()
    trainer = train(cfg)
    assert trainer.iter == 3
    assert cfg.SOLVER.WARMUP_ITERS == 4
    assert any("warm-up shortened to 2" in r.getMessage() for r in caplog.records)
