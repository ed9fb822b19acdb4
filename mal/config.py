"""Config keys of MAL. Symbols are those of Lan et al., CVPR 2023."""

from detectron2.config import CfgNode


def add_mal_config(cfg: CfgNode) -> None:
    """Adds `MODEL.MAL.*` in place.

    Defaults are those of the authors' released code, but for MIN_AREA (2048 there, which leaves all
    small boxes out), TEST.THRESHOLDS (.1), ENCODER.STEM ("conv", untrained) and ENCODER.WEIGHTS
    (MAE's; no default shall download). Keys that the code lacks change no mask by default.
    `configs/_base_/mal_vit_base.yaml` names the source of each value.
    """
    mal = cfg.MODEL.MAL = CfgNode()
    _add_sample_keys(mal)
    _add_network_keys(mal)
    _add_loss_keys(mal)

    mal.TEST = CfgNode()
    # Which network labels: "student" or "teacher". Evaluation reports both.
    mal.TEST.NETWORK = "student"
    # Mask threshold for boxes < 32^2, < 96^2 and the rest (paper: .1).
    mal.TEST.THRESHOLDS = (0.5, 0.5, 0.5)
    # Iterations of the mean field on the final probabilities, counted from the threshold; 0 (the
    # paper's): none.
    mal.TEST.CRF_ITERATIONS = 0
    # Side of the map that it refines, as a multiple of MAP_SIZE.
    mal.TEST.CRF_SCALE = 1.0
    # Crops per forward pass.
    mal.TEST.BATCH_SIZE = 16
    # What stands as quality in the labels: a measure of pseudolabel/quality.py (docs/quality.md).
    mal.TEST.QUALITY = "estimate"
    # File of tools/calibrate.py that turns the measure into an expected IoU; "" leaves it.
    mal.TEST.CALIBRATION = ""


def _add_sample_keys(mal: CfgNode) -> None:
    """What a sample is: which boxes, and how they are cropped."""
    # Side of the square network input in pixels; the box's crop is resized to it.
    mal.CROP_SIZE = 512
    # theta: expansion budget of a training crop, as a fraction of the half box, split by two sides.
    mal.MARGIN = 1.2
    # The two opposite sides share the budget (the released code); False draws each side alone.
    mal.MARGIN_GATED = True
    # Expansion of a crop at test time: .6 gives 1.3x the box, the mean of the training crops.
    mal.TEST_MARGIN = 0.6
    # The pixel at the far edge belongs to the box (the released code): one too many where the box
    # ends on a whole number, as boxes drawn around masks do. In training alone: a label ends where
    # the box covers the centres of pixels.
    mal.BOX_INCLUSIVE = True
    # Boxes of at most MIN_AREA or at least MAX_AREA square pixels are not trained on (paper: 2048).
    mal.MIN_AREA = 0.0
    mal.MAX_AREA = 1e10
    # What stands beyond the image's edge: "wrap" (its opposite side, the paper's), "reflect" or
    # "replicate".
    mal.BORDER = "wrap"
    # n: crops that one decoded image gives in a row; a batch holds IMS_PER_BATCH x n. Every box is
    # still drawn once per epoch (up to n - 1 of them twice, where n does not divide their number),
    # but those of a batch are correlated: up to n of them share an image. What an image has beyond
    # a multiple of n is put together with the rest of others.
    mal.CROPS_PER_IMAGE = 1
    # "box": MAL. "mask": dice and cross-entropy on human masks, the ceiling to compare with.
    mal.SUPERVISION = "box"
    # Decoded images that each loader process keeps; a crop costs far less than its JPEG.
    mal.IMAGE_CACHE = 64


def _add_network_keys(mal: CfgNode) -> None:
    """Encoder and decoder of student and teacher."""
    mal.ENCODER = CfgNode()
    # A plain ViT of timm, or a ConvNeXt or Swin of timm.
    mal.ENCODER.NAME = "vit_base_patch16_224"
    # "patch": linear patches; "conv": 3x3 stride-2 convolutions down to the same stride.
    mal.ENCODER.STEM = "patch"
    # Pixels per token side, width, blocks and heads; 0 keeps the model's own.
    mal.ENCODER.PATCH_SIZE = 0
    mal.ENCODER.EMBED_DIM = 0
    mal.ENCODER.DEPTH = 0
    mal.ENCODER.NUM_HEADS = 0
    # Rate of stochastic depth (paper: none).
    mal.ENCODER.DROP_PATH = 0.0
    # File with weights of MAE, DeiT, DINO, DINOv2, DINOv3 or timm, or "timm:NAME" for what timm
    # publishes under that name; "" starts from random numbers.
    mal.ENCODER.WEIGHTS = ""

    mal.DECODER = CfgNode()
    # "attention" (K x V, the paper's), "fully_connected", "fully_convolutional" or "query".
    mal.DECODER.NAME = "attention"
    # 0: one mask for any class (the paper's). N: one mask per class, chosen by the box's class.
    mal.DECODER.NUM_CLASSES = 0
    # Category ids of these classes, in their order; () is filled from DATASETS.TRAIN, so that the
    # saved config can label where the training JSON is gone.
    mal.DECODER.CATEGORY_IDS = ()
    # Width of the K and V heads and of their product.
    mal.DECODER.HIDDEN_DIM = 256
    mal.DECODER.OUT_DIM = 256
    # 3x3 convolutions of the V head; the last follows the upsampling.
    mal.DECODER.NUM_CONVS = 4
    # Resize of the features for boxes < 32^2, < 96^2 and the rest; equal values: no size bins.
    mal.DECODER.SCALES = (0.5, 1.0, 2.0)
    # Factor of the upsampling before the last convolution of the V head.
    mal.DECODER.UPSAMPLE = 2.0
    # Cross-attention layers of "query" and their heads.
    mal.DECODER.QUERY_LAYERS = 3
    mal.DECODER.QUERY_HEADS = 8
    # Side of the grid to which "fully_connected" averages the tokens. That decoder has no feature
    # map: NUM_CONVS, SCALES and UPSAMPLE say nothing there.
    mal.DECODER.GRID = 8
    # Side of the mask logits on which the losses work.
    mal.MAP_SIZE = 128


def _add_loss_keys(mal: CfgNode) -> None:
    """Losses, mean field and teacher."""
    # alpha_mil, alpha_crf: loss weights; iterations over which each rises linearly from 0.
    mal.MIL_WEIGHT = 4.0
    mal.MIL_WARMUP = 1000
    mal.CRF_WEIGHT = 0.5
    mal.CRF_WARMUP = 4000

    mal.CRF = CfgNode()
    # zeta: bandwidth of the colour kernel, in units of the normalised image.
    mal.CRF.ZETA = 0.1
    # omega: factor of the kernel (the released code parses it and uses 1).
    mal.CRF.OMEGA = 1.0
    # Side of the neighbourhood in pixels of the map; odd. From 5 on a flat region of one colour can
    # turn to background as a whole: so many equal neighbours push both products of the update
    # below the 1e-6 in its denominator.
    mal.CRF.KERNEL_SIZE = 3
    # Updates of the state q.
    mal.CRF.ITERATIONS = 100
    # Image whose colours guide it: "student" (jittered, the released code) or "clean".
    mal.CRF.GUIDANCE = "student"
    # Weight of log q0 in every iteration (the paper's energy has a unary term; its code does not).
    mal.CRF.UNARY = 0.0
    # Clamp of the state q.
    mal.CRF.LOW = 0.1
    mal.CRF.HIGH = 0.9

    # False: no teacher; the mean field starts from the student alone, which also labels.
    mal.TEACHER = True
    # m: EMA momentum of the teacher.
    mal.TEACHER_MOMENTUM = 0.996
