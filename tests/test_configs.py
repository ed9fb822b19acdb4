"""Every YAML of `configs/`, read with suspicion: keys, names, paths, schedules, and its model."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import mal.data
import mal.mask_auto_labeler
import mal.pretext  # noqa: F401  (these register meta-architectures and pipelines)
from mal.config import add_mal_config
from pseudolabel.config import add_masksmith_config, config_changes
from pseudolabel.pipeline import build_pipeline
from pseudolabel.registration import REQUIRED_KEYS

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
# What is run; the others are bases to inherit from.
RUNS = [path for path in FILES if path.parent.name != "_base_"]
# Folders that a user names. A path starts with one of them, or is an output or a committed file.
VARIABLES = {"DETECTRON2_DATASETS", "MASKSMITH_DATA"}
LOCAL = ("output/", "configs/")


def name_of(path):
    return path.relative_to(CONFIGS).as_posix()


every_file = pytest.mark.parametrize("path", FILES, ids=name_of)
every_run = pytest.mark.parametrize("path", RUNS, ids=name_of)


def load(path):
    cfg = get_cfg()
    add_masksmith_config(cfg)
    add_mal_config(cfg)
    cfg.merge_from_file(str(path), allow_unsafe=False)
    return cfg


def mappings(node):
    """All mappings of a YAML document, as nodes: a dictionary would have lost repeated keys."""
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from mappings(value)


def test_there_are_configs_to_test():
    found = {name_of(path) for path in RUNS}
    assert {"mal/sample.yaml", "mask_rcnn/sample.yaml", "mask_rcnn/cityscapes.yaml"} <= found
    assert not list(CONFIGS.rglob("*.yml"))


@every_file
def test_it_merges_and_survives_its_own_dump(path, tmp_path):
    """Unknown keys and wrong types fail in the merge; a run's config.yaml is the dump."""
    cfg = load(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(cfg.dump())
    assert config_changes(cfg.dump(), load(copy).dump()) == []


@every_file
def test_no_key_is_given_twice_and_the_file_is_short(path):
    text = path.read_text()
    for mapping in mappings(yaml.compose(text)):
        keys = [key.value for key, _ in mapping.value]
        assert len(keys) == len(set(keys)), f"{path}:{mapping.start_mark.line + 1}: {keys}"
    assert len(text.splitlines()) < 60
    assert text.startswith("# "), "begin with what the config is for"


def test_a_misspelt_key_is_refused(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("SOLVER:\n  BASE_RL: 0.1\n")
    with pytest.raises(KeyError, match=r"SOLVER\.BASE_RL"):
        load(path)


@every_run
def test_its_data_sets_are_registered_and_its_paths_are_nobodys(path):
    cfg = load(path)
    entries = cfg.DATASETS.REGISTER
    names = [entry["name"] for entry in entries]
    assert len(names) == len(set(names))
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= set(names)
    assert cfg.DATASETS.TRAIN
    for entry in entries:
        assert set(REQUIRED_KEYS) <= entry.keys() <= {*REQUIRED_KEYS, "format"}
        check_path(entry["json"])
        check_path(entry["image_root"])
    check_path(cfg.MODEL.MAL.ENCODER.WEIGHTS or "output/")
    weights = cfg.MODEL.WEIGHTS
    if not weights.startswith("detectron2://"):
        check_path(weights or "output/")


def check_path(text):
    variable = re.match(r"\$(\w+)/", text)
    assert variable is None or variable[1] in VARIABLES, text
    assert variable or text.startswith(LOCAL), text
    assert ".." not in text


def test_runs_do_not_share_an_output_folder():
    folders = [load(path).OUTPUT_DIR for path in RUNS]
    assert sorted(folders) == sorted(set(folders))
    assert all(folder.removeprefix("./").startswith("output/") for folder in folders)


@every_run
def test_its_schedule_fits(path):
    solver = load(path).SOLVER
    assert 0 < solver.WARMUP_ITERS < solver.MAX_ITER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        edges = [solver.WARMUP_ITERS, *solver.STEPS, solver.MAX_ITER]
        assert edges == sorted(set(edges)), "steps within the schedule, in order"
    else:
        # A cosine knows no steps; those it inherits must not be its own.
        assert "STEPS" not in yaml.safe_load(path.read_text()).get("SOLVER", {})
        assert solver.BASE_LR_END < solver.BASE_LR
    assert solver.IMS_PER_BATCH > 0


@every_run
def test_its_pipeline_and_model_exist(path):
    """Built without memory, so that a ViT-B or a ResNet-101 costs nothing."""
    cfg = load(path)
    cfg.MODEL.MAL.ENCODER.WEIGHTS = ""
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES or 3
    assert build_pipeline(cfg) is not None
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
