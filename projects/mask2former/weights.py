"""Published weights of the library: from a local folder or by name, and back into a folder."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from pseudolabel.checkpoints import UNREADABLE
from pseudolabel.errors import DataError
from pseudolabel.files import expand_path

logger = logging.getLogger(__name__)

# Their size follows the number of classes.
CLASS_HEAD = ("class_predictor.weight", "class_predictor.bias", "criterion.empty_weight")
# In old files; computed anew.
_COMPUTED = "relative_position_index"


def load_whole(network: nn.Module, source: str) -> None:
    """Loads a published Mask2Former in place; with other classes the class head stays random.

    Args:
        network: the library's `Mask2FormerForUniversalSegmentation`.
        source: folder written by `save_pretrained`, or a name on the library's hub. Pickles are
            read without running what is in them.

    Raises:
        DataError: no such weights, or they are of a network of another shape.
    """
    key = "MODEL.MASK_FORMER.PRETRAINED"
    loaded, info = _load(type(network), source, network.config, key)
    differing = {name for name, *_ in info["mismatched_keys"]} | set(info["missing_keys"])
    _refuse(key, source, differing - set(CLASS_HEAD), info["unexpected_keys"])
    stated = type(network.config).from_pretrained(expand_path(source))
    if stated.pre_norm != network.config.pre_norm:
        raise DataError(
            "MODEL.MASK_FORMER.PRE_NORM",
            f"is {network.config.pre_norm}, the weights {source} are for {stated.pre_norm}",
            "set it so",
        )
    if differing:
        logger.info("%s: the class head is of other classes and starts at random", source)
    network.load_state_dict(loaded.state_dict())


def load_backbone(encoder: nn.Module, source: str) -> None:
    """Loads a published backbone of the library, for example a classifier, in place.

    Args:
        encoder: the library's Swin or ResNet backbone.
        source: as of `load_whole`.

    Raises:
        DataError: as of `load_whole`.
    """
    key = "MODEL.MASK_FORMER.BACKBONE_WEIGHTS"
    loaded, info = _load(type(encoder), source, encoder.config, key)
    differing = {name for name, *_ in info["mismatched_keys"]} | set(info["missing_keys"])
    # Norms of the feature maps belong to the detector, which no classifier has.
    own = {name for name in differing if name.startswith("hidden_states_norms.")}
    unexpected = {n for n in info["unexpected_keys"] if not n.startswith("classifier.")}
    _refuse(key, source, differing - own, unexpected)
    encoder.load_state_dict(loaded.state_dict())


def to_library(model: nn.Module) -> Any:
    """A trained model as the library's own, which shares its weights; for `save_pretrained`.

    Args:
        model: `Mask2Former` with one of the library's backbones.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    whole = Mask2FormerForUniversalSegmentation(model.model.config)
    whole.load_state_dict(model.state_dict(), assign=True)
    return whole.train(model.training)


def _load(kind: type, source: str, config: Any, key: str) -> tuple[nn.Module, dict]:
    place = expand_path(source)
    # A missing folder must not be looked up as a name.
    if place.startswith(("/", ".", "output/")) and not Path(place).is_dir():
        raise DataError(key, f"there is no folder {place}", "correct it")
    try:
        return kind.from_pretrained(
            place,
            config=config,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (ValueError, *UNREADABLE) as error:
        remedy = "give a folder of save_pretrained, or a name that can be downloaded"
        raise DataError(key, f"{source} cannot be loaded ({error})", remedy) from error


def _refuse(key: str, source: str, differing: Iterable[str], unexpected: Iterable[str]) -> None:
    differing = sorted(differing)
    surplus = sorted(name for name in unexpected if not name.endswith(_COMPUTED))
    if differing or surplus:
        first = (differing or surplus)[0]
        raise DataError(
            key,
            f"{source} is of another network: {len(differing)} weights are absent or of another "
            f"shape and {len(surplus)} have no place, first {first}",
            "give MODEL.MASK_FORMER the sizes that stand in its config.json",
        )
