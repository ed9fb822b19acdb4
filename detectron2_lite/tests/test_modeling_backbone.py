"""ResNet and FPN: parameter names, freezing, norms, shapes."""

import importlib

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import CNNBlockBase, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    FPN,
    Backbone,
    ResNet,
    ResNetBlockBase,
    build_backbone,
    make_stage,
)
from detectron2.modeling.backbone import BasicBlock, BasicStem, BottleneckBlock
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

STAGES = ["res2", "res3", "res4", "res5"]


def cfg_of(**resnets):
    """Bottleneck ResNet-50 of an eighth of the width, unless told otherwise."""
    cfg = get_cfg()
    node = cfg.MODEL.RESNETS
    node.OUT_FEATURES = STAGES
    node.STEM_OUT_CHANNELS, node.RES2_OUT_CHANNELS, node.WIDTH_PER_GROUP = 16, 32, 8
    cfg.MODEL.FPN.IN_FEATURES = STAGES
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    for name, value in resnets.items():
        node[name] = value
    return cfg


def shallow_cfg(depth=18, **resnets):
    return cfg_of(DEPTH=depth, RES2_OUT_CHANNELS=64, STEM_OUT_CHANNELS=64, **resnets)


@pytest.mark.parametrize(("depth", "blocks"), [(18, [2, 2, 2, 2]), (34, [3, 4, 6, 3])])
def test_shallow_resnet(depth, blocks):
    net = build_backbone(shallow_cfg(depth))
    assert [len(stage) for stage in net.stages] == blocks
    names = {name for name in net.state_dict() if name.startswith("res3.0.") and "norm" not in name}
    assert names == {"res3.0.conv1.weight", "res3.0.conv2.weight", "res3.0.shortcut.weight"}
    # The first stage keeps the stem's channels, so that its shortcuts are the identity.
    assert not any("res2.0.shortcut" in name for name in net.state_dict())
    out = net(torch.randn(1, 3, 64, 96))
    assert {k: tuple(v.shape[1:]) for k, v in out.items()} == {
        "res2": (64, 16, 24),
        "res3": (128, 8, 12),
        "res4": (256, 4, 6),
        "res5": (512, 2, 3),
    }
    assert {k: (s.channels, s.stride) for k, s in net.output_shape().items()} == {
        "res2": (64, 4),
        "res3": (128, 8),
        "res4": (256, 16),
        "res5": (512, 32),
    }


@pytest.mark.parametrize(
    "change",
    [{"RES2_OUT_CHANNELS": 256}, {"RES5_DILATION": 2}, {"NUM_GROUPS": 2}],
    ids=lambda change: next(iter(change)),
)
def test_shallow_resnet_limits(change):
    cfg = shallow_cfg()
    cfg.MODEL.RESNETS.merge_from_list([x for item in change.items() for x in item])
    with pytest.raises(AssertionError, match="RES2_OUT_CHANNELS 64"):
        build_backbone(cfg)


@pytest.mark.parametrize("freeze_at", range(6))
@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_freeze_at(freeze_at, norm):
    cfg = shallow_cfg(NORM=norm)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    net = build_backbone(cfg)
    for depth, name in enumerate(["stem", *STAGES], start=1):
        part = getattr(net, name)
        is_frozen = depth <= freeze_at
        trainable = [p.requires_grad for p in part.parameters()]
        assert set(trainable) == {not is_frozen}, name
        if norm == "BN":  # statistics stop too
            kinds = {type(m) for m in part.modules() if "BatchNorm" in type(m).__name__}
            assert kinds == {FrozenBatchNorm2d if is_frozen else nn.BatchNorm2d}, name


@pytest.mark.parametrize(
    ("norm", "kind", "trainable"),
    [
        ("FrozenBN", FrozenBatchNorm2d, False),
        ("BN", nn.BatchNorm2d, True),
        ("SyncBN", nn.SyncBatchNorm, True),
        ("GN", nn.GroupNorm, True),
    ],
)
def test_norms(norm, kind, trainable):
    cfg = cfg_of(NORM=norm, STEM_OUT_CHANNELS=32, RES2_OUT_CHANNELS=64, WIDTH_PER_GROUP=32)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    net = build_backbone(cfg)
    assert isinstance(net.res4[0].conv2.norm, kind)
    assert any(".norm.weight" in name for name, _ in net.named_parameters()) == trainable
    assert net.res2[0].conv1.bias is None


def test_bottleneck_options():
    net = build_backbone(cfg_of(STRIDE_IN_1X1=False, NUM_GROUPS=2, RES5_DILATION=2))
    block = net.res3[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
    assert block.conv2.groups == 2
    assert net.res5[0].conv2.dilation == (2, 2)
    assert net.output_shape()["res5"].stride == 16  # dilated instead of strided
    assert net(torch.randn(1, 3, 64, 64))["res5"].shape[2:] == (4, 4)
    assert build_backbone(cfg_of()).res3[0].conv1.stride == (2, 2)  # the default: in the 1x1


def test_unused_stages_are_dropped():
    stages = ResNet.make_default_stages(18)
    assert not hasattr(ResNet(BasicStem(), stages, out_features=["res2"]), "res3")
    net = ResNet(BasicStem(), stages, out_features=["stem", "res4"])
    assert hasattr(net, "res4")
    assert not hasattr(net, "res5")
    assert list(net(torch.randn(1, 3, 32, 32))) == ["stem", "res4"]
    with pytest.raises(AssertionError, match="res9"):
        ResNet(BasicStem(), stages, out_features=["res9"])


def test_classifier():
    net = ResNet(BasicStem(), ResNet.make_default_stages(18), num_classes=7)
    out = net(torch.randn(2, 3, 32, 32))
    assert out["linear"].shape == (2, 7)
    assert net.output_shape()["linear"] == ShapeSpec()


def test_default_stages_of_deep_networks():
    stages = ResNet.make_default_stages(50, norm="FrozenBN")
    assert [len(s) for s in stages] == [3, 4, 6, 3]
    assert [s[-1].out_channels for s in stages] == [256, 512, 1024, 2048]
    assert [s[0].stride for s in stages] == [1, 2, 2, 2]


def test_make_stage_values_per_block():
    blocks = make_stage(
        BottleneckBlock,
        3,
        in_channels=8,
        out_channels=16,
        bottleneck_channels=4,
        stride_per_block=[2, 1, 1],
        dilation_per_block=[1, 2, 4],
    )
    assert [b.conv2.dilation[0] for b in blocks] == [1, 2, 4]
    assert [b.in_channels for b in blocks] == [8, 16, 16]
    with pytest.raises(AssertionError, match="stride_per_block"):
        make_stage(BasicBlock, 2, in_channels=4, out_channels=4, stride_per_block=[1])
    with pytest.raises(AssertionError, match="both"):
        make_stage(BasicBlock, 1, in_channels=4, out_channels=4, stride=1, stride_per_block=[1])


def test_fpn_norm_and_top_blocks():
    cfg = cfg_of(RES2_OUT_CHANNELS=32)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.FPN.NORM = "GN"
    net = build_backbone(cfg)
    assert net.fpn_lateral2.bias is None
    assert isinstance(net.fpn_output5.norm, nn.GroupNorm)
    out = net(torch.randn(1, 3, 64, 128))
    assert {k: tuple(v.shape[1:]) for k, v in out.items()} == {
        "p2": (32, 16, 32),
        "p3": (32, 8, 16),
        "p4": (32, 4, 8),
        "p5": (32, 2, 4),
        "p6": (32, 1, 2),
    }
    assert net.size_divisibility == 32
    assert [s.stride for s in net.output_shape().values()] == [4, 8, 16, 32, 64]

    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = STAGES[1:]
    net = build_backbone(cfg)
    assert list(net(torch.randn(1, 3, 64, 64))) == ["p3", "p4", "p5", "p6", "p7"]
    assert "top_block.p6.weight" in net.state_dict()


def test_fpn_fusion():
    """With identity-like weights the pyramid's arithmetic can be read off."""

    class Two(Backbone):
        def __init__(self):
            super().__init__()
            self._out_features = ["a", "b"]
            self._out_feature_channels = {"a": 1, "b": 1}
            self._out_feature_strides = {"a": 4, "b": 8}

        def forward(self, x):
            return {"a": torch.full((1, 1, 4, 4), 1.0), "b": torch.arange(4.0).view(1, 1, 2, 2)}

    for fuse, factor in (("sum", 1.0), ("avg", 0.5)):
        net = FPN(Two(), ["a", "b"], 1, fuse_type=fuse, square_pad=64)
        for name, layer in net.named_children():
            if name.startswith("fpn"):
                nn.init.zeros_(layer.weight)
                layer.weight.data[..., layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1.0
        up = torch.arange(4.0).view(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
        assert torch.equal(net(torch.zeros(1))["p2"][0, 0], (1 + up) * factor)
        assert net.padding_constraints["square_size"] == 64
    with pytest.raises(AssertionError, match="contiguous"):
        FPN(build_backbone(cfg_of()), ["res2", "res4"], 8)


def test_top_blocks():
    assert LastLevelMaxPool()(torch.arange(9.0).view(1, 1, 3, 3))[0].flatten().tolist() == [
        0,
        2,
        6,
        8,
    ]
    assert [x.shape[-1] for x in LastLevelP6P7(4, 8)(torch.randn(1, 4, 8, 8))] == [4, 2]


def test_builders():
    net = build_backbone(cfg_of(), ShapeSpec(channels=5))
    assert net.stem.conv1.in_channels == 5
    with pytest.raises(NotImplementedError, match="upstream"):
        build_backbone(cfg_of(DEFORM_ON_PER_STAGE=[False, True, True, True]))
    cfg = cfg_of()
    cfg.MODEL.BACKBONE.NAME = "build_vit_backbone"
    with pytest.raises(NotImplementedError, match="upstream"):
        build_backbone(cfg)
    cfg.MODEL.BACKBONE.NAME = "no_such_backbone"
    with pytest.raises(KeyError):
        build_backbone(cfg)

    @BACKBONE_REGISTRY.register()
    def _not_a_backbone_for_this_test(cfg, shape):
        return nn.Identity()

    cfg.MODEL.BACKBONE.NAME = "_not_a_backbone_for_this_test"
    with pytest.raises(AssertionError, match="no Backbone"):
        build_backbone(cfg)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("detectron2.modeling", "RetinaNet"),
        ("detectron2.modeling.backbone", "ViT"),
        ("detectron2.modeling.backbone.swin", "SwinTransformer"),
        ("detectron2.modeling.roi_heads.roi_heads", "select_proposals_with_visible_keypoints"),
        ("detectron2.modeling.roi_heads", "KRCNNConvDeconvUpsampleHead"),
        ("detectron2.modeling.test_time_augmentation", "GeneralizedRCNNWithTTA"),
    ],
)
def test_names_of_upstream_only(module, name):
    module = importlib.import_module(module)
    with pytest.raises(NotImplementedError, match="upstream"):
        getattr(module, name)
    with pytest.raises(AttributeError):
        module.__no_such_name__  # noqa: B018


def test_older_name_of_blocks():
    assert ResNetBlockBase is CNNBlockBase
