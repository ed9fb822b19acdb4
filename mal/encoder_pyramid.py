"""ConvNeXt and Swin encoders: the feature map of their stride-16 stage.

Legend: B batch, S input side in pixels, D channels of the stage, h = w = S / 16.

How the paper takes features from these networks is not documented. Here it is their third stage
alone, which has stride 16 as a ViT has, and most of the blocks; the fourth stage (stride 32) is
removed. A new LayerNorm over channels follows, as a ViT ends with one: the stage itself does not.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from mal.encoder_layouts import State
from mal.encoder_weights import load_strictly, read_weights

FAMILIES = ("convnext", "swin")
STRIDE = 16
# Index of the stage of that stride: they begin at 4, 8, 16, 32.
STAGE = 2
_BLOCK = re.compile(r"(?:stages|layers)\.(\d+)\.(?:blocks\.(\d+)\.)?")
_NOT_ENCODER = re.compile(r"head\.(fc|weight|bias)|.*(relative_position_index|attn_mask)$")
_CONVNEXT = (
    (re.compile(r"^downsample_layers\.0\."), "stem."),
    (re.compile(r"^downsample_layers\.(\d+)\."), r"stages.\1.downsample."),
    (re.compile(r"^stages\.(\d+)\.(\d+)\."), r"stages.\1.blocks.\2."),
    (re.compile(r"\.dwconv\."), ".conv_dw."),
    (re.compile(r"\.pwconv(\d)\."), r".mlp.fc\1."),
    (re.compile(r"^norm\."), "head.norm."),
)


class PyramidEncoder(nn.Module):
    """ConvNeXt, Swin or Swin v2 of timm up to stride 16, as a dense feature extractor.

    Args:
        name: timm model name, for instance "convnext_base" or "swin_base_patch4_window7_224".
        image_size: S that the encoder is built for; other multiples of 16 work.
        drop_path: stochastic depth rate of the last block.
        weights: file or "timm:NAME" (`read_weights`), or "". Names are timm's or those of the
            authors' releases.

    Raises:
        ValueError: another model, or a size that does not divide.
        DataError: weights that do not fit.
    """

    def __init__(
        self,
        *,
        name: str,
        image_size: int = 512,
        drop_path: float = 0.0,
        weights: str | Path = "",
    ) -> None:
        super().__init__()
        self.trunk = _build_trunk(name, image_size, drop_path)
        complete = self.trunk.state_dict().keys()
        self.trunk.prune_intermediate_layers([STAGE], prune_norm=True, prune_head=True)
        self._removed = complete - self.trunk.state_dict().keys()
        self._embed_dim = int(self.trunk.feature_info[STAGE]["num_chs"])
        self.norm = nn.LayerNorm(self._embed_dim, eps=1e-6)
        if weights:
            self.load_weights(weights)

    @property
    def embed_dim(self) -> int:
        """D, channels of the output."""
        return self._embed_dim

    @property
    def patch_size(self) -> int:
        """Stride of the output in pixels."""
        return STRIDE

    def load_weights(self, source: str | Path) -> None:
        """Loads pretrained weights into the stages that are kept, strictly.

        Raises:
            DataError: a file that cannot be read, entries that the complete network has not, or
                that this one misses.
        """
        state = _to_timm_names(read_weights(source))
        kept = {key: value for key, value in state.items() if key not in self._removed}
        load_strictly(self.trunk, kept, source)

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised crops: (B, 3, S, S), S a multiple of 16, to (B, D, h, w).

        Raises:
            ValueError: a side is not a multiple of 16.
        """
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"input {height} x {width} is not a multiple of stride {STRIDE}")
        options = {"norm": False, "stop_early": True, "intermediates_only": True}
        (features,) = self.trunk.forward_intermediates(
            images, indices=[STAGE], output_fmt="NCHW", **options
        )
        return self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def layer_of(self, name: str) -> tuple[int, int]:
        """Layer of a parameter, and their number, for layer-wise learning rates.

        The stem is layer 0, the blocks of all stages are layers 1, 2, ... in turn, a downsampling
        is in the layer of the block after it, and the last layer is the norm's and the decoder's.
        """
        stages = self.trunk.stages if hasattr(self.trunk, "stages") else self.trunk.layers
        depths = [len(getattr(stage, "blocks", ())) for stage in stages]
        block = _BLOCK.match(name.removeprefix("trunk."))
        if block is not None:
            layer = 1 + sum(depths[: int(block[1])]) + int(block[2] or 0)
        else:
            layer = sum(depths) + 1 if name.startswith("norm.") else 0
        return layer, sum(depths) + 2


def is_pyramid(name: str) -> bool:
    """Whether a timm model name is one that `PyramidEncoder` takes, by its family."""
    return name.startswith(FAMILIES)


def _build_trunk(name: str, image_size: int, drop_path: float) -> nn.Module:
    import timm
    from timm.models.convnext import ConvNeXt
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; timm.list_models('swin*') lists the choice")
    if image_size % STRIDE:
        nearest = max(1, round(image_size / STRIDE)) * STRIDE
        raise ValueError(
            f"image_size {image_size} is not a multiple of the stride {STRIDE}: set"
            f" MODEL.MAL.CROP_SIZE to {nearest}"
        )
    options = {}
    if name.startswith("swin"):
        # Windows keep the size that they were trained with, also where the map is smaller.
        options = {"img_size": image_size, "always_partition": True, "strict_img_size": False}
    try:
        trunk = timm.create_model(
            name, pretrained=False, num_classes=0, drop_path_rate=drop_path, **options
        )
    except TypeError as error:  # a model of the family without these options
        raise ValueError(f"{name} cannot be built as a pyramid: {error}") from error
    if not isinstance(trunk, ConvNeXt | SwinTransformer | SwinTransformerV2):
        raise ValueError(f"{name} is a {type(trunk).__name__}; ConvNeXt or Swin is needed")
    return trunk


def _to_timm_names(stored: State) -> State:
    """Names of the authors' releases to timm's; classifier and recomputed buffers are dropped."""
    if any(key.startswith("downsample_layers.") for key in stored):
        for pattern, name in _CONVNEXT:
            stored = {pattern.sub(name, key): value for key, value in stored.items()}
    elif any(key.startswith("layers.0.downsample.") for key in stored):
        # Swin's release has a stage end with what timm has the next one begin with.
        stored = {
            re.sub(r"^layers\.(\d+)\.downsample", _next_stage, key): value
            for key, value in stored.items()
        }
    return {key: value.float() for key, value in stored.items() if not _NOT_ENCODER.match(key)}


def _next_stage(match: re.Match) -> str:
    return f"layers.{int(match[1]) + 1}.downsample"
