"""Plain ViT encoder: one feature map at 1/p of the input, no pyramid.

Legend: B batch, S input side in pixels, p patch size, D embedding width, h = w = S / p.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

from mal.encoder_weights import load_encoder_weights

STEMS = ("patch", "conv")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


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

    Sizes of 0 keep the named model's own. Nothing is downloaded unless `weights` says so.

    Args:
        name: timm model name, for instance "vit_base_patch16_224", "vit_base_patch14_dinov2" or
            "vit_base_patch16_dinov3".
        image_size: S that the position embedding is stored for; other inputs resize it bicubically.
        stem: "patch" is the standard, pretrained projection; "conv" the random convolutions of the
            released MAL models.
        patch_size, embed_dim, depth, num_heads: overrides of the architecture.
        drop_path: stochastic depth rate of the last block.
        weights: file or "timm:NAME" for `load_encoder_weights`, or "".

    Raises:
        ValueError: unknown stem, a model which is not a plain ViT, or sizes that do not divide.
        DataError: weights that do not fit.
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
        check_multiple(image_size, self._patch_size)
        if stem == "conv":
            self.vit.patch_embed = ConvStem(image_size, self._patch_size, self.embed_dim)
        if weights:
            load_encoder_weights(self, weights)

    @property
    def trunk(self) -> nn.Module:
        """The timm network, which is what pretrained weights are for."""
        return self.vit

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

    def layer_of(self, name: str) -> tuple[int, int]:
        """Layer of a parameter, and their number, for layer-wise learning rates.

        Stem, tokens and position embedding are layer 0, block i is layer i + 1, the final
        LayerNorm is in the last one together with the decoder.
        """
        depth = len(self.vit.blocks)
        block = _BLOCK.match(name.removeprefix("vit."))
        if block is not None:
            return int(block[1]) + 1, depth + 2
        return (depth + 1 if name.startswith("vit.norm.") else 0), depth + 2


def check_multiple(image_size: int, step: int) -> None:
    """Refuses a crop side that does not divide into patches.

    Raises:
        ValueError: naming the nearest side that does.
    """
    if image_size % step:
        nearest = max(1, round(image_size / step)) * step
        raise ValueError(
            f"image_size {image_size} is not a multiple of the patch size {step}: set"
            f" MODEL.MAL.CROP_SIZE to {nearest}"
        )


def _build_vit(name: str, image_size: int, drop_path: float, overrides: dict[str, int]):
    import timm
    from timm.models.eva import Eva
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
    # Eva is timm's VisionTransformer with rotary positions; DINOv3 is one.
    if not isinstance(vit, VisionTransformer | Eva):
        raise ValueError(f"{name} is a {type(vit).__name__}; a plain VisionTransformer is needed")
    return vit
