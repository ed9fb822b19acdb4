"""Config keys of Mask2Former. Names and values are those of the published COCO instance model."""

from collections.abc import Iterator
from operator import attrgetter

from detectron2.config import CfgNode

from pseudolabel.errors import DataError

BACKBONES = ("detectron2", "swin", "resnet")
RESNET_BLOCKS = ("basic", "bottleneck")
LOSS_WEIGHTS = ("CLASS_WEIGHT", "MASK_WEIGHT", "DICE_WEIGHT")
# Keys that count something.
COUNTS = (
    *("SWIN.EMBED_DIM", "SWIN.WINDOW_SIZE", "RESNET.STEM_DIM"),
    *("CONVS_DIM", "MASK_DIM", "TRANSFORMER_ENC_LAYERS", "ENC_DIM_FEEDFORWARD"),
    *("HIDDEN_DIM", "NUM_OBJECT_QUERIES", "NHEADS", "DIM_FEEDFORWARD", "TRAIN_NUM_POINTS"),
)
# Keys that count something in each of the four stages of a backbone.
STAGE_COUNTS = ("SWIN.DEPTHS", "SWIN.NUM_HEADS", "RESNET.WIDTHS", "RESNET.DEPTHS")

# Key below MODEL.MASK_FORMER, whether it is sound, problem, remedy.
Rule = tuple[str, bool, str, str]


def add_mask2former_config(cfg: CfgNode) -> None:
    """Adds `MODEL.MASK_FORMER.*` and `INPUT.LSJ.*` in place.

    The number of classes is `MODEL.ROI_HEADS.NUM_CLASSES`, as for every model with class heads.
    """
    model = cfg.MODEL.MASK_FORMER = CfgNode()
    _add_backbone_keys(model)
    _add_network_keys(model)
    _add_loss_keys(model)

    # Large-scale jitter: the image is scaled to fit MIN_SCALE to MAX_SCALE times a square of SIZE
    # pixels, of which SIZE x SIZE are cut out or padded up to. 0: INPUT.MIN_SIZE_TRAIN and CROP.
    cfg.INPUT.LSJ = CfgNode()
    cfg.INPUT.LSJ.SIZE = 0
    cfg.INPUT.LSJ.MIN_SCALE = 0.1
    cfg.INPUT.LSJ.MAX_SCALE = 2.0


def _add_backbone_keys(model: CfgNode) -> None:
    # "detectron2": what MODEL.BACKBONE.NAME builds; "swin" or "resnet": the library's own.
    model.BACKBONE = "detectron2"
    # Detectron2's backbone: its maps of stride 4, 8, 16 and 32.
    model.IN_FEATURES = ("res2", "res3", "res4", "res5")
    # The library's Swin; this is Swin-T.
    model.SWIN = CfgNode()
    model.SWIN.EMBED_DIM = 96
    model.SWIN.DEPTHS = (2, 2, 6, 2)
    model.SWIN.NUM_HEADS = (3, 6, 12, 24)
    model.SWIN.WINDOW_SIZE = 7
    model.SWIN.DROP_PATH_RATE = 0.3
    # The library's ResNet; this is R-50.
    model.RESNET = CfgNode()
    model.RESNET.STEM_DIM = 64
    model.RESNET.WIDTHS = (256, 512, 1024, 2048)
    model.RESNET.DEPTHS = (3, 4, 6, 3)
    model.RESNET.BLOCK = "bottleneck"  # or "basic"
    # Weights of the library's backbone, or of the whole model (but for a class head of other
    # classes), for the start: a local folder, or a name OWNER/NAME on the library's hub. Where both
    # are "", numbers are random; where MODEL.WEIGHTS is given, neither is read.
    model.BACKBONE_WEIGHTS = ""
    model.PRETRAINED = ""
    # Batch norm of the library's ResNet keeps its loaded statistics and factors.
    model.FREEZE_NORM = True


def _add_network_keys(model: CfgNode) -> None:
    # Pixel decoder: channels (a multiple of 32), channels of the mask features, layers, width.
    model.CONVS_DIM = 256
    model.MASK_DIM = 256
    model.TRANSFORMER_ENC_LAYERS = 6
    model.ENC_DIM_FEEDFORWARD = 1024
    # Transformer decoder. DEC_LAYERS counts the prediction before the first layer as well.
    model.HIDDEN_DIM = 256
    model.NUM_OBJECT_QUERIES = 100
    model.DEC_LAYERS = 10
    model.NHEADS = 8  # of the pixel decoder too
    model.DIM_FEEDFORWARD = 2048
    model.PRE_NORM = False
    model.ENFORCE_INPUT_PROJ = False
    # Images are padded to a multiple of this many pixels.
    model.SIZE_DIVISIBILITY = 32


def _add_loss_keys(model: CfgNode) -> None:
    # lambda_cls, lambda_ce, lambda_dice: weights of the losses, and of the costs of the matching.
    model.CLASS_WEIGHT = 2.0
    model.MASK_WEIGHT = 5.0
    model.DICE_WEIGHT = 5.0
    # Weight of a query without an object in the class loss.
    model.NO_OBJECT_WEIGHT = 0.1
    # Losses after every layer of the decoder.
    model.DEEP_SUPERVISION = True
    # K: points per mask on which masks are compared; drawn from OVERSAMPLE_RATIO times as many, of
    # which IMPORTANCE_SAMPLE_RATIO x K are the most uncertain ones.
    model.TRAIN_NUM_POINTS = 12544
    model.OVERSAMPLE_RATIO = 3.0
    model.IMPORTANCE_SAMPLE_RATIO = 0.75


def check_config(cfg: CfgNode) -> None:
    """Refuses at the start what the library would fail at in the first step, or misread.

    Raises:
        DataError: naming the key and the remedy.
    """
    model = cfg.MODEL.MASK_FORMER
    for rules in (_count_rules, _network_rules, _backbone_rules, _loss_rules):
        for key, sound, problem, remedy in rules(model):
            if not sound:
                value = attrgetter(key)(model)
                raise DataError(f"MODEL.MASK_FORMER.{key}", f"{value!r} {problem}", remedy)
    _check_stock_keys(cfg)


def _count_rules(model: CfgNode) -> Iterator[Rule]:
    for key in COUNTS:
        yield key, attrgetter(key)(model) > 0, "is too small", "use 1 or more"
    for key in STAGE_COUNTS:
        stages = attrgetter(key)(model)
        sound = len(stages) == 4 and all(value > 0 for value in stages)
        yield key, sound, "is no number per stage", "give four numbers of 1 or more"


def _network_rules(model: CfgNode) -> Iterator[Rule]:
    heads, hidden, channels = model.NHEADS, model.HIDDEN_DIM, model.CONVS_DIM
    uneven, another = f"is no multiple of NHEADS {heads}", "choose another of the two"
    groups = "round it: its group norms have 32 groups"
    stride = "is no multiple of 32, the stride of the last feature map"
    padding = model.SIZE_DIVISIBILITY
    yield "CONVS_DIM", channels % 32 == 0, "is no multiple of 32", groups
    yield "CONVS_DIM", channels % heads == 0, uneven, another
    yield "HIDDEN_DIM", hidden % heads == 0, uneven, another
    yield "HIDDEN_DIM", hidden % 4 == 0, "is no multiple of 4", "round it: sines of two axes"
    yield "DEC_LAYERS", model.DEC_LAYERS >= 2, "leaves no decoder layer", "use 2 or more"
    yield "SIZE_DIVISIBILITY", padding > 0 and padding % 32 == 0, stride, "round it up"


def _backbone_rules(model: CfgNode) -> Iterator[Rule]:
    known = f"use one of {BACKBONES}"
    yield "BACKBONE", model.BACKBONE in BACKBONES, "is no backbone", known
    block = model.RESNET.BLOCK in RESNET_BLOCKS
    yield "RESNET.BLOCK", block, "is no block", f"use one of {RESNET_BLOCKS}"
    # A Swin doubles its width from stage to stage.
    widths = [model.SWIN.EMBED_DIM * 2**stage for stage in range(4)]
    even = all(width % heads == 0 for width, heads in zip(widths, model.SWIN.NUM_HEADS))
    yield "SWIN.NUM_HEADS", even, f"do not divide the widths {widths}", "choose divisors"
    share = 0 <= model.SWIN.DROP_PATH_RATE < 1
    yield "SWIN.DROP_PATH_RATE", share, "is no share", "use a number from 0 to below 1"
    single = not (model.PRETRAINED and model.BACKBONE_WEIGHTS)
    problem = "is not read where PRETRAINED brings the whole model"
    yield "BACKBONE_WEIGHTS", single, problem, 'set one of the two to ""'


def _loss_rules(model: CfgNode) -> Iterator[Rule]:
    for key in LOSS_WEIGHTS:
        yield key, 0 <= model[key] < float("inf"), "turns a loss around", "use 0 or more"
    some = any(model[key] > 0 for key in LOSS_WEIGHTS)
    yield LOSS_WEIGHTS[0], some, "is 0 as the other two are", f"set one of {LOSS_WEIGHTS}"
    empty = 0 < model.NO_OBJECT_WEIGHT < float("inf")
    yield "NO_OBJECT_WEIGHT", empty, "is no weight", "use a number above 0"
    share = 0 <= model.IMPORTANCE_SAMPLE_RATIO <= 1
    yield "OVERSAMPLE_RATIO", model.OVERSAMPLE_RATIO >= 1, "is below 1", "use 1 or more"
    yield "IMPORTANCE_SAMPLE_RATIO", share, "is no share", "use a number from 0 to 1"


def _check_stock_keys(cfg: CfgNode) -> None:
    if cfg.INPUT.MASK_FORMAT != "bitmask":
        problem = f"{cfg.INPUT.MASK_FORMAT!r} gives polygons, but masks are compared at points"
        raise DataError("INPUT.MASK_FORMAT", problem, "set it to 'bitmask'")
    if not cfg.MODEL.MASK_ON:
        raise DataError("MODEL.MASK_ON", "is False, but this model has no boxes", "set it to True")
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    if limit < 1:
        problem = f"{limit} leaves no result of any image"
        raise DataError("TEST.DETECTIONS_PER_IMAGE", problem, "use 1 or more; the published is 100")
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES < 1:
        raise DataError(
            "MODEL.ROI_HEADS.NUM_CLASSES",
            "is not settled",
            "state it, or list the data sets in DATASETS.REGISTER to have their classes counted",
        )
