"""ResNet weights with torchvision's names, rewritten to Detectron2's.

Only names change; the caller's config has to say how the weights were trained (channel order,
`PIXEL_MEAN`, `PIXEL_STD`, and `RESNETS.STRIDE_IN_1X1`: True for Caffe's, False for torchvision's).
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pseudolabel.errors import DataError
from pseudolabel.files import atomic_write

FPN_PREFIX = "backbone.bottom_up."
STAGES = ("stem", "res2", "res3", "res4", "res5")
_WRAPPERS = ("model", "state_dict")
_NAME = re.compile(
    r"(?:layer(?P<layer>[1-4])\.(?P<block>\d+)\.)?"
    r"(?:(?P<kind>conv|bn)(?P<index>[1-3])|downsample\.(?P<down>[01]))"
    r"\.(?P<leaf>weight|bias|running_mean|running_var)"
)


@dataclass(frozen=True)
class Converted:
    """A converted backbone.

    Attributes:
        model: Detectron2's name -> float32 tensor.
        dropped: input names that Detectron2's backbone has no place for (classifier, counters).
        absent: stages of `STAGES` without any weight in the input; they start at random.
    """

    model: dict[str, Tensor]
    dropped: list[str]
    absent: list[str]


def detectron2_name(name: str, prefix: str = FPN_PREFIX) -> str | None:
    """Detectron2's name of a torchvision ResNet entry, or None where it has no such entry.

    `conv1` and `bn1` outside the layers are the stem's; `layerN` is `res(N+1)`; a norm is a child
    of its convolution; `downsample.0` and `.1` are `shortcut` and its norm.

    Raises:
        KeyError: not a name of a torchvision ResNet.
    """
    if name.startswith("fc.") or name.endswith(".num_batches_tracked"):
        return None
    found = _NAME.fullmatch(name)
    # Outside the layers a ResNet has one convolution with its norm and no shortcut.
    if found is None or (found["layer"] is None and found["index"] != "1"):
        raise KeyError(name)
    stage = "stem" if found["layer"] is None else f"res{int(found['layer']) + 1}.{found['block']}"
    if found["down"] is None:
        module, is_norm = f"conv{found['index']}", found["kind"] == "bn"
    else:
        module, is_norm = "shortcut", found["down"] == "1"
    return f"{prefix}{stage}.{module}{'.norm' if is_norm else ''}.{found['leaf']}"


def convert_resnet(
    state: Mapping[str, Tensor], source: object = "state dict", prefix: str = FPN_PREFIX
) -> Converted:
    """Renames every entry of a torchvision-style ResNet and casts it to float32.

    Args:
        state: torchvision's name -> tensor.
        source: file of the weights, for the error message.
        prefix: in front of every name; "backbone." for a backbone without FPN.

    Raises:
        DataError: nothing to convert, or names that no torchvision ResNet has.
    """
    model: dict[str, Tensor] = {}
    dropped, unknown = [], []
    for name, value in state.items():
        try:
            target = detectron2_name(name, prefix)
        except KeyError:
            unknown.append(name)
            continue
        if target is None:
            dropped.append(name)
        else:
            model[target] = value.detach().float().contiguous()
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise DataError(
            source,
            f"{len(unknown)} entries are not torchvision ResNet names: {shown}",
            "give the state dict of a torchvision ResNet",
        )
    if not model:
        raise DataError(source, "holds no ResNet weights", "give the state dict of a ResNet")
    present = {name.removeprefix(prefix).split(".")[0] for name in model}
    return Converted(model, dropped, [stage for stage in STAGES if stage not in present])


def convert_file(source: str | Path, target: str | Path, prefix: str = FPN_PREFIX) -> Converted:
    """Converts a `.pth` file to a Detectron2 checkpoint, written atomically.

    Raises:
        DataError: the input is missing, is no safe checkpoint, or is not a torchvision ResNet.
    """
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(source, "the weights do not exist", "check the path") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise DataError(
            source, f"not a safe checkpoint ({error})", "save its state dict with torch.save"
        ) from error
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
        raise DataError(source, "holds no plain state dict", "save the state dict of the network")
    converted = convert_resnet(state, source, prefix)
    with atomic_write(target, "wb") as file:
        # Full names: a suffix match could only hide a mistake.
        torch.save({"model": converted.model, "matching_heuristics": False}, file)
    return converted
