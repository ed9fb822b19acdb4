"""Config keys of PAIS. Symbols: s class score, u mask quality of the teacher, w the weights."""

from typing import Any

from detectron2.config import CfgNode

from pseudolabel.errors import DataError

NETWORKS = ("teacher", "student")
NEGATIVE_WEIGHTS = ("teacher", "constant", "none")


def add_pais_config(cfg: CfgNode) -> None:
    """Adds `MODEL.PAIS.*` and `DATASETS.UNLABELLED` in place.

    Defaults are those of the released Mask R-CNN code at 1 % of COCO, where it states any.
    """
    # Images without annotations: names as in DATASETS.TRAIN. Only their files and sizes are read.
    cfg.DATASETS.UNLABELLED = ()

    pais = cfg.MODEL.PAIS = CfgNode()
    # False: the supervised baseline; DATASETS.TRAIN alone is learned from, all else is equal.
    pais.ENABLED = True
    # Factor of all losses on unlabelled images.
    pais.UNLABELLED_WEIGHT = 0.6
    # Iterations on labelled images alone before the teacher begins to teach. The paper: none.
    pais.BURN_IN_ITERS = 0
    _add_floor_keys(pais)
    _add_weight_keys(pais)
    _add_branch_keys(pais)
    _add_data_keys(pais)

    pais.EMA = CfgNode()
    # m: momentum of the teacher; iteration t uses min(m, 1 - 1 / (t + 1)).
    pais.EMA.MOMENTUM = 0.999
    # "student": a training begins with a teacher that is a copy of the student; "teacher": with a
    # student that is a copy of the teacher in MODEL.WEIGHTS.
    pais.EMA.START = "student"

    pais.TEST = CfgNode()
    # Which network answers: "teacher" or "student". Evaluation reports both.
    pais.TEST.NETWORK = "teacher"

    pais.LOG = CfgNode()
    # Iterations without any pseudo-label after which a warning names the likely causes, at the
    # latest after a quarter of those that may have some; 0: never.
    pais.LOG.WARN_AFTER = 500


def _add_floor_keys(pais: CfgNode) -> None:
    """Class scores that a pseudo-label must exceed."""
    # To be one at all.
    pais.SCORE_FLOOR = 0.5
    # To be an object for the losses of the proposals, and of the box and mask heads.
    pais.RPN_SCORE_FLOOR = 0.5
    pais.ROI_SCORE_FLOOR = 0.5


def _add_weight_keys(pais: CfgNode) -> None:
    """DALoss: what the teacher's quantities weigh."""
    # False: a hard threshold. Every pseudo-label above the floors weighs 1.
    pais.DALOSS = True
    # Masks weigh w_m(u) = MASK_COEF u^MASK_POWER; False: 1.
    pais.MASK_WEIGHT = True
    pais.MASK_COEF = 2.5
    pais.MASK_POWER = 4.0
    # Classes of positives weigh w_c(s) / w_c(1), with w_c(s) = CLASS_COEF min(s, CLASS_MAX)^
    # CLASS_POWER, and CLASS_FLOOR takes the place of all three floors. Not the released Mask R-CNN,
    # whose floor is where w_c saturates. CLASS_COEF cancels there; box-free models use w_c itself.
    pais.CLASS_WEIGHT = False
    pais.CLASS_COEF = 12.0
    pais.CLASS_MAX = 0.5
    pais.CLASS_POWER = 4.0
    pais.CLASS_FLOOR = 0.35
    # Classes of negatives weigh the teacher's probability of background there ("teacher"),
    # NEGATIVE_CONSTANT ("constant", that of box-free models) or 1 ("none").
    pais.NEGATIVE_WEIGHT = "teacher"
    pais.NEGATIVE_CONSTANT = 0.1225


def _add_branch_keys(pais: CfgNode) -> None:
    """Quality branches; both learn on labelled images alone."""
    pais.MASK_IOU = CfgNode()
    # Weight of the branch's loss in the mask head, and width of its hidden layer.
    pais.MASK_IOU.WEIGHT = 0.25
    pais.MASK_IOU.FC_DIM = 1024
    pais.BOX_IOU = CfgNode()
    # A branch of the box head that supervises its features; nothing reads what it predicts.
    pais.BOX_IOU.ENABLED = True
    pais.BOX_IOU.WEIGHT = 0.25
    # gamma: detections are ranked by score x quality^gamma; 0, the paper's, is the class score.
    pais.RANK_GAMMA = 0.0


def _add_data_keys(pais: CfgNode) -> None:
    """Batches and views of the images."""
    pais.LOADER = CfgNode()
    # Labelled to unlabelled images in a batch.
    pais.LOADER.RATIO = (1, 3)
    # "probability": each image is drawn labelled by that chance, at least one of each per process;
    # "fixed": exactly in that ratio.
    pais.LOADER.MODE = "probability"

    views = pais.VIEWS = CfgNode()
    # Operations of the strong view, each can be left out; COLOUR also of labelled images.
    views.COLOUR = True
    views.GEOMETRIC = True
    views.ERASE = True
    # Value of pixels that a geometric operation or an erasing leaves without an image.
    views.FILL = 125
    # Shift along one axis, as a fraction of that side.
    views.SHIFT = 0.1
    # Rotation, and shear of either axis, in degrees.
    views.ROTATE = 30.0
    views.SHEAR = 30.0
    # Boxes of pseudo-labels in the strong view: False, the hulls of the mapped boxes, as released;
    # True, the boxes of the mapped masks.
    views.TIGHT_BOXES = False
    # Rectangles erased: fewest and most; largest height and width, as a fraction of the image's.
    views.ERASE_PATCHES = (1, 4)
    views.ERASE_SIDE = 0.2


def check_config(cfg: CfgNode) -> None:
    """Refuses values of weights, floors and views that would be misread without a word.

    Raises:
        DataError: naming the key and the remedy.
    """
    pais = cfg.MODEL.PAIS
    scores = ("SCORE_FLOOR", "RPN_SCORE_FLOOR", "ROI_SCORE_FLOOR", "CLASS_FLOOR", "CLASS_MAX")
    positive = ("MASK_COEF", "CLASS_COEF")
    not_negative = ("MASK_POWER", "CLASS_POWER", "NEGATIVE_CONSTANT", "RANK_GAMMA")
    not_negative += ("UNLABELLED_WEIGHT", "BURN_IN_ITERS")
    both = ("TEST.NETWORK", "EMA.START")
    rules = [
        *((key, 0 <= pais[key] <= 1, "is no score", "use 0 to 1") for key in scores),
        *((key, pais[key] > 0, "is no factor", "use a positive number") for key in positive),
        *((key, pais[key] >= 0, "is negative", "use 0 or more") for key in not_negative),
        ("CLASS_MAX", pais.CLASS_MAX > 0, "leaves no weight", "use more than 0"),
        (
            "NEGATIVE_WEIGHT",
            pais.NEGATIVE_WEIGHT in NEGATIVE_WEIGHTS,
            "is unknown",
            f"use one of {NEGATIVE_WEIGHTS}",
        ),
        ("EMA.MOMENTUM", 0 <= pais.EMA.MOMENTUM <= 1, "is no momentum", "use 0 to 1"),
        ("MASK_IOU.WEIGHT", pais.MASK_IOU.WEIGHT >= 0, "is negative", "use 0 or more"),
        ("BOX_IOU.WEIGHT", pais.BOX_IOU.WEIGHT >= 0, "is negative", "use 0 or more"),
        ("MASK_IOU.FC_DIM", pais.MASK_IOU.FC_DIM > 0, "is no width", "use 1 or more"),
        *(
            (key, _at(pais, key) in NETWORKS, "is unknown", f"use one of {NETWORKS}")
            for key in both
        ),
        *_view_rules(pais.VIEWS),
    ]
    for key, holds, problem, remedy in rules:
        if not holds:
            raise DataError(f"MODEL.PAIS.{key} {_at(pais, key)!r}", problem, remedy)


def _view_rules(views: CfgNode) -> list[tuple[str, bool, str, str]]:
    """Key, whether its value holds, problem and remedy."""
    share, patches = "use 0 to 1", tuple(views.ERASE_PATCHES)
    counts = len(patches) == 2 and all(type(count) is int for count in patches)
    return [
        ("VIEWS.SHIFT", 0 <= views.SHIFT <= 1, "is no share of a side", share),
        ("VIEWS.ROTATE", 0 <= views.ROTATE <= 180, "is no largest angle", "use 0 to 180"),
        # At a right angle nothing is left of an image.
        ("VIEWS.SHEAR", 0 <= views.SHEAR < 90, "is no largest angle", "use 0 to below 90"),
        ("VIEWS.ERASE_SIDE", 0 <= views.ERASE_SIDE <= 1, "is no share of a side", share),
        (
            "VIEWS.ERASE_PATCHES",
            counts and 0 <= patches[0] <= patches[1],
            "are no fewest and most patches",
            "use two whole numbers, such as (1, 4)",
        ),
    ]


def warn_after(cfg: CfgNode) -> int:
    """Iterations without a pseudo-label before a warning, which a short schedule sees as well."""
    pais = cfg.MODEL.PAIS
    teaching = cfg.SOLVER.MAX_ITER - pais.BURN_IN_ITERS
    return min(pais.LOG.WARN_AFTER, max(teaching // 4, 1))


def _at(node: CfgNode, key: str) -> Any:
    for part in key.split("."):
        node = node[part]
    return node
