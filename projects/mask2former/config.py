"""Config keys of Mask2Former. Names and values are those of the published COCO instance model."""

from detectron2.config import CfgNode

from pseudolabel.errors import DataError

BACKBONES = ("detectron2", "swin", "resnet")


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
    # Weights of the library's backbone, of the whole model (but for a class head of other classes):
    # a local folder, or a name on the library's hub. "" starts from random numbers.
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
    model, prefix = cfg.MODEL.MASK_FORMER, "MODEL.MASK_FORMER."
    heads, hidden, channels = model.NHEADS, model.HIDDEN_DIM, model.CONVS_DIM
    multiple = "its group norms have 32 groups"
    uneven = f"is no multiple of NHEADS {heads}"
    rules = [
        ("BACKBONE", model.BACKBONE in BACKBONES, "is no backbone", f"use one of {BACKBONES}"),
        ("NHEADS", heads > 0, "is no number of heads", "use 1 or more"),
        ("CONVS_DIM", channels % 32 == 0, "is no multiple of 32", f"round it: {multiple}"),
        ("CONVS_DIM", channels > 0, "is no width", "use 32 or more"),
        ("CONVS_DIM", channels % max(heads, 1) == 0, uneven, "choose another of the two"),
        ("HIDDEN_DIM", hidden % max(heads, 1) == 0, uneven, "choose another of the two"),
        ("HIDDEN_DIM", hidden % 4 == 0, "is no multiple of 4", "round it: sines of two axes"),
        ("DEC_LAYERS", model.DEC_LAYERS >= 2, "leaves no decoder layer", "use 2 or more"),
        ("NUM_OBJECT_QUERIES", model.NUM_OBJECT_QUERIES > 0, "is too small", "use 1 or more"),
        ("TRAIN_NUM_POINTS", model.TRAIN_NUM_POINTS > 0, "is too small", "use 1 or more"),
        ("OVERSAMPLE_RATIO", model.OVERSAMPLE_RATIO >= 1, "is below 1", "use 1 or more"),
        (
            "IMPORTANCE_SAMPLE_RATIO",
            0 <= model.IMPORTANCE_SAMPLE_RATIO <= 1,
            "is no share",
            "use a number from 0 to 1",
        ),
        (
            "SIZE_DIVISIBILITY",
            model.SIZE_DIVISIBILITY > 0 and model.SIZE_DIVISIBILITY % 32 == 0,
            "is no multiple of 32, the stride of the last feature map",
            "round it up",
        ),
    ]
    for key, sound, problem, remedy in rules:
        if not sound:
            raise DataError(prefix + key, f"{model[key]!r} {problem}", remedy)
    _check_stock_keys(cfg)


def _check_stock_keys(cfg: CfgNode) -> None:
    if cfg.INPUT.MASK_FORMAT != "bitmask":
        problem = f"{cfg.INPUT.MASK_FORMAT!r} gives polygons, but masks are compared at points"
        raise DataError("INPUT.MASK_FORMAT", problem, "set it to 'bitmask'")
    if not cfg.MODEL.MASK_ON:
        raise DataError("MODEL.MASK_ON", "is False, but this model has no boxes", "set it to True")
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES < 1:
        raise DataError(
            "MODEL.ROI_HEADS.NUM_CLASSES",
            "is not settled",
            "state it, or list the data sets in DATASETS.REGISTER to have their classes counted",
        )
