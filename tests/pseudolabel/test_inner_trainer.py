"""One step of many batches, mixed precision, the learning rate of a step."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn

import mal.data
import mal.mask_auto_labeler  # noqa: F401  (registers the meta-architecture)
from pseudolabel.inner_trainer import InnerTrainer
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


@pytest.fixture
def config(tmp_path):
    """A function: name of the run and options -> config of a tiny run."""
    json_file = write_coco(tmp_path)

    def make(run, *opts, method="mal/sample"):
        opts = ["DATALOADER.NUM_WORKERS", 0, "DATASETS.TEST", "()", *opts]
        return tiny_config(method, json_file, tmp_path / run, opts)

    return make


def test_accumulated_batches_equal_one_batch_of_their_size(config):
    # Plain descent: AdamW would turn a rounding error of a tiny gradient into a whole step.
    opts = ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.5, "SOLVER.MAX_ITER", 6]
    opts += ["MODEL.MAL.MIL_WARMUP", 0, "MODEL.MAL.CRF_WARMUP", 0]
    parts = train(config("parts", *opts, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.ACCUMULATE", 3))
    whole = train(config("whole", *opts, "SOLVER.IMS_PER_BATCH", 6))
    assert parts.iter == whole.iter == 6
    assert int(parts.model.steps) == int(whole.model.steps) == 6
    assert parts.scheduler.last_epoch == whole.scheduler.last_epoch == 6
    start = build(config("start", *opts)).model.state_dict()
    expected, moved = whole.model.state_dict(), 0.0
    for name, value in parts.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
            moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 0.01


@pytest.mark.parametrize(
    "opts",
    [
        ["SOLVER.ACCUMULATE", 2],
        ["SOLVER.AMP.ENABLED", True],
        ["MODEL.MAL.CROPS_PER_IMAGE", 2],
        ["SOLVER.ACCUMULATE", 2, "SOLVER.AMP.ENABLED", True, "MODEL.MAL.CROPS_PER_IMAGE", 3],
    ],
)
def test_resume_is_exact(opts, config):
    opts = ["SOLVER.MAX_ITER", 6, *opts]
    whole = train(config("whole", *opts))
    train(config("parts", *opts), stop=3)
    parts = train(config("parts", *opts), resume=True)
    assert parts.start_iter == 3
    expected = whole.model.state_dict()
    for name, value in parts.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_step_takes_as_many_crops_as_images_times_crops_times_batches(config):
    cfg = config("out", "SOLVER.ACCUMULATE", 2, "MODEL.MAL.CROPS_PER_IMAGE", 3)
    cfg.SOLVER.MAX_ITER = 1
    trainer = train(cfg)
    samples = trainer.data_loader.last_samples
    assert len(samples) == 2 * 2 * 3
    # Two boxes an image: 8 boxes in blocks of 3.
    assert len({sample["annotation_id"] for sample in samples}) == 8


def test_nan_in_the_first_of_the_batches_stops_the_run_before_the_step(config):
    cfg = config("out", "SOLVER.ACCUMULATE", 2)
    trainer = build(cfg)
    forward, calls = trainer.model.forward, []

    def spoiled(batch):
        calls.append(batch)
        losses = forward(batch)
        return {k: v * (float("nan") if len(calls) == 1 else 1) for k, v in losses.items()}

    trainer.model.forward = spoiled
    before = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(FloatingPointError, match="nan_dump"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    dump = torch.load(Path(cfg.OUTPUT_DIR, "nan_dump_rank0_iter0.pth"), weights_only=True)
    assert len(dump["samples"]) == 4


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("opts", "value"),
    [
        ([], NAN),
        ([], -INF),
        (["SOLVER.AMP.ENABLED", True], NAN),  # bfloat16 has no scaler that would see it
        (["SOLVER.ACCUMULATE", 2], INF),
        (["SOLVER.OPTIMIZER", "SGD"], NAN),
    ],
)
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(opts, value, config):
    """Of one weight, under losses that are finite."""
    cfg = config("out", *opts)
    trainer = build(cfg)
    weight = trainer.model.student.decoder.key[0].weight
    entry = torch.arange(weight.numel()).view_as(weight) == 1
    weight.register_hook(lambda gradient: gradient.masked_fill(entry, value))
    before = {name: each.clone() for name, each in trainer.model.state_dict().items()}
    message = (
        r"gradient is not finite at iteration=0.*; 1 of \d+ parameters: student\.decoder\.key\.0"
    )
    with pytest.raises(FloatingPointError, match=message) as error:
        trainer.train()
    assert "nan_dump_rank0_iter0.pth" in str(error.value)
    for name, each in trainer.model.state_dict().items():
        assert torch.equal(each, before[name]), name
    dump = torch.load(Path(cfg.OUTPUT_DIR, "nan_dump_rank0_iter0.pth"), weights_only=True)
    assert "gradient" in dump["message"]
    assert not Path(cfg.OUTPUT_DIR, "model_final.pth").exists()


@pytest.mark.parametrize("method", ["mal/sample", "mask_rcnn/sample"])
def test_a_plain_step_is_detectron2s(method, config):
    """Bit for bit, weights and losses."""
    found = []
    for run in ("ours", "stock"):
        trainer = build(config(run, "SOLVER.MAX_ITER", 3, method=method))
        if run == "stock":
            parts = trainer.model, trainer._trainer.data_loader, trainer.optimizer
            trainer._trainer = SimpleTrainer(*parts)
        trainer.train()
        losses = trainer.storage.history("total_loss").values()
        found.append((trainer.model.state_dict(), losses))
    (ours, losses), (stock, expected) = found
    assert losses == expected
    for name, value in ours.items():
        assert torch.equal(value, stock[name]), name


class OneNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))

    def forward(self, batch):
        return {"loss": (self.weight - batch).square()}


def test_a_scaler_leaves_out_such_a_step_by_itself():
    """As float16 has it: no error, no step, a smaller factor."""
    model = OneNumber()
    trainer = InnerTrainer(model, [torch.tensor(1.0)], torch.optim.SGD(model.parameters(), 0.1))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    model.weight.register_hook(lambda gradient: gradient * float("inf"))
    with EventStorage():
        trainer.run_step()
    assert model.weight == 0
    assert trainer.scaler.get_scale() == 4.0


class OneLoss(OneNumber):
    def forward(self, batch):
        return super().forward(batch)["loss"]


@pytest.mark.parametrize("kind", [OneNumber, OneLoss])
def test_a_step_is_plain_descent(kind):
    """Computed by hand; a model may also give one loss without a name, as for Detectron2."""
    model = kind()
    trainer = InnerTrainer(model, [torch.tensor(3.0)], torch.optim.SGD(model.parameters(), 0.1))
    with EventStorage() as storage:
        trainer.run_step()
    assert model.weight.item() == pytest.approx(0.6)  # from 0, the gradient being -6
    assert storage.history("total_loss").latest() == 9.0


def dtypes_of_a_step(trainer):
    """The dtypes of all linear layers' outputs, of the losses and of the gradients."""
    seen, losses = set(), {}
    for name, module in trainer.model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            network = name.split(".")[0]
            module.register_forward_hook(
                lambda _, __, output, network=network: seen.add((network, output.dtype))
            )
    trainer.model.register_forward_hook(lambda _, __, output: losses.update(output))
    trainer.max_iter = 1
    trainer.train()
    gradients = {p.grad.dtype for p in trainer.model.parameters() if p.grad is not None}
    return seen, {loss.dtype for loss in losses.values()}, gradients


@pytest.mark.parametrize(("enabled", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_mixed_precision_is_what_the_flag_says(enabled, dtype, config):
    cfg = config("out", "SOLVER.AMP.ENABLED", enabled)
    trainer = build(cfg)
    assert trainer.cfg.SOLVER.AMP.ENABLED is enabled
    seen, losses, gradients = dtypes_of_a_step(trainer)
    # The last product of the decoder is no layer; every layer of both networks is lowered.
    assert seen == {("student", dtype), ("teacher", dtype)}
    assert losses == {torch.float32}
    assert gradients == {torch.float32}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_mixed_precision_on_a_cpu_lays_weights_out_for_its_convolutions():
    for mixed in (True, False):
        model = nn.Conv2d(4, 4, 3)
        before = model.weight.clone()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        InnerTrainer(model, [], optimizer, mixed_precision=mixed)
        assert model.weight.is_contiguous(memory_format=torch.channels_last) is mixed
        assert torch.equal(model.weight, before)


def test_mixed_precision_learns_about_the_same(config):
    opts = ["SOLVER.MAX_ITER", 8, "MODEL.MAL.MIL_WARMUP", 0, "MODEL.MAL.CRF_WEIGHT", 0.0]
    full = train(config("full", *opts)).storage.history("total_loss")
    half = train(config("half", *opts, "SOLVER.AMP.ENABLED", True)).storage.history("total_loss")
    assert half.values()[0][0] == pytest.approx(full.values()[0][0], rel=0.02)
    assert half.latest() == pytest.approx(full.latest(), rel=0.1)
    assert half.latest() != full.latest()


def test_stock_mask_rcnn_trains_in_mixed_precision_on_a_cpu(config):
    cfg = config("out", "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 2, method="mask_rcnn/sample")
    trainer = train(cfg)
    assert trainer.iter == 2
    assert trainer.storage.history("loss_mask").latest() > 0


def test_the_scaler_of_float16_is_in_the_checkpoint():
    def new():
        model = OneNumber()
        trainer = InnerTrainer(
            model, [], torch.optim.SGD(model.parameters(), 0.1), mixed_precision=True
        )
        # What a GPU gets; a scaler works anywhere.
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        return trainer

    first, second = new(), new()
    first.scaler.scale(torch.ones(1))
    first.scaler.update(4.0)
    second.load_state_dict(first.state_dict())
    assert second.scaler.get_scale() == 4.0
    del (state := first.state_dict())["grad_scaler"]
    new().load_state_dict(state)  # of a run without


@pytest.mark.parametrize(
    ("opts", "line", "rate"),
    [
        (["SOLVER.LR_PER_SAMPLE", 1.5e-6], "lr 3e-06 = 1.5e-06 x 2 crops", 3e-6),
        (
            [
                *("SOLVER.LR_PER_SAMPLE", 1.5e-6, "SOLVER.ACCUMULATE", 4),
                *("MODEL.MAL.CROPS_PER_IMAGE", 4),
            ],
            "lr 4.8e-05 = 1.5e-06 x 32 crops",  # the paper's
            4.8e-5,
        ),
        (["SOLVER.BASE_LR", 2e-4], "lr 0.0002 for 2 crops a step", 2e-4),
        (
            ["SOLVER.LR_PER_SAMPLE", 1e-3, "SOLVER.OPTIMIZER", "SGD"],
            "lr 0.002 = 0.001 x 2 crops",
            2e-3,
        ),
    ],
)
def test_the_learning_rate_of_a_step_is_printed_and_used(opts, line, rate, config, caplog):
    caplog.set_level(logging.INFO, logger="pseudolabel")
    cfg = config("out", *opts)
    trainer = Trainer(cfg)
    assert line in [record.getMessage() for record in caplog.records]
    (lr,) = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert lr == pytest.approx(rate)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_gradient_clipping_is_obeyed_with_accumulation(optimizer, config):
    opts = ["SOLVER.OPTIMIZER", optimizer, "SOLVER.ACCUMULATE", 2, "SOLVER.MAX_ITER", 1]
    opts += ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"]
    opts += ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1e-6, "MODEL.MAL.MIL_WARMUP", 0]
    trainer = train(config("out", *opts))
    largest = max(p.grad.abs().max() for p in trainer.model.student.parameters())
    assert 0 < largest <= 1e-6


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.ACCUMULATE", 0], "SOLVER.ACCUMULATE 0: use 1"),
        (["MODEL.MAL.CROPS_PER_IMAGE", 0], "CROPS_PER_IMAGE: cannot be 0"),
        (["MODEL.MAL.SUPERVISION", "boxes"], "SUPERVISION: cannot be 'boxes'"),
        (
            ["SOLVER.OPTIMIZER", "SGD", "SOLVER.LAYER_DECAY", 0.9],
            "LAYER_DECAY: needs SOLVER.OPTIMIZER 'AdamW'",
        ),
    ],
)
def test_keys_that_could_not_be_obeyed_are_refused(opts, message, config):
    with pytest.raises(ValueError, match=message):
        Trainer(config("out", *opts))
