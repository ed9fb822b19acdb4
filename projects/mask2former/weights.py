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
# Behind the last feature map of a Swin. No output depends on it, and files of older versions of the
# library have none.
_UNUSED = ("swin.layernorm.weight", "swin.layernorm.bias")


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
    loaded, info, stated = _load(network, source, key)
    differing = _differing(info)
    _refuse(key, source, differing - set(CLASS_HEAD), info["unexpected_keys"])
    if stated.pre_norm != network.config.pre_norm:
        raise DataError(
            "MODEL.MASK_FORMER.PRE_NORM",
            f"is {network.config.pre_norm}, the weights {source} are for {stated.pre_norm}",
            "set it so",
        )
    if differing:
        logger.info("%s: the class head is of other classes and starts at random", source)
    _fill(network, loaded, differing)


def load_backbone(encoder: nn.Module, source: str) -> None:
    """Loads a published backbone of the library, for example a classifier, in place.

    Args:
        encoder: the library's Swin or ResNet backbone.
        source: as of `load_whole`.

    Raises:
        DataError: as of `load_whole`.
    """
    key = "MODEL.MASK_FORMER.BACKBONE_WEIGHTS"
    loaded, info, _ = _load(encoder, source, key)
    differing = _differing(info)
    # Norms of the feature maps belong to the detector, which no classifier has.
    own = {name for name in differing if name.startswith("hidden_states_norms.")}
    unexpected = {n for n in info["unexpected_keys"] if not n.startswith("classifier.")}
    _refuse(key, source, differing - own, unexpected)
    _fill(encoder, loaded, differing)


def to_library(model: nn.Module) -> Any:
    """A trained model as the library's own, which shares its weights; for `save_pretrained`.

    Args:
        model: `Mask2Former` with one of the library's backbones.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    whole = Mask2FormerForUniversalSegmentation(model.model.config)
    whole.load_state_dict(model.state_dict(), assign=True)
    return whole.train(model.training)


def _load(network: nn.Module, source: str, key: str) -> tuple[nn.Module, dict, Any]:
    """A twin of the network with what fits of the weights, what did not, and their own config."""
    from safetensors import SafetensorError

    place = expand_path(source)
    local = Path(place).is_dir()
    if not local and not _is_name(place):
        remedy = "correct it; a name on the hub is OWNER/NAME, with no folder called OWNER here"
        raise DataError(key, f"there is no folder {place}", remedy)
    try:
        if local and not Path(place, "config.json").is_file():
            raise FileNotFoundError("it has no config.json")
        stated = type(network.config).from_pretrained(place)
        twin, info = type(network).from_pretrained(
            place,
            config=network.config,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (ValueError, SafetensorError, *UNREADABLE) as error:
        sought = "" if local else ", looked up as a name on the library's hub,"
        remedy = "give a folder of save_pretrained, or a name that can be downloaded"
        raise DataError(key, f"{source}{sought} cannot be loaded ({error})", remedy) from error
    return twin, info, stated


def _is_name(place: str) -> bool:
    """Whether OWNER/NAME; a folder with a typo must not be looked up on the internet."""
    owner, _, name = place.partition("/")
    folder = owner in ("", "output") or Path(owner).is_dir()
    return bool(name) and "/" not in name and not folder


def _differing(info: dict) -> set[str]:
    """Names of the weights that are absent or of another shape, and are used."""
    names = {name for name, *_ in info["mismatched_keys"]} | set(info["missing_keys"])
    return {name for name in names if not name.endswith(_UNUSED)}


def _fill(network: nn.Module, loaded: nn.Module, differing: Iterable[str]) -> None:
    """Copies what was loaded; the rest stays as it was drawn, which is alike in all processes."""
    state = network.state_dict()
    state.update({n: value for n, value in loaded.state_dict().items() if n not in differing})
    network.load_state_dict(state)


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
