"""Configuration: a yacs tree of every stock key, and classes that can be built from it."""

from ..utils.env import upstream_only
from .config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg"]

__getattr__ = upstream_only(
    __name__,
    ["LazyCall", "LazyConfig", "downgrade_config", "instantiate", "upgrade_config"],
)
