"""What the values of `MODEL.MAL.*` have to be, checked before anything is built or read."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from mal.crops import BORDERS
from pseudolabel.errors import DataError
from pseudolabel.quality import MEASURES

NETWORKS = ("student", "teacher")
GUIDANCES = ("student", "clean")
SUPERVISIONS = ("box", "mask")


class _Kind(NamedTuple):
    """A sort of value: what makes one, and what to write instead of another one."""

    holds: Callable[[Any], bool]
    remedy: str


def _one_of(names: tuple[str, ...]) -> _Kind:
    return _Kind(lambda value: value in names, f"use one of {', '.join(names)}")


def _three_shares(values: Any) -> bool:
    return len(values) == 3 and all(
        isinstance(value, int | float) and 0 <= value <= 1 for value in values
    )


# No comparison holds for a NaN, so that none of these takes one.
_COUNT = _Kind(lambda value: value >= 1, "use 1 or more")
_FROM_ZERO = _Kind(lambda value: 0 <= value < math.inf, "use 0 or more")
_POSITIVE = _Kind(lambda value: 0 < value < math.inf, "use a number above 0")
_SHARE = _Kind(lambda value: 0 <= value <= 1, "use a number from 0 to 1")
_RATE = _Kind(lambda value: 0 <= value < 1, "use a number from 0 to below 1")
_ODD = _Kind(lambda value: value >= 1 and value % 2 == 1, "use an odd number: 3, 5, 7")
_SHARES = _Kind(_three_shares, "give three numbers from 0 to 1: small, medium and large boxes")

# Keys of MODEL.MAL. Sizes of the networks are checked by those who build them.
_KINDS = {
    "CROP_SIZE": _COUNT,
    "MAP_SIZE": _COUNT,
    "MARGIN": _FROM_ZERO,
    "TEST_MARGIN": _FROM_ZERO,
    "BORDER": _one_of(BORDERS),
    "CROPS_PER_IMAGE": _COUNT,
    "SUPERVISION": _one_of(SUPERVISIONS),
    "IMAGE_CACHE": _FROM_ZERO,
    "ENCODER.DROP_PATH": _RATE,
    "MIL_WEIGHT": _FROM_ZERO,
    "MIL_WARMUP": _FROM_ZERO,
    "CRF_WEIGHT": _FROM_ZERO,
    "CRF_WARMUP": _FROM_ZERO,
    "CRF.ZETA": _POSITIVE,
    "CRF.OMEGA": _FROM_ZERO,
    "CRF.KERNEL_SIZE": _ODD,
    "CRF.ITERATIONS": _FROM_ZERO,
    "CRF.GUIDANCE": _one_of(GUIDANCES),
    "CRF.UNARY": _FROM_ZERO,
    "TEACHER_MOMENTUM": _SHARE,
    "TEST.NETWORK": _one_of(NETWORKS),
    "TEST.THRESHOLDS": _SHARES,
    "TEST.CRF_ITERATIONS": _FROM_ZERO,
    "TEST.CRF_SCALE": _POSITIVE,
    "TEST.BATCH_SIZE": _COUNT,
    "TEST.QUALITY": _one_of(tuple(sorted(MEASURES))),
}


def check_mal_config(cfg: CfgNode) -> None:
    """Refuses a config that would fail, or label nothing, only after hours.

    Args:
        cfg: with the keys of `add_mal_config`; is not changed.

    Raises:
        DataError: the first key whose value cannot be used, or keys that contradict each other.
    """
    mal = cfg.MODEL.MAL
    for key, kind in _KINDS.items():
        value = reduce(lambda node, part: node[part], key.split("."), mal)
        if not kind.holds(value):
            raise _refusal(key, f"cannot be {value!r}", kind.remedy)
    if not mal.MIN_AREA < mal.MAX_AREA:
        areas = f"{mal.MIN_AREA:g} and {mal.MAX_AREA:g}"
        raise _refusal("MIN_AREA and MAX_AREA", f"{areas} leave no box", "use a smaller MIN_AREA")
    low, high = mal.CRF.LOW, mal.CRF.HIGH
    if not 0 < low <= high < 1:
        raise _refusal("CRF.LOW and CRF.HIGH", f"cannot be {low!r}, {high!r}", "use .1 and .9")
    if not mal.TEACHER:
        _check_without_teacher(mal)


def _check_without_teacher(mal: CfgNode) -> None:
    """What the student labels with has to do without a second network."""
    if mal.TEST.NETWORK == "teacher":
        problem = "names a network that MODEL.MAL.TEACHER False leaves out"
        raise _refusal("TEST.NETWORK", problem, "use 'student'")
    if "other" in MEASURES[mal.TEST.QUALITY].views:
        alone = sorted(name for name, measure in MEASURES.items() if "other" not in measure.views)
        problem = (
            f"is {mal.TEST.QUALITY!r}, which compares student and teacher; MODEL.MAL.TEACHER False"
            " leaves one network"
        )
        raise _refusal("TEST.QUALITY", problem, f"use one of {', '.join(alone)}")


def _refusal(key: str, problem: str, remedy: str) -> DataError:
    return DataError(f"MODEL.MAL.{key}", problem, remedy)
