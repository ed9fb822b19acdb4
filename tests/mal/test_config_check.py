"""Which values of MODEL.MAL are refused before a run, and that no config of ours is."""

from pathlib import Path

import pytest

import mal.data
import mal.pretext
from mal.config_check import check_mal_config
from mal.mask_auto_labeler import MaskAutoLabeler
from mal.pretext import MaskPretrainer
from masksmith import new_config
from pseudolabel.errors import DataError
from pseudolabel.quality import MEASURES

CONFIGS = Path(__file__).parents[2] / "configs"
NAN = float("nan")


def config(**values):
    """The default config with some keys of MODEL.MAL; a dot is written as two underscores."""
    cfg = new_config()
    pairs = [item for key, value in values.items() for item in (key.replace("__", "."), value)]
    cfg.MODEL.MAL.merge_from_list(pairs)
    return cfg


REFUSED = [
    ({"CROP_SIZE": 0}, "CROP_SIZE: cannot be 0. Remedy: use 1 or more"),
    ({"MAP_SIZE": 0}, "MAP_SIZE"),
    ({"MARGIN": -0.1}, "MARGIN: cannot be -0.1. Remedy: use 0 or more"),
    ({"TEST_MARGIN": NAN}, "TEST_MARGIN: cannot be nan"),
    ({"BORDER": "mirror"}, "BORDER: cannot be 'mirror'. Remedy: use one of wrap, reflect, repl"),
    ({"CROPS_PER_IMAGE": 0}, "CROPS_PER_IMAGE: cannot be 0. Remedy: use 1 or more"),
    ({"SUPERVISION": "point"}, "SUPERVISION: cannot be 'point'. Remedy: use one of box, mask"),
    ({"IMAGE_CACHE": -1}, "IMAGE_CACHE"),
    ({"ENCODER__DROP_PATH": 1.0}, "ENCODER.DROP_PATH: .*0 to below 1"),  # nothing would be left
    ({"MIL_WEIGHT": -4.0}, "MIL_WEIGHT"),
    ({"MIL_WARMUP": -1}, "MIL_WARMUP"),
    ({"CRF_WEIGHT": float("inf")}, "CRF_WEIGHT"),
    ({"CRF_WARMUP": -1}, "CRF_WARMUP"),
    ({"CRF__ZETA": 0.0}, "CRF.ZETA: cannot be 0.0. Remedy: use a number above 0"),
    ({"CRF__OMEGA": -1.0}, "CRF.OMEGA"),
    ({"CRF__KERNEL_SIZE": 4}, "CRF.KERNEL_SIZE: cannot be 4. Remedy: use an odd number"),
    ({"CRF__KERNEL_SIZE": -3}, "CRF.KERNEL_SIZE"),
    ({"CRF__ITERATIONS": -1}, "CRF.ITERATIONS"),
    ({"CRF__GUIDANCE": "grey"}, "CRF.GUIDANCE: .*use one of student, clean"),
    ({"CRF__UNARY": -0.5}, "CRF.UNARY"),
    ({"CRF__LOW": 0.0}, "CRF.LOW and CRF.HIGH: cannot be 0.0, 0.9"),  # log 0
    ({"CRF__HIGH": 1.0}, "CRF.LOW and CRF.HIGH: cannot be 0.1, 1.0"),
    ({"CRF__LOW": 0.6, "CRF__HIGH": 0.4}, "CRF.LOW and CRF.HIGH"),
    ({"TEACHER_MOMENTUM": 1.5}, "TEACHER_MOMENTUM: .*from 0 to 1"),
    ({"TEST__NETWORK": "both"}, "TEST.NETWORK: .*use one of student, teacher"),
    ({"TEST__THRESHOLDS": (0.5, 0.5)}, "TEST.THRESHOLDS: .*give three numbers"),
    ({"TEST__THRESHOLDS": (0.5, 0.5, 50)}, "TEST.THRESHOLDS"),  # per cent
    ({"TEST__THRESHOLDS": (0.5, "x", 0.5)}, "TEST.THRESHOLDS"),
    ({"TEST__CRF_ITERATIONS": -1}, "TEST.CRF_ITERATIONS"),
    ({"TEST__CRF_SCALE": 0.0}, "TEST.CRF_SCALE"),
    ({"TEST__BATCH_SIZE": -1}, "TEST.BATCH_SIZE: cannot be -1. Remedy: use 1 or more"),
    ({"TEST__QUALITY": "best"}, "TEST.QUALITY: cannot be 'best'. Remedy: use one of agreement"),
    ({"MIN_AREA": 100.0, "MAX_AREA": 100.0}, "MIN_AREA and MAX_AREA: 100 and 100 leave no box"),
    # What contradicts each other.
    ({"TEACHER": False, "TEST__NETWORK": "teacher"}, "TEST.NETWORK: .*TEACHER False.*'student'"),
    ({"TEACHER": False}, "TEST.QUALITY: is 'estimate'.*use one of expected_iou, flip_agreement"),
    ({"TEACHER": False, "TEST__QUALITY": "soft_agreement"}, "TEST.QUALITY: is 'soft_agreement'"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_impossible_values_are_refused_by_name(values, message):
    with pytest.raises(DataError, match=rf"^MODEL\.MAL\.{message}"):
        check_mal_config(config(**values))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"CRF__ITERATIONS": 0, "CRF_WEIGHT": 0.0, "MIL_WARMUP": 0, "IMAGE_CACHE": 0},
        {"TEST__THRESHOLDS": (0, 0.5, 1)},
        {"TEST__THRESHOLDS": [0.1, 0.1, 0.1]},  # as a dumped config has them
        {"CRF__LOW": 0.5, "CRF__HIGH": 0.5},
        {"TEACHER_MOMENTUM": 0.0},
        *({"TEST__QUALITY": name} for name in MEASURES),
        {"TEACHER": False, "TEST__QUALITY": "expected_iou"},
        {"TEACHER": False, "TEST__QUALITY": "soft_flip_agreement"},  # the student, mirrored
    ],
)
def test_values_at_the_limit_are_taken(values):
    check_mal_config(config(**values))


@pytest.mark.parametrize("build", [MaskAutoLabeler, MaskPretrainer])
def test_every_model_of_mal_checks_before_it_is_built(build):
    with pytest.raises(DataError, match=r"TEST\.QUALITY: cannot be 'best'"):
        build(config(TEST__QUALITY="best"))


def test_a_config_is_refused_before_its_data_are_read():
    pipeline = mal.data.BoxCropPipeline()
    with pytest.raises(DataError, match="THRESHOLDS"):
        pipeline.samples_per_image(config(TEST__THRESHOLDS=(0.5,)))


@pytest.mark.parametrize("path", sorted((CONFIGS / "mal").rglob("*.yaml")), ids=lambda p: p.stem)
def test_configs_of_the_repository_pass(path):
    cfg = new_config()
    cfg.merge_from_file(str(path))
    check_mal_config(cfg)
