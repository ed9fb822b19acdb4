"""Plain ViT encoder: one feature map at 1/p of the input, no pyramid.

Legend: B batch, S input side in pixels, p patch size, D embedding width, h = w = S / p.
"""

from __future__ import annotations

import logging
import math
import pickle
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from pseudolabel.files import atomic_write

logger = logging.getLogger(__name__)

STEMS = ("patch", "conv")
_HEAD_PREFIXES = ("head.", "head_dist.")


class ConvStem(nn.Module):
    """Patch embedding by log2(p) strided convolutions, in place of one p x p projection.

    Channels double towards D at the last stage. It provides what timm's transformer reads from a
    patch embedding (`grid_size`, `num_patches`) and returns (B, h, w, D).
    """

    def __init__(self, image_size: int, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        stages = int(math.log2(patch_size))
        if 2**stages != patch_size or stages < 1:
            raise ValueError(f"the conv stem needs a power of two as patch size, got {patch_size}")
        if embed_dim % 2 ** (stages - 1):
            raise ValueError(
                f"the conv stem halves channels {stages - 1} times; embed_dim {embed_dim} does not"
                f" divide by {2 ** (stages - 1)}"
            )
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (image_size // patch_size, image_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        widths = [3, *(embed_dim >> (stages - 1 - stage) for stage in range(stages))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(1, after, eps=1e-6),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, h, w, D)."""
        return self.layers(images).permute(0, 2, 3, 1)


class ViTEncoder(nn.Module):
    """timm vision transformer without its classifier, as a dense feature extractor.

    Sizes of 0 keep the named model's own. Nothing is downloaded: weights come from `weights`.

    Args:
        name: timm model name, for instance "vit_base_patch16_224".
        image_size: S that the position embedding is stored for; other inputs resize it bicubically.
        stem: "patch" is the standard, pretrained projection; "conv" the random convolutions of the
            released MAL models.
        patch_size, embed_dim, depth, num_heads: overrides of the architecture.
        drop_path: stochastic depth rate of the last block.
        weights: file for `load_encoder_weights`, or "".

    Raises:
        ValueError: unknown stem, a model which is not a plain ViT, or sizes that do not divide.
    """

    def __init__(
        self,
        *,
        name: str = "vit_base_patch16_224",
        image_size: int = 512,
        stem: str = "patch",
        patch_size: int = 0,
        embed_dim: int = 0,
        depth: int = 0,
        num_heads: int = 0,
        drop_path: float = 0.0,
        weights: str | Path = "",
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"stem must be one of {STEMS}, got {stem!r}")
        sizes = {
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
        }
        overrides = {key: value for key, value in sizes.items() if value}
        self.vit = _build_vit(name, image_size, drop_path, overrides)
        self.stem = stem
        self.image_size = image_size
        self._patch_size = int(self.vit.patch_embed.patch_size[0])
        if image_size % self._patch_size:
            raise ValueError(
                f"image_size {image_size} is not a multiple of the patch size {self._patch_size}"
            )
        if stem == "conv":
            self.vit.patch_embed = ConvStem(image_size, self._patch_size, self.embed_dim)
        if weights:
            load_encoder_weights(self, weights)

    @property
    def embed_dim(self) -> int:
        """D, channels of the output."""
        return int(self.vit.embed_dim)

    @property
    def patch_size(self) -> int:
        """p, stride of the output in pixels."""
        return self._patch_size

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised crops.

        Args:
            images: (B, 3, S, S), S a multiple of p.

        Returns:
            (B, D, h, w): tokens after the final LayerNorm; class and register tokens are left out.

        Raises:
            ValueError: a side is not a multiple of the patch size.
        """
        batch, _, height, width = images.shape
        step = self._patch_size
        if height % step or width % step:
            raise ValueError(f"input {height} x {width} is not a multiple of patch size {step}")
        tokens = self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :]
        return tokens.transpose(1, 2).reshape(batch, -1, height // step, width // step)


def load_encoder_weights(encoder: ViTEncoder, path: str | Path) -> None:
    """Load pretrained ViT weights (DeiT, MAE, any timm plain ViT) into an encoder, strictly.

    Values are cast to float32, the position embedding is resized to the encoder's grid and a
    classifier head is ignored. With the conv stem the file's patch projection has no place to go:
    that, and nothing else, is allowed to be left over, and is logged.

    Args:
        encoder: receives the weights in place.
        path: PyTorch file (a state dict, or one under "model" or "state_dict") or .safetensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: missing, unexpected or differently shaped entries, listed with the file's name.
    """
    path = Path(path)
    stored = _read_state(path)
    vit = encoder.vit
    state = {
        key: value.float() for key, value in stored.items() if not key.startswith(_HEAD_PREFIXES)
    }
    if "pos_embed" in state:
        state["pos_embed"] = _fit_position_embedding(state["pos_embed"], vit, path)

    wanted = vit.state_dict()
    missing, unexpected = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    if encoder.stem == "conv":
        projection = {key for key in unexpected if key.startswith("patch_embed.")}
        untrained = {key for key in missing if key.startswith("patch_embed.")}
        missing, unexpected = missing - untrained, unexpected - projection
        if untrained or projection:
            logger.warning(
                "%s: %d stem tensors keep their random initialisation, %d of the file unused (%s)",
                *(path, len(untrained), len(projection), ", ".join(sorted(projection)) or "none"),
            )
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].shape != wanted[key].shape
    ]
    problems = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "of another shape": reshaped,
    }
    report = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
    if report:
        raise ValueError(f"{path} does not fit the encoder. {report}. Choose the matching model.")
    vit.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False)
    logger.info("%s: loaded %d encoder tensors", path, len(wanted.keys() & state.keys()))


def _build_vit(name: str, image_size: int, drop_path: float, overrides: dict[str, int]):
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; timm.list_models('vit_*') lists the choice")
    options = {"img_size": image_size, "dynamic_img_size": True, "global_pool": "token"}
    try:
        vit = timm.create_model(
            name,
            pretrained=False,
            num_classes=0,
            drop_path_rate=drop_path,
            **options,
            **overrides,
        )
    except TypeError as error:  # an architecture without these options
        raise ValueError(f"{name} cannot be built as a plain VisionTransformer: {error}") from error
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"{name} is a {type(vit).__name__}; a plain VisionTransformer is needed")
    return vit


def save_encoder_weights(encoder: ViTEncoder, path: str | Path) -> None:
    """Writes a safetensors file for `load_encoder_weights`, in half precision, atomically."""
    from safetensors.torch import save

    state = {name: value.half().contiguous() for name, value in encoder.vit.state_dict().items()}
    with atomic_write(path, "wb") as file:
        file.write(save(state))


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no encoder weights at {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and is not unpickled. If you trust its origin, save"
            " its state dict alone to a new .pth or .safetensors file."
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise ValueError(f"{path} holds no state dict (tensors by name)")
    return content


def _fit_position_embedding(stored: Tensor, vit: nn.Module, path: Path) -> Tensor:
    """Resize (1, prefix + n * n, D) to the encoder's grid; prefix tokens are kept as they are."""
    from timm.layers import resample_abs_pos_embed

    if stored.shape[1] == vit.pos_embed.shape[1]:
        return stored
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    side = math.isqrt(stored.shape[1] - prefix)
    if side * side + prefix != stored.shape[1]:
        raise ValueError(
            f"{path}: pos_embed has {stored.shape[1]} positions, which is no square grid with"
            f" {prefix} prefix tokens"
        )
    return resample_abs_pos_embed(
        stored,
        new_size=list(vit.patch_embed.grid_size),
        old_size=[side, side],
        num_prefix_tokens=prefix,
    )
