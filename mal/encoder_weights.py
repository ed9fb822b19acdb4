"""Pretrained encoder weights: from a file or from what timm publishes, strictly."""

from __future__ import annotations

import logging
import math
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from mal.encoder_layouts import State, to_timm_names
from pseudolabel.checkpoints import UNREADABLE
from pseudolabel.errors import DataError
from pseudolabel.files import atomic_write, expand_path

logger = logging.getLogger(__name__)

PUBLISHED = "timm:"
# Where checkpoints keep the network: MAE and DeiT, timm, and the trainings of DINO.
_WRAPPERS = ("model", "state_dict", "teacher")
# What torch raises of bytes that it did not write, or not to the end.
_UNREADABLE = (
    *UNREADABLE,
    *(AssertionError, AttributeError, LookupError, TypeError, ValueError),
)
_DAMAGED = ("is no readable checkpoint", "download it again")
_POSITIONS = "pos_embed"
_STEM = "patch_embed."


def load_encoder_weights(encoder: nn.Module, source: str | Path) -> None:
    """Loads pretrained ViT weights into a `ViTEncoder`, strictly.

    Names of MAE, DeiT, DINO, DINOv2, DINOv3 and timm are understood (`encoder_layouts`). Values are
    cast to float32, the position embedding is resized to the encoder's grid and a classifier head
    is ignored. With the conv stem the file's patch projection has no place to go: that, and nothing
    else, is allowed to be left over, and is logged.

    Args:
        encoder: receives the weights in place.
        source: PyTorch file (a state dict, or one under "model", "state_dict" or "teacher"),
            .safetensors, or "timm:NAME" for the weights that timm publishes under that name.

    Raises:
        DataError: missing, unexpected or differently shaped entries, listed with the file's name;
            a file that is not there, not readable or holds more than tensors; published weights
            that cannot be had.
    """
    vit = encoder.vit
    state = to_timm_names(read_weights(source), vit, source)
    if _POSITIONS in state and _POSITIONS in vit.state_dict():
        state[_POSITIONS] = _fit_position_embedding(state[_POSITIONS], vit, source)
    stem = {key for key in vit.state_dict() if key.startswith(_STEM)}
    foreign_stem = encoder.stem == "conv" and not stem & state.keys()
    load_strictly(vit, state, source, may_differ=_STEM if foreign_stem else None)


def load_strictly(
    network: nn.Module,
    state: State,
    source: object,
    may_differ: str | None = None,
) -> None:
    """Loads a state dict whose names and shapes must be the network's.

    Args:
        may_differ: names with this prefix may be missing or left over; they are logged.

    Raises:
        DataError: listing every other name; the network is as before.
    """
    wanted = network.state_dict()
    missing, left = (
        {k for k in one.keys() - other.keys() if may_differ is None or not k.startswith(may_differ)}
        for one, other in ((wanted, state), (state, wanted))
    )
    problems = {
        "missing": sorted(missing),
        "unexpected": sorted(left),
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
            for key in sorted(wanted.keys() & state.keys())
            if state[key].shape != wanted[key].shape
        ],
    }
    report = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
    if report:
        raise DataError(
            source,
            f"does not fit the encoder. {report}",
            "set MODEL.MAL.ENCODER.NAME (and its sizes) to the model of these weights",
        )
    fitting = {key: state[key] for key in wanted if key in state}
    network.load_state_dict(fitting, strict=False)
    kept, unused = wanted.keys() - fitting.keys(), state.keys() - fitting.keys()
    if kept or unused:
        logger.warning(
            "%s: %d stem tensors keep their random initialisation, %d of the file unused (%s)",
            *(source, len(kept), len(unused), ", ".join(sorted(unused)) or "none"),
        )
    logger.info("%s: loaded %d encoder tensors", source, len(fitting))


def save_encoder_weights(encoder: nn.Module, path: str | Path) -> None:
    """Writes a safetensors file for `load_encoder_weights`, in half precision, atomically."""
    from safetensors.torch import save

    state = {name: value.half().contiguous() for name, value in encoder.trunk.state_dict().items()}
    with atomic_write(path, "wb") as file:
        file.write(save(state))


def read_weights(source: str | Path) -> State:
    """Tensors by name, of a file or of "timm:NAME"; errors as `load_encoder_weights`."""
    if str(source).startswith(PUBLISHED):
        return _published(str(source).removeprefix(PUBLISHED), source)
    return _read_state(Path(expand_path(source)))


def _published(name: str, source: object) -> State:
    """What timm publishes under a name, by its own download and cache, with its own names.

    timm takes safetensors where there is one, and loads nothing but tensors otherwise.
    """
    import timm

    if not timm.is_model(name) or not timm.models.is_model_pretrained(name):
        raise DataError(
            source,
            f"timm publishes no weights under {name!r}",
            "timm.list_pretrained() lists the names",
        )
    try:
        # With its own classifier: timm compares names strictly only then.
        model = timm.create_model(name, pretrained=True)
    # timm's download ends in errors of half a dozen libraries, which share no other base.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            source,
            f"could not be had ({reason})",
            "connect to the network once (timm keeps a cache), or download the weights elsewhere"
            " and name the .safetensors file in MODEL.MAL.ENCODER.WEIGHTS",
        ) from error
    return model.state_dict()


def _read_state(path: Path) -> State:
    if not path.is_file():
        remedy = "correct MODEL.MAL.ENCODER.WEIGHTS, or download the file"
        raise DataError(path, "there are no encoder weights", remedy)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if isinstance(error, pickle.UnpicklingError) and _is_pickle(path):
            raise DataError(
                path,
                "holds more than tensors and is not unpickled",
                "if you trust its origin, save its state dict alone to a new .pth or .safetensors"
                " file",
            ) from error
        raise DataError(path, *_DAMAGED) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise DataError(path, "holds no state dict (tensors by name)", "save one to a new file")
    return content


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(path, *_DAMAGED) from error


def _is_pickle(path: Path) -> bool:
    """Whether a file is what torch writes; a page of HTML is refused with the same error."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == pickle.PROTO


def _fit_position_embedding(stored: Tensor, vit: nn.Module, source: object) -> Tensor:
    """Resize (1, prefix + n * n, D) to the encoder's grid; prefix tokens are kept as they are."""
    from timm.layers import resample_abs_pos_embed

    if stored.shape[1] == vit.pos_embed.shape[1]:
        return stored
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    side = math.isqrt(max(0, stored.shape[1] - prefix))
    if side * side + prefix != stored.shape[1]:
        raise DataError(
            source,
            f"{stored.shape[1]} positions are no square grid with {prefix} prefix tokens",
            "set MODEL.MAL.ENCODER.NAME to the model of these weights",
            _POSITIONS,
        )
    return resample_abs_pos_embed(
        stored,
        new_size=list(vit.patch_embed.grid_size),
        old_size=[side, side],
        num_prefix_tokens=prefix,
    )
