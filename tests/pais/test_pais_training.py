"""Whole trainings of PAIS by the project's one trainer, on a tiny network and drawn images."""

import copy
import json
import logging
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image

from pais.ema import momentum_at
from pseudolabel.distributed import run_everywhere
from pseudolabel.loader import mix_seed, seed_everything
from pseudolabel.plain_samples import from_plain
from pseudolabel.registration import register_datasets
from pseudolabel.trainer import Trainer
from tests.pais.tiny_run import PYRAMID, tiny_config, train_in_this_process, write_split
from tests.tiny import SIDE
from tests.tools.commands import load_command

# Random weights are sure of nothing; the head's floor is within reach of some of its guesses.
LOW = [
    *("MODEL.PAIS.SCORE_FLOOR", 0.1, "MODEL.PAIS.RPN_SCORE_FLOOR", 0.1),
    *("MODEL.PAIS.ROI_SCORE_FLOOR", 0.1),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(files, tmp_path):
    def made(name, *opts):
        cfg = tiny_config(files, tmp_path / name, *PYRAMID, *LOW, *opts)
        (tmp_path / name).mkdir(exist_ok=True)
        return cfg

    return made


def trained(cfg, resume=False, until=None):
    """The trainer after its run; `until` stops it early, as a kill after a checkpoint would."""
    seed_everything(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = until or trainer.max_iter
    trainer.train()
    return trainer


def state_of(cfg):
    path = Path(cfg.OUTPUT_DIR, "model_final.pth")
    return torch.load(path, weights_only=True)["model"]


def metrics(cfg):
    lines = Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("burn_in", [0, 12])
def test_a_resumed_run_is_the_same_run(burn_in, config):
    """20 = 10 + 10, both networks, bit for bit; also where the burn-in ends after the break."""
    opts = ["DATASETS.TEST", "()", "MODEL.PAIS.BURN_IN_ITERS", burn_in]
    opts += ["SOLVER.BASE_LR", 0.01, "MODEL.PAIS.LOADER.MODE", "probability"]
    whole, halves = config("whole", *opts), config("halves", *opts)
    trained(whole)
    trained(halves, until=10)
    last = Path(halves.OUTPUT_DIR, "last_checkpoint")
    last.write_text("model_0000009.pth")
    trained(halves, resume=True)
    state = state_of(whole)
    assert_equal(state, state_of(halves))
    assert int(state["steps"]) == 20
    moved = [
        not torch.equal(state[k], state[k.removeprefix("teacher.")])
        for k in state
        if "teacher" in k
    ]
    assert all(moved)
    assert any("loss_unsup_mask" in row for row in metrics(halves))


class Poison(HookBase):
    """An infinite loss on unlabelled images at one iteration; keeps what the model answered."""

    def __init__(self, iteration):
        self.iteration, self.losses = iteration, {}

    def before_step(self):
        if self.trainer.iter == self.iteration:
            self.trainer.model.unlabelled_weight = float("inf")
            self.trainer.model.register_forward_hook(
                lambda _, __, losses: self.losses.update(losses)
            )


def repeated(path):
    """The losses of a dumped iteration, of nothing but the dump."""
    dump = torch.load(path, weights_only=True)
    cfg = CfgNode.load_cfg(dump["config"])
    model = build_model(cfg)
    model.load_state_dict(dump["model"])
    model.train().unlabelled_weight = float("inf")
    seed_everything(mix_seed(cfg.SEED, dump["iteration"], dump["rank"], 1))
    with EventStorage(dump["iteration"]):
        return model(from_plain(dump["batch"]))


def test_a_loss_that_is_not_finite_updates_neither_network(config):
    opts = ["DATASETS.TEST", "()", "SOLVER.BASE_LR", 0.01]
    # What two iterations of the same schedule make of both networks.
    expected = trained(config("short", *opts), until=2).model.state_dict()
    cfg = config("poisoned", *opts)
    seed_everything(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    poison = Poison(2)
    trainer.register_hooks([poison])
    with pytest.raises(FloatingPointError, match=r"nan_dump_rank0_iter2\.pth") as error:
        trainer.train()
    assert_equal(trainer.model.state_dict(), expected)
    path = Path(cfg.OUTPUT_DIR, "nan_dump_rank0_iter2.pth")
    dump = torch.load(path, weights_only=True)
    assert [set(sample) for sample in dump["samples"]] == [{"file_name", "image_id"}] * 2
    assert all(sample["file_name"] in str(error.value) for sample in dump["samples"])
    assert int(dump["model"]["steps"]) == 2
    # The views of the unlabelled image are nested, and its losses are there.
    assert set(dump["batch"][1]) >= {"weak", "strong", "weak_to_strong"}
    assert poison.losses["loss_unsup_mask"].isinf()
    assert_equal(repeated(path), poison.losses)


def gradients(model):
    """Of the parameters that are trained, by name."""
    found = model.named_parameters()
    return {name: p.grad.clone() for name, p in found if p.grad is not None}


def mean_gradients(model, batches, seed):
    """Of each batch by itself, in bfloat16 and with the random numbers of a step."""
    seed_everything(seed)
    found = []
    with EventStorage(0):
        for batch in batches:
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                losses = model(batch)
            sum(losses.values()).backward()
            found.append(gradients(model))
    return {name: sum(each[name] for each in found) / len(found) for name in found[0]}


def test_accumulated_batches_in_mixed_precision_are_one_step(config, caplog):
    caplog.set_level(logging.INFO)
    opts = ["SOLVER.ACCUMULATE", 2, "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 1]
    cfg = config("run", *opts, "DATASETS.TEST", "()", "SOLVER.BASE_LR", 0.01)
    seed_everything(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    model, batches, lowered = trainer.model, [], []
    before = copy.deepcopy(model)

    def look(_, given):
        batches.append(copy.deepcopy(given[0]))
        lowered.append(torch.is_autocast_enabled("cpu"))

    handle = model.register_forward_pre_hook(look)
    trainer.train()
    handle.remove()
    assert lowered == [True, True]
    # Before the same batches are looked at once more.
    (line,) = [m for m in caplog.messages if m.startswith("pseudo-labels of")]
    images = [{sample["image_id"] for sample in batch} for batch in batches]
    assert not images[0] & images[1]
    assert int(model.steps) == 1
    expected = mean_gradients(before, batches, mix_seed(cfg.SEED, 0, 0, 1))
    assert any(gradient.any() for gradient in expected.values())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert line.startswith("pseudo-labels of iterations 1-1: ")
    (row,) = metrics(cfg)
    assert row["loss_unsup_mask"] > 0
    assert row["pseudo-labels/kept per image"] > 0


@pytest.mark.parametrize("opts", [[], ["SOLVER.AMP.ENABLED", True]])
def test_a_gradient_that_is_not_finite_updates_neither_network(opts, config):
    """Its losses are finite; what it would do shows in the next ones, too late."""
    cfg = config("run", "DATASETS.TEST", "()", *opts)
    seed_everything(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    weight = trainer.model.roi_heads.mask_head.predictor.weight
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match=r"gradient is not finite.*mask_head\.predictor"):
        trainer.train()
    # There is no teacher in it before the first step.
    assert_equal(trainer.model.state_dict(), before)


def test_both_networks_are_evaluated_by_the_pipeline(config):
    cfg = config("run", "SOLVER.MAX_ITER", 1, "MODEL.PAIS.TEST.NETWORK", "student")
    trained(cfg)
    *_, row = metrics(cfg)
    for task in ("bbox", "segm"):
        assert row[f"{task}/AP"] == row[f"student/{task}/AP"]
        assert row[f"teacher/{task}/AP"] >= 0
    (folder,) = Path(cfg.OUTPUT_DIR, "inference").iterdir()
    assert {path.name for path in folder.iterdir()} == {"teacher", "student"}


def test_the_baseline_needs_no_unlabelled_images(config):
    """And starts from the same weights."""
    opts = ["SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()", "DATASETS.UNLABELLED", "()"]
    cfg = config("run", *opts, "MODEL.PAIS.ENABLED", False)
    model = trained(cfg).model
    assert int(model.steps) == 1
    (row,) = metrics(cfg)
    assert "loss_sup_mask" in row
    assert not [name for name in row if "unsup" in name or "unlabelled" in name]


def test_two_processes_train_one_teacher(files, tmp_path):
    """Both end with the same networks, and the teacher is the average that it should be."""
    args = Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto", files=files)
    args.output, args.opts = tmp_path, [*LOW, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 2]
    args.opts += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.CHECKPOINT_PERIOD", 1]
    run_everywhere(train_in_this_process, args)
    first, last = (
        torch.load(tmp_path / f"{name}.pth", weights_only=True)["model"]
        for name in ("model_0000000", "model_final")
    )
    momentum = momentum_at(2, 0.999)
    averaged = [name for name in last if name.startswith("teacher.")]
    assert averaged
    for name in averaged:
        student = last[name.removeprefix("teacher.")]
        expected = momentum * first[name] + (1 - momentum) * student
        torch.testing.assert_close(last[name], expected)


# The labels that a teacher makes


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """Config and weights of a training, with networks that differ."""
    folder = tmp_path_factory.mktemp("run")
    opts = ["SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 0.01, "DATASETS.TEST", "()"]
    cfg = tiny_config(files, folder, *PYRAMID, *LOW, *opts)
    (folder / "config.yaml").write_text(cfg.dump())
    return cfg, trained(cfg).model


@pytest.mark.parametrize(
    ("network", "source"), [("teacher", "--images-json"), ("student", "folder")]
)
def test_a_checkpoint_labels_unlabelled_images(network, source, run, files, tmp_path):
    """The named network's scores and qualities, in a file that stock Mask R-CNN trains on."""
    cfg, model = run
    images, output = files[1].parent, tmp_path / "labels.json"
    if source == "folder":
        images = tmp_path / "images"
        images.mkdir()
        for number in (3, 4, 5, 6):
            shutil.copy(files[1].parent / f"{number}.png", images)
    given = ["--images-json", str(files[1])] if source == "--images-json" else []
    given += ["--config-file", f"{cfg.OUTPUT_DIR}/config.yaml", "--images", str(images)]
    given += ["--weights", f"{cfg.OUTPUT_DIR}/model_final.pth", "--output", str(output)]
    opts = ["DETECTOR.SCORE_THRESH", "0.2", "MODEL.PAIS.TEST.NETWORK", network]
    command = load_command("label")
    assert command.run(command.parse_args(["--labeler", "detector", *given, *opts])) == 0
    labels = json.loads(output.read_text())
    manifest = json.loads((tmp_path / "labels.manifest.json").read_text())
    assert manifest["labeler"]["quality"] == "pred_quality"
    assert len(labels["images"]) == 4
    assert check_against(model, network, labels, images) > 0
    assert_stock_mask_rcnn_trains(output, images, files, tmp_path)


def labeler_of(config_file, cfg, *opts):
    """By the command; weights and the floor are those of the run."""
    command = load_command("label")
    given = ["--labeler", "detector", "--config-file", str(config_file), "--images", "."]
    given += ["--weights", f"{cfg.OUTPUT_DIR}/model_final.pth", "--output", "labels.json"]
    opts = ["DETECTOR.SCORE_THRESH", "0.2", *opts]
    return command.build_labeler(command.parse_args([*given, *opts]))


def pixels_of(files):
    return np.asarray(Image.open(files[1].parent / "3.png").convert("RGB"))


def test_a_rank_by_quality_changes_the_order_of_labels_and_nothing_else(run, files):
    """Thresholds and scores are those of the classes."""
    config_file = Path(run[0].OUTPUT_DIR, "config.yaml")
    plain, ranked = (
        labeler_of(config_file, run[0], "MODEL.PAIS.RANK_GAMMA", gamma).label(pixels_of(files))
        for gamma in ("0.0", "4.0")
    )
    assert len(plain) > 1
    assert sorted(map(repr, ranked)) == sorted(map(repr, plain))


def test_the_yaml_of_a_run_labels_as_its_saved_config_does(run, files, tmp_path):
    """Keys that the YAML leaves at their defaults are not in it."""
    cfg, _ = run
    saved = Path(cfg.OUTPUT_DIR, "config.yaml")
    stated = yaml.safe_load(saved.read_text())
    stated["MODEL"]["PAIS"] = {"MASK_IOU": {"FC_DIM": cfg.MODEL.PAIS.MASK_IOU.FC_DIM}}
    (tmp_path / "stated.yaml").write_text(yaml.safe_dump(stated))
    one, other = (labeler_of(path, cfg) for path in (saved, tmp_path / "stated.yaml"))
    labels = one.label(pixels_of(files))
    assert labels
    assert list(map(repr, other.label(pixels_of(files)))) == list(map(repr, labels))


def check_against(model, network, labels, images):
    """Scores and qualities of each image are those of the network; returns their number."""
    model.eval()
    asked = model.teacher if network == "teacher" else super(type(model), model)
    count = 0
    for image in labels["images"]:
        pixels = np.array(Image.open(Path(images, image["file_name"])))[:, :, ::-1].copy()
        with torch.no_grad():
            sample = {"image": torch.from_numpy(pixels).permute(2, 0, 1)}
            (found,) = asked.inference([{**sample, "height": SIDE, "width": SIDE}])
        found = found["instances"]
        found = found[found.scores >= 0.2]
        made = [
            annotation
            for annotation in labels["annotations"]
            if annotation["image_id"] == image["id"] and annotation["mask_source"] == "model"
        ]
        for name, values in (("score", found.scores), ("quality", found.pred_quality)):
            expected = {round(value, 4) for value in values.tolist()}
            assert {round(annotation[name], 4) for annotation in made} <= expected, name
        count += len(made)
    return count


def assert_stock_mask_rcnn_trains(output, images, files, folder):
    opts = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "INPUT.PIPELINE", "StockPipeline"]
    opts += ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "SOLVER.MAX_ITER", 1]
    opts += ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "DATASETS.TEST", "()"]
    cfg = tiny_config(files, folder / "stock", *PYRAMID, *opts)
    cfg.DATASETS.REGISTER = [{"name": str(folder), "json": str(output), "image_root": str(images)}]
    cfg.DATASETS.TRAIN = (str(folder),)
    register_datasets(cfg)
    (folder / "stock").mkdir()
    trained(cfg)
    (row,) = metrics(cfg)
    assert row["loss_mask"] > 0
