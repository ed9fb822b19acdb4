"""Every YAML of the project: keys, paths, schedule, and its model, built without memory."""

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from masksmith_projects.mask2former.config import check_config
from pseudolabel.config import config_changes
from pseudolabel.config_diff import differences
from pseudolabel.pipeline import build_pipeline
from tests.projects.mask2former.tiny_model import CONFIGS, read_config

FILES = sorted(CONFIGS.glob("*.yaml"))
RUNS = [path for path in FILES if path.name not in ("base.yaml", "small.yaml")]
# Millions of parameters without the class head, as published for 100 queries: R-50 44, Swin-T 47,
# Swin-S 69.
SIZES = {"R_50": 44.0, "swin_T": 47.4, "swin_S": 68.7}

every_run = pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)


def test_the_promised_ones_are_there():
    names = {path.stem for path in RUNS}
    backbones = ("R_50", "swin_T", "swin_S")
    assert {"nuclei", "sample", *(f"coco_{b}" for b in backbones)} <= names
    assert {f"lvis_v1_{b}" for b in backbones} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_short_and_survives_its_own_dump(path, tmp_path):
    text = path.read_text()
    assert text.startswith("# ")
    assert len(text.splitlines()) < 60
    cfg = read_config(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(cfg.dump())
    assert config_changes(cfg.dump(), read_config(copy).dump()) == []


@every_run
def test_its_data_sets_are_registered_and_its_paths_are_nobodys(path):
    cfg = read_config(path)
    names = {entry["name"] for entry in cfg.DATASETS.REGISTER}
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} == names
    for entry in cfg.DATASETS.REGISTER:
        for text in (entry["json"], entry["image_root"]):
            assert text.startswith(("$DETECTRON2_DATASETS/", "$MASKSMITH_DATA/", "output/"))
    weights = cfg.MODEL.WEIGHTS
    assert not weights or weights.startswith(("detectron2://", "output/"))


def test_runs_do_not_share_an_output_folder():
    folders = [read_config(path).OUTPUT_DIR for path in RUNS]
    assert len(set(folders)) == len(folders)
    assert all(folder.startswith("output/mask2former_") for folder in folders)


@every_run
def test_its_schedule_fits(path):
    solver = read_config(path).SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        edges = [solver.WARMUP_ITERS, *solver.STEPS, solver.MAX_ITER]
        assert edges == sorted(set(edges))
    else:
        assert solver.LR_SCHEDULER_NAME == "WarmupCosineLR"
        assert 0 < solver.WARMUP_ITERS < solver.MAX_ITER
        assert "STEPS" not in (yaml.safe_load(path.read_text()).get("SOLVER") or {})


@pytest.mark.parametrize("backbone", ["R_50", "swin_T", "swin_S"])
def test_lvis_differs_from_coco_in_data_and_queries_only(backbone):
    coco, lvis = (read_config(CONFIGS / f"{data}_{backbone}.yaml") for data in ("coco", "lvis_v1"))
    assert list(differences(coco, lvis)) == [
        *("DATALOADER.REPEAT_THRESHOLD", "DATALOADER.SAMPLER_TRAIN", "DATASETS.REGISTER"),
        *("DATASETS.TEST", "DATASETS.TRAIN", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"),
        *("OUTPUT_DIR", "TEST.DETECTIONS_PER_IMAGE"),
    ]


def test_the_optimizer_is_the_published_one_but_for_small_images():
    for path in RUNS:
        solver = read_config(path).SOLVER
        clip = solver.CLIP_GRADIENTS
        found = (solver.OPTIMIZER, solver.BACKBONE_MULTIPLIER, clip.CLIP_TYPE, clip.CLIP_VALUE)
        large = path.stem.startswith(("coco", "lvis"))
        expected = (0.1, "full_model", 0.01) if large else (1.0, "norm", 1.0)
        assert found == ("AdamW", *expected), path
        assert clip.ENABLED


# LVIS's are COCO's with more queries.
@pytest.mark.parametrize(
    "path", [p for p in RUNS if "lvis" not in p.stem], ids=lambda path: path.stem
)
def test_its_model_has_the_published_size(path):
    cfg = read_config(path)
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    # Published weights are loaded by name, which tests do not.
    cfg.MODEL.MASK_FORMER.BACKBONE_WEIGHTS = ""
    check_config(cfg)
    assert build_pipeline(cfg).has_class_heads
    with torch.device("meta"):
        model = build_model(cfg)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    expected = next((size for name, size in SIZES.items() if path.stem.endswith(name)), None)
    if expected is None:
        assert 0 < count < 30
    else:
        assert count == pytest.approx(expected, abs=0.5)
