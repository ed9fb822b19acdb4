"""Config keys of DeepLab's recipes."""

from detectron2.config import CfgNode

__all__ = ["add_deeplab_config"]

_DEFAULTS = {
    # Category-aware cropping: at most this share of the crop may be of one class.
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "SOLVER.POLY_LR_POWER": 0.9,
    # The learning rate stops falling at this share of the base; 0: it falls to 0.
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    # "cross_entropy", or the loss of the hardest pixels alone
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "hard_pixel_mining",
    "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES": ["res2"],
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [48],
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 256,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [6, 12, 18],
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": 0.1,
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": False,
    "MODEL.RESNETS.RES4_DILATION": 1,
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4],
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
}


def add_deeplab_config(cfg: CfgNode) -> None:
    """Declare the keys, with their defaults, in place."""
    for path, default in _DEFAULTS.items():
        *parents, key = path.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        node[key] = default if not isinstance(default, list) else list(default)
