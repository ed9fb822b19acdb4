"""Every YAML of `configs/`, read with suspicion: keys, names, paths, schedules, and its model."""

import json
import re
from dataclasses import replace
from functools import cache, reduce
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model

from mal import crops
from masksmith import new_config, register_methods
from pais.config import warn_after
from pais.daloss import DALoss, score_floors
from pseudolabel.config import config_changes
from pseudolabel.config_diff import differences
from pseudolabel.pipeline import build_pipeline
from pseudolabel.quality import MEASURES
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


@cache
def load(path):
    """The merged config; all tests share it and clone it before they change it."""
    register_methods()
    cfg = new_config()
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


@pytest.mark.parametrize(
    "path", [p for p in FILES if "ablations" not in p.parent.name], ids=name_of
)
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
    assert len(text.splitlines()) < (80 if path.parent.name == "_base_" else 60)
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
    encoder = cfg.MODEL.MAL.ENCODER.WEIGHTS
    if not encoder.startswith("timm:"):
        check_path(encoder or "output/")
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


# Of the ablations, only those with another network than their parent are built; not the large
# ones, which would take seconds each.
OWN_NETWORK = ("encoder_deit_small", "decoder_", "stem_", "class_aware", "teacher_off", "ceiling")
BUILT = [
    path
    for path in RUNS
    if "ablations" not in path.parent.name
    or (path.parent.name, path.stem) == ("ablations_nuclei", "decoder_query")
    or (path.parent.name == "ablations" and path.stem.startswith(OWN_NETWORK))
]


@pytest.mark.parametrize("path", BUILT, ids=name_of)
def test_its_pipeline_and_model_exist(path):
    """Built without memory, so that a ViT-B or a ResNet-101 costs nothing."""
    cfg = load(path).clone()
    cfg.MODEL.MAL.ENCODER.WEIGHTS = ""
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES or 3
    assert build_pipeline(cfg) is not None
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0


# Per config: the merged keys in which it may differ from its parent, OUTPUT_DIR aside. A parent is
# what `_BASE_` names. MODEL.MAL is left out of names that begin with a dot.
ENCODER = {".ENCODER.NAME", ".ENCODER.WEIGHTS"}
MARGINS = {".MARGIN", ".TEST_MARGIN"}
ABLATIONS = {
    "encoder_mae_large": ENCODER,
    "encoder_deit_small": ENCODER,
    "encoder_deit_base": {".ENCODER.WEIGHTS"},
    "encoder_dino_small": ENCODER,
    "encoder_dinov2_base": {*ENCODER, ".CROP_SIZE"},  # patches of 14 px do not divide 512
    "encoder_convnext_base": ENCODER,
    "encoder_swin_base": ENCODER,
    "encoder_random": {".ENCODER.WEIGHTS"},
    "stem_conv": {".ENCODER.STEM"},
    "decoder_fully_connected": {".DECODER.NAME"},
    "decoder_fully_convolutional": {".DECODER.NAME"},
    "decoder_query": {".DECODER.NAME"},
    "class_aware": {".DECODER.NUM_CLASSES"},
    "no_size_bins": {".DECODER.SCALES"},
    **{f"margin_{theta}": MARGINS for theta in (0.6, 0.8, "1.0", 1.4, 1.6)},
    "margin_independent": {*MARGINS, ".MARGIN_GATED"},  # theta of the notes is a factor
    "border_reflect": {".BORDER"},
    "border_replicate": {".BORDER"},
    "mil_weight_2": {".MIL_WEIGHT"},
    "mil_weight_8": {".MIL_WEIGHT"},
    "crf_weight_0.25": {".CRF_WEIGHT"},
    "crf_weight_1": {".CRF_WEIGHT"},
    "crf_off": {".CRF_WEIGHT"},
    "crf_paper_kernel": {".CRF.ZETA", ".CRF.OMEGA"},  # both; the next two change one each
    "crf_zeta_0.5": {".CRF.ZETA"},
    "crf_omega_2": {".CRF.OMEGA"},
    "crf_unary": {".CRF.UNARY"},
    "crf_clean_guidance": {".CRF.GUIDANCE"},
    "crf_at_test": {".TEST.CRF_ITERATIONS"},
    "teacher_off": {".TEACHER", ".TEST.QUALITY"},  # a measure of one network
    "label_teacher": {".TEST.NETWORK"},
    "threshold_0.3": {".TEST.THRESHOLDS"},
    "threshold_0.5": {".TEST.THRESHOLDS"},
    "small_boxes": {".MIN_AREA"},
    "ceiling": {".SUPERVISION"},
}
NUCLEI = {
    "crf_off": {".CRF_WEIGHT"},
    "crf_at_test": {".TEST.CRF_ITERATIONS"},
    "random_init": {".ENCODER.WEIGHTS"},
    "decoder_fully_connected": {".DECODER.NAME"},
    "decoder_fully_convolutional": {".DECODER.NAME"},
    "decoder_query": {".DECODER.NAME"},
    "margin_0.6": MARGINS,
    "margin_1.8": MARGINS,
    **{f"threshold_{t}": {".TEST.THRESHOLDS"} for t in (0.1, 0.3, 0.7)},
    # A schedule to converge in, and the evaluation that tells whether it has.
    "ceiling": {".SUPERVISION", "SOLVER.MAX_ITER", "TEST.EVAL_PERIOD"},
}
# MODEL.PAIS is left out here.
PAIS = {
    "hard_threshold_0.5": {"DALOSS"},
    "hard_threshold_0.7": {"DALOSS", "SCORE_FLOOR"},
    "hard_threshold_0.9": {"DALOSS", "SCORE_FLOOR"},
    "no_mask_weight": {"MASK_WEIGHT"},
    "no_class_weight": {"NEGATIVE_WEIGHT"},
    "negative_constant": {"NEGATIVE_WEIGHT"},
    "class_weight": {"CLASS_WEIGHT"},
    "power_2": {"MASK_POWER", "CLASS_POWER"},
    "power_3": {"MASK_POWER", "CLASS_POWER"},
    "power_3_coef_1": {"MASK_COEF"},  # its parent is power_3
    "no_box_iou": {"BOX_IOU.ENABLED"},
    "rank_by_quality": {"RANK_GAMMA"},
    "tight_boxes": {"VIEWS.TIGHT_BOXES"},
}
DEEPER = {"MODEL.WEIGHTS", "MODEL.RESNETS.DEPTH"}
CASCADE = {"MODEL.ROI_HEADS.NAME", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"}
LONGER = {"SOLVER.STEPS", "SOLVER.MAX_ITER"}
MAY_DIFFER = {
    **{f"mal/ablations/{name}.yaml": keys for name, keys in ABLATIONS.items()},
    **{f"mal/ablations_nuclei/{name}.yaml": keys for name, keys in NUCLEI.items()},
    **{
        f"pais/ablations/{name}.yaml": {f"MODEL.PAIS.{key}" for key in keys}
        for name, keys in PAIS.items()
    },
    "mask_rcnn/coco_R_50_FPN_1x.yaml": {"MODEL.WEIGHTS", "DATASETS.REGISTER"}
    | {"DATASETS.TRAIN", "DATASETS.TEST"},
    "mask_rcnn/coco_R_50_FPN_3x.yaml": LONGER,
    "mask_rcnn/coco_R_101_FPN_1x.yaml": DEEPER,
    "mask_rcnn/coco_R_101_FPN_3x.yaml": DEEPER,
    "mask_rcnn/lvis_v1_R_101_FPN_1x.yaml": DEEPER,
    "cascade_mask_rcnn/coco_R_50_FPN_1x.yaml": CASCADE | {"MODEL.RPN.POST_NMS_TOPK_TRAIN"},
    "cascade_mask_rcnn/coco_R_50_FPN_3x.yaml": LONGER,
    "cascade_mask_rcnn/nuclei.yaml": CASCADE,
}


@pytest.mark.parametrize("name", sorted(MAY_DIFFER))
def test_it_differs_from_its_parent_in_these_keys_alone(name):
    path = CONFIGS / name
    parent = path.parent / yaml.safe_load(path.read_text())["_BASE_"]
    expected = {f"MODEL.MAL{key}" if key[0] == "." else key for key in MAY_DIFFER[name]}
    assert differences(load(parent), load(path)).keys() == {*expected, "OUTPUT_DIR"}


def test_rows_of_the_pais_table_hold_what_their_names_say():
    """The weights that the rows stand for, by the function that the heads use."""
    expected = {  # weights of a mask of quality .6, a positive of score .4, a negative of .3
        "hard_threshold_0.5": (1.0, 1.0, 0.3, 0.5),
        "hard_threshold_0.7": (1.0, 1.0, 0.3, 0.7),
        "hard_threshold_0.9": (1.0, 1.0, 0.3, 0.9),
        "negative_constant": (0.324, 1.0, 0.1225, 0.5),
        "no_box_iou": (0.324, 1.0, 0.3, 0.5),
        "rank_by_quality": (0.324, 1.0, 0.3, 0.5),
        "tight_boxes": (0.324, 1.0, 0.3, 0.5),
        "no_mask_weight": (1.0, 1.0, 0.3, 0.5),
        "no_class_weight": (0.324, 1.0, 1.0, 0.5),
        "class_weight": (0.324, 0.4096, 0.3, 0.35),
        "power_2": (0.9, 1.0, 0.3, 0.5),
        "power_3": (0.54, 1.0, 0.3, 0.5),
        "power_3_coef_1": (0.216, 1.0, 0.3, 0.5),
    }
    assert expected.keys() == PAIS.keys()
    for name, row in expected.items():
        pais = load(CONFIGS / f"pais/ablations/{name}.yaml").MODEL.PAIS
        no_weights = pais.BOX_IOU.ENABLED, bool(pais.RANK_GAMMA), pais.VIEWS.TIGHT_BOXES
        named = name != "no_box_iou", name == "rank_by_quality", name == "tight_boxes"
        assert no_weights == named, name
        weights = DALoss.from_config(pais)
        found = (
            weights.masks(torch.tensor(0.6)),
            weights.positives(torch.tensor(0.4)),
            weights.negatives_of(torch.tensor(0.3)),
            score_floors(pais).roi,
        )
        assert [float(value) for value in found] == pytest.approx(row, rel=1e-5), name
        # Where classes are weighted as well, they are so by the same power.
        by_class = replace(weights, enabled=True, use_class_weight=True)
        power = 2 if name == "power_2" else 3 if name.startswith("power_3") else 4
        assert float(by_class.positives(torch.tensor(0.4))) == pytest.approx(0.8**power), name


def test_the_warning_of_missing_pseudo_labels_can_come_in_every_run():
    for path in RUNS:
        cfg = load(path)
        if cfg.MODEL.META_ARCHITECTURE == "SemiSupervisedRCNN" and cfg.MODEL.PAIS.ENABLED:
            teaching = cfg.SOLVER.MAX_ITER - cfg.MODEL.PAIS.BURN_IN_ITERS
            assert 0 < warn_after(cfg) <= teaching / 2, path


def test_every_ablation_is_listed():
    folders = {"ablations", "ablations_nuclei", "cascade_mask_rcnn"}
    found = {name_of(path) for path in RUNS if path.parent.name in folders}
    assert found <= MAY_DIFFER.keys()


def mal_runs():
    """Configs of MAL with their paths."""
    return [(path, load(path)) for path in RUNS if path.relative_to(CONFIGS).parts[0] == "mal"]


def test_a_margin_of_training_and_test_belong_together():
    """The crop at test is as large as the mean of the training crops, in all rows."""
    mal = [(path.name, cfg.MODEL.MAL) for path, cfg in mal_runs()]
    seen = {(m.MARGIN, m.MARGIN_GATED, m.TEST_MARGIN): name for name, m in mal}
    assert (0.2, False, 0.2) in seen, "sides drawn alone"
    box = (0, 0, 10_000, 10_000)
    for (margin, gated, at_test), name in seen.items():
        rng = np.random.default_rng(0)
        windows = [crops.train_window(box, rng, margin, gated) for _ in range(1000)]
        mean = np.mean([(window.height, window.width) for window in windows])
        assert mean == pytest.approx(crops.test_window(box, at_test).width, rel=0.01), name


def test_without_a_teacher_the_student_can_label():
    """Such a run would train for hours and then label nothing."""
    alone = [cfg.MODEL.MAL.TEST for _, cfg in mal_runs() if not cfg.MODEL.MAL.TEACHER]
    assert {test.NETWORK for test in alone} == {"student"}
    assert not [test for test in alone if "other" in MEASURES[test.QUALITY].views]


def test_the_ceiling_is_evaluated_at_three_quarters_of_a_longer_schedule():
    """Its last quarter tells whether it has converged; the rows beside it have half as long."""
    ceiling = load(CONFIGS / "mal/ablations_nuclei/ceiling.yaml")
    assert ceiling.SOLVER.MAX_ITER >= 2 * load(CONFIGS / "mal/nuclei.yaml").SOLVER.MAX_ITER
    assert ceiling.TEST.EVAL_PERIOD == 0.75 * ceiling.SOLVER.MAX_ITER


# Keys of MODEL.MAL by the fact sheet: of the released code, but for the stem (its section 9).
PAPER = {
    **{"CROP_SIZE": 512, "MAP_SIZE": 128, "MIN_AREA": 2048, "MAX_AREA": 1e10},
    **{"MARGIN": 1.2, "MARGIN_GATED": True, "TEST_MARGIN": 0.6},
    **{"BORDER": "wrap", "BOX_INCLUSIVE": True, "SUPERVISION": "box"},
    **{"ENCODER.NAME": "vit_base_patch16_224", "ENCODER.DROP_PATH": 0, "ENCODER.STEM": "patch"},
    "ENCODER.WEIGHTS": "timm:vit_base_patch16_224.mae",
    **{"DECODER.NAME": "attention", "DECODER.HIDDEN_DIM": 256, "DECODER.OUT_DIM": 256},
    **{"DECODER.NUM_CLASSES": 0, "DECODER.NUM_CONVS": 4},
    **{"DECODER.SCALES": (0.5, 1, 2), "DECODER.UPSAMPLE": 2},
    **{"MIL_WEIGHT": 4, "MIL_WARMUP": 1000, "CRF_WEIGHT": 0.5, "CRF_WARMUP": 4000},
    **{"CRF.ZETA": 0.1, "CRF.OMEGA": 1, "CRF.KERNEL_SIZE": 3, "CRF.ITERATIONS": 100},
    **{"CRF.GUIDANCE": "student", "CRF.UNARY": 0, "CRF.LOW": 0.1, "CRF.HIGH": 0.9},
    **{"TEACHER": True, "TEACHER_MOMENTUM": 0.996},
    **{"TEST.NETWORK": "student", "TEST.THRESHOLDS": (0.1, 0.1, 0.1), "TEST.CRF_ITERATIONS": 0},
}


@pytest.mark.parametrize("name", ["coco", "lvis_v1"])
def test_the_paper_configs_hold_the_papers_values(name):
    """Once more, from the fact sheet and independent of the files."""
    cfg = load(CONFIGS / f"mal/{name}_vit_base.yaml")
    own, solver = cfg.MODEL.MAL, cfg.SOLVER
    found = {key: reduce(lambda node, part: node[part], key.split("."), own) for key in PAPER}
    assert found == PAPER
    # 8 GPUs x 4 crops; one epoch of ten warms up; the cosine ends at a fifth.
    assert solver.IMS_PER_BATCH * own.CROPS_PER_IMAGE == 32
    assert solver.LR_PER_SAMPLE * 32 == pytest.approx(solver.BASE_LR) == 4.8e-5
    assert pytest.approx(0.2 * solver.BASE_LR) == solver.BASE_LR_END
    assert solver.WARMUP_ITERS == solver.MAX_ITER / 10
    assert (solver.WEIGHT_DECAY, solver.BETAS, solver.EPS) == (5e-4, (0.9, 0.9), 1e-8)
    assert (solver.OPTIMIZER, solver.AMP.ENABLED) == ("AdamW", True)
    assert (solver.LR_SCHEDULER_NAME, solver.WARMUP_FACTOR) == ("WarmupCosineLR", 0)


# Annotations of the training file, crowds among them; a sample of it.
COUNTS = {
    "coco": (860_000, "coco_dev/annotations/instances_train.json"),
    "lvis_v1": (1_270_000, "lvis_dev/annotations/lvis_v0.5_val_subset.json"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_paper_configs_run_for_ten_epochs_of_what_they_train_on(name, data_dir):
    """An epoch is over the boxes above MIN_AREA: 1.8 and 2.8 times fewer than all."""
    cfg = load(CONFIGS / f"mal/{name}_vit_base.yaml")
    total, sample = COUNTS[name]
    boxes = json.loads((data_dir / sample).read_text())["annotations"]
    areas = [np.prod(box["bbox"][2:]) for box in boxes if not box.get("iscrowd", 0)]
    epoch = total * (np.array(areas) > 2048).sum() / len(boxes) / 32
    assert pytest.approx(10 * epoch, rel=0.01) == cfg.SOLVER.MAX_ITER


# Config; schedule and what else Detectron2's model of that name holds.
STOCK = [
    ("mask_rcnn/coco_R_50_FPN_1x", 50, (60000, 80000), 90000, 1000),
    ("mask_rcnn/coco_R_50_FPN_3x", 50, (210000, 250000), 270000, 1000),
    ("mask_rcnn/coco_R_101_FPN_3x", 101, (210000, 250000), 270000, 1000),
    ("mask_rcnn/lvis_v1_R_101_FPN_1x", 101, (120000, 160000), 180000, 1000),
    ("cascade_mask_rcnn/coco_R_50_FPN_1x", 50, (60000, 80000), 90000, 2000),
    ("cascade_mask_rcnn/coco_R_50_FPN_3x", 50, (210000, 250000), 270000, 2000),
]


@pytest.mark.parametrize(("name", "depth", "steps", "iterations", "proposals"), STOCK)
def test_stock_models_hold_stock_values(name, depth, steps, iterations, proposals):
    cfg = load(CONFIGS / f"{name}.yaml")
    assert f"detectron2://ImageNetPretrained/MSRA/R-{depth}.pkl" == cfg.MODEL.WEIGHTS
    assert (depth, proposals) == (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN)
    assert (steps, iterations) == (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.02)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    # RLE masks are bitmaps; Detectron2's default would refuse them.
    assert cfg.INPUT.MASK_FORMAT == "bitmask"
