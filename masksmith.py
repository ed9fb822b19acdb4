"""Where the methods of this project come together: their config keys, and what registers them.

Commands, benchmarks and tests begin here. No method imports this module, so that each works where
the others are not; a labeler reads its saved config past the keys of the others.
"""

from importlib import import_module

from detectron2.config import CfgNode, get_cfg

from mal.config import add_mal_config
from masksmith_projects.mask2former.config import add_mask2former_config
from pais.config import add_pais_config
from pseudolabel.config import add_masksmith_config

# Each adds its keys to a config, in place; what all methods share comes first.
CONFIG_KEYS = (
    add_masksmith_config,
    add_mal_config,
    add_pais_config,
    add_mask2former_config,
)
# Importing one registers the meta-architectures and data pipelines that a YAML names.
MODULES = (
    "mal.data",
    "mal.mask_auto_labeler",
    "mal.pretext",
    "pais.pipeline",
    "pais.semi_supervised_rcnn",
    "masksmith_projects.mask2former.meta_arch",
    "masksmith_projects.mask2former.pipeline",
)


def new_config() -> CfgNode:
    """Detectron2's config with the keys of every method, all at their defaults."""
    cfg = get_cfg()
    for add_keys in CONFIG_KEYS:
        add_keys(cfg)
    return cfg


def register_methods() -> None:
    """Makes every model and data pipeline known by name; doing it twice is harmless."""
    for module in MODULES:
        import_module(module)
