"""ResNet (He et al. 2015) with checkpoint names stem.conv1, res2.0.conv1, ..., res5.2.conv3."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec
from detectron2.layers.weight_init import c2_msra_fill
from detectron2.utils.env import not_in_lite, upstream_only
from torch import nn

from .._conv import conv_norm
from .backbone import Backbone
from .build import BACKBONE_REGISTRY

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_resnet_backbone",
    "make_stage",
]
__getattr__ = upstream_only(__name__, ["DeformBottleneckBlock"])

# The name under which blocks were subclassed in early versions.
ResNetBlockBase = CNNBlockBase

# Blocks in res2, res3, res4, res5.
_BLOCKS_OF_DEPTH = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _conv_norm(in_channels: int, out_channels: int, kernel: int, norm, **kwargs) -> Conv2d:
    """`conv_norm` with MSRA's weights and never a bias, even without a norm."""
    conv = conv_norm(in_channels, out_channels, kernel, norm, bias=False, **kwargs)
    c2_msra_fill(conv)
    return conv


class _ResidualBlock(CNNBlockBase):
    """Shortcut branch that is shared by both block types."""

    def _add_shortcut(self, norm) -> None:
        # A projection only where the channels change: the identity costs nothing.
        self.shortcut = None
        if self.in_channels != self.out_channels:
            self.shortcut = _conv_norm(
                self.in_channels, self.out_channels, 1, norm, stride=self.stride
            )

    def _merge(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(residual + skip)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm="BN"):
        super().__init__(in_channels, out_channels, stride)
        self._add_shortcut(norm)
        self.conv1 = _conv_norm(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv_norm(out_channels, out_channels, 3, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        return self._merge(x, self.conv2(F.relu_(self.conv1(x))))


class BottleneckBlock(_ResidualBlock):
    """1x1, 3x3, 1x1 convolutions (ResNet-50 and deeper)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm="BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ):
        """
        Args:
            bottleneck_channels: width of the 3x3 convolution.
            num_groups: its groups.
            stride_in_1x1: stride in the first 1x1 (as in MSRA's weights) or in the 3x3 (as in
                torchvision's).
            dilation: of the 3x3 convolution.
        """
        super().__init__(in_channels, out_channels, stride)
        self._add_shortcut(norm)
        first = stride if stride_in_1x1 else 1
        self.conv1 = _conv_norm(in_channels, bottleneck_channels, 1, norm, stride=first)
        self.conv2 = _conv_norm(
            bottleneck_channels,
            bottleneck_channels,
            3,
            norm,
            stride=stride // first,
            groups=num_groups,
            dilation=dilation,
        )
        self.conv3 = _conv_norm(bottleneck_channels, out_channels, 1, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        hidden = F.relu_(self.conv2(F.relu_(self.conv1(x))))
        return self._merge(x, self.conv3(hidden))


class BasicStem(CNNBlockBase):
    """7x7 convolution and max pooling, stride 4 together."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm="BN"):
        super().__init__(in_channels, out_channels, stride=4)
        self.conv1 = _conv_norm(in_channels, out_channels, 7, norm, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), 3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem, stages named res2, res3, ... and optionally a linear classifier."""

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ):
        """
        Args:
            stages: blocks of each stage, from res2 on. Stages that no output needs are dropped.
            num_classes: outputs of the classifier; None for none.
            out_features: among "stem", "res2", ... and "linear"; by default the last one there is.
            freeze_at: see `freeze`.
        """
        super().__init__()
        names = [f"res{number}" for number in range(2, 2 + len(stages))]
        if out_features is None:
            out_features = [names[-1] if num_classes is None else "linear"]
        assert len(out_features), "out_features must name an output"
        if num_classes is None:
            depths = [names.index(f) + 1 if f in names else 0 for f in out_features]
            names = names[: max(depths)]

        self.stem, self.stage_names, self.num_classes = stem, tuple(names), num_classes
        self.stages = []
        channels, stride = stem.out_channels, stem.stride
        self._out_feature_channels, self._out_feature_strides = {"stem": channels}, {"stem": stride}
        for name, blocks in zip(names, stages):
            assert len(blocks), f"{name} has no blocks"
            assert all(isinstance(b, CNNBlockBase) for b in blocks), f"{name}: {blocks}"
            self.stages.append(nn.Sequential(*blocks))
            self.add_module(name, self.stages[-1])
            stride *= math.prod(block.stride for block in blocks)
            channels = blocks[-1].out_channels
            self._out_feature_channels[name], self._out_feature_strides[name] = channels, stride
        if num_classes is not None:
            classifier = nn.Linear(channels, num_classes)
            nn.init.normal_(classifier.weight, std=0.01)
            self.avgpool, self.linear = nn.AdaptiveAvgPool2d(1), classifier

        self._out_features = list(out_features)
        known = {"stem", "linear", *names}
        assert set(out_features) <= known, f"out_features {out_features} not all in {sorted(known)}"
        self.freeze(freeze_at)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, C, H, W) images to {name: feature map}, "linear" to (B, num_classes) logits."""
        assert x.ndim == 4, f"expected (B, C, H, W), got {tuple(x.shape)}"
        reached = {"stem": self.stem(x)}
        last = reached["stem"]
        for name in self.stage_names:
            last = reached[name] = getattr(self, name)(last)
        if self.num_classes is not None:
            reached["linear"] = self.linear(self.avgpool(last).flatten(1))
        return {name: out for name, out in reached.items() if name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature map (a classifier's output has neither)."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {
            name: ShapeSpec(channels=channels.get(name), stride=strides.get(name))
            for name in self._out_features
        }

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Fix the stem (1), also res2 (2), ... up to res5 (5); BatchNorm there becomes FrozenBN."""
        for block in [self.stem] if freeze_at >= 1 else []:
            block.freeze()
        for stage in self.stages[: max(0, freeze_at - 1)]:
            for block in stage:
                block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase],
        num_blocks: int,
        *,
        in_channels: int,
        out_channels: int,
        **kwargs,
    ) -> list[CNNBlockBase]:
        """Blocks of one stage; only the first one sees ``in_channels``.

        Args:
            kwargs: for every block; ``<name>_per_block`` is a list with one value of ``<name>``
                for each block.
        """
        lists, shared = {}, {}
        for key, value in kwargs.items():
            name = key.removesuffix("_per_block")
            if name == key:
                shared[name] = value
                continue
            assert len(value) == num_blocks, f"{key} must have {num_blocks} values"
            assert name not in kwargs, f"both {name} and {key} are given"
            lists[name] = value
        inputs = [in_channels, *[out_channels] * (num_blocks - 1)]
        return [
            block_class(
                in_channels=width,
                out_channels=out_channels,
                **shared,
                **{name: values[position] for name, values in lists.items()},
            )
            for position, width in enumerate(inputs)
        ]

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs
    ) -> list[list[CNNBlockBase]]:
        """The four stages of the standard ResNet with ``depth`` in 18, 34, 50, 101, 152.

        Args:
            block_class: by default the one of the paper; ``kwargs`` go to its constructor.
        """
        shallow = depth < 50
        block_class = block_class or (BasicBlock if shallow else BottleneckBlock)
        widths = [64, 128, 256, 512]
        outputs = widths if shallow else [4 * width for width in widths]
        inputs = [64, *outputs[:-1]]
        stages = []
        for level, count in enumerate(_BLOCKS_OF_DEPTH[depth]):
            extra = dict(kwargs)
            if issubclass(block_class, BottleneckBlock) or not shallow:
                extra.setdefault("bottleneck_channels", widths[level])
            stages.append(
                ResNet.make_stage(
                    block_class,
                    count,
                    stride_per_block=_strides(1 if level == 0 else 2, count),
                    in_channels=inputs[level],
                    out_channels=outputs[level],
                    **extra,
                )
            )
        return stages


def _strides(first: int, count: int) -> list[int]:
    return [first] + [1] * (count - 1)


# The older, free-standing name.
make_stage = ResNet.make_stage


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """ResNet as ``MODEL.RESNETS`` and ``MODEL.BACKBONE.FREEZE_AT`` describe it."""
    node = cfg.MODEL.RESNETS
    if any(node.DEFORM_ON_PER_STAGE):
        not_in_lite("MODEL.RESNETS.DEFORM_ON_PER_STAGE")
    assert node.RES5_DILATION in (1, 2), f"res5 dilation must be 1 or 2, got {node.RES5_DILATION}"
    shallow = node.DEPTH in (18, 34)
    if shallow:
        plain = (node.RES2_OUT_CHANNELS, node.RES5_DILATION, node.NUM_GROUPS) == (64, 1, 1)
        assert plain, (
            "ResNet-18/34 need RES2_OUT_CHANNELS 64, RES5_DILATION 1 and NUM_GROUPS 1 "
            "under MODEL.RESNETS"
        )
    stages, in_channels = [], node.STEM_OUT_CHANNELS
    for level, count in enumerate(_BLOCKS_OF_DEPTH[node.DEPTH]):
        dilated = level == 3 and node.RES5_DILATION == 2
        extra = {}
        if not shallow:
            extra = {
                "bottleneck_channels": node.NUM_GROUPS * node.WIDTH_PER_GROUP * 2**level,
                "num_groups": node.NUM_GROUPS,
                "stride_in_1x1": node.STRIDE_IN_1X1,
                "dilation": 2 if dilated else 1,
            }
        out_channels = node.RES2_OUT_CHANNELS * 2**level
        stages.append(
            ResNet.make_stage(
                BasicBlock if shallow else BottleneckBlock,
                count,
                # Dilation keeps the stride of res4 and widens the view instead.
                stride_per_block=_strides(1 if level == 0 or dilated else 2, count),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=node.NORM,
                **extra,
            )
        )
        in_channels = out_channels
    stem = BasicStem(input_shape.channels, node.STEM_OUT_CHANNELS, norm=node.NORM)
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    return ResNet(stem, stages, out_features=node.OUT_FEATURES, freeze_at=freeze_at)
