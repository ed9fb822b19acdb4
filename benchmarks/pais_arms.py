"""What is compared on nuclei: PAIS, its rivals, and settings of it that may be better."""

from dataclasses import dataclass, field
from typing import Any

START = "start"
"""Name of the run on labelled images alone from which all arms begin."""


@dataclass(frozen=True)
class Arm:
    """A line of the comparison.

    Attributes:
        name: of its folders and for --arms.
        changes: the keys in which it differs from PAIS as the YAML has it, with their values.
        evaluates: name of the arm whose last weights it evaluates; "" is trained.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    evaluates: str = ""


SUPERVISED = {"MODEL.PAIS.ENABLED": False}
# Of {.5, .7, .9}, by a fold outside the table.
HARD = {"MODEL.PAIS.DALOSS": False, "MODEL.PAIS.SCORE_FLOOR": 0.7}
# Qualities lie close together: from .70 to .88 these weights go from .14 to 2.2.
STEEP = {"MODEL.PAIS.MASK_COEF": 10.0, "MODEL.PAIS.MASK_POWER": 12.0}
STRONG = {
    "MODEL.PAIS.VIEWS.ROTATE": 90.0,
    "MODEL.PAIS.VIEWS.ERASE_SIDE": 0.4,
    "MODEL.PAIS.VIEWS.ERASE_PATCHES": (2, 6),
}
# Half as large again, in training and in testing; to be compared among themselves.
LARGE = {
    "INPUT.CROP.SIZE": [384, 384],
    "INPUT.MIN_SIZE_TRAIN": (307, 345, 384, 432, 480),
    "INPUT.MAX_SIZE_TRAIN": 768,
    "INPUT.MIN_SIZE_TEST": 384,
}
DEFAULT_ARMS = ("supervised", "hard", "pais")
ARMS = {
    arm.name: arm
    for arm in (
        Arm("supervised", SUPERVISED),
        Arm("hard", HARD),
        Arm("pais"),
        # Leads, for --arms.
        Arm("pais_weight_1", {"MODEL.PAIS.UNLABELLED_WEIGHT": 1.0}),
        Arm("pais_weight_2", {"MODEL.PAIS.UNLABELLED_WEIGHT": 2.0}),
        Arm("pais_class_weight", {"MODEL.PAIS.CLASS_WEIGHT": True}),
        Arm("pais_floor_7", {"MODEL.PAIS.SCORE_FLOOR": 0.7}),  # the weights at the floor of hard
        Arm("pais_no_ignore", {"MODEL.PAIS.NEGATIVE_WEIGHT": "none"}),
        Arm("pais_steep", STEEP),
        Arm("pais_strong", STRONG),
        Arm("supervised_large", {**SUPERVISED, **LARGE}),
        Arm("hard_large", {**HARD, **LARGE}),
        Arm("pais_large", LARGE),
        Arm("pais_ranked", {"MODEL.PAIS.RANK_GAMMA": 1.0}, evaluates="pais"),
        Arm("hard_ranked", {**HARD, "MODEL.PAIS.RANK_GAMMA": 1.0}, evaluates="hard"),
    )
}
