"""Layers: norms, wrappers, suppression, pooling, initialisation, paired-box losses."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import (
    CNNBlockBase,
    Conv2d,
    FrozenBatchNorm2d,
    NaiveSyncBatchNorm,
    ROIAlign,
    ShapeSpec,
    batched_nms,
    c2_msra_fill,
    c2_xavier_fill,
    cat,
    ciou_loss,
    cross_entropy,
    diou_loss,
    get_norm,
    nonzero_tuple,
)
from torch import nn


def _trained_norm(channels: int = 4) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(channels) + 0.5)
    return norm.eval()


def test_frozen_norm_equals_batch_norm() -> None:
    norm, x = _trained_norm(), torch.randn(2, 4, 3, 5)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    assert list(frozen.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    assert not list(frozen.parameters())
    for train in (False, True):
        frozen.train(train)
        # With and without a gradient, which take different paths.
        torch.testing.assert_close(frozen(x), norm(x))
        torch.testing.assert_close(frozen(x.clone().requires_grad_()), norm(x))
    assert torch.equal(frozen.running_mean, norm.running_mean)


def test_new_frozen_norm_is_the_identity() -> None:
    x = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(FrozenBatchNorm2d(3)(x), x, atol=1e-6, rtol=0)


def test_frozen_norm_loads_a_batch_norm_checkpoint() -> None:
    norm, frozen = _trained_norm(), FrozenBatchNorm2d(4)
    assert "num_batches_tracked" in norm.state_dict()
    result = frozen.load_state_dict(norm.state_dict())
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(frozen.running_var, norm.running_var)


# Version in the file, keys in the file -> (mean, variance) loaded into a norm whose mean was 9,
# and the keys reported missing. Measured on upstream 0.6.
UNVERSIONED = [
    (None, "weight bias", (0, 1), []),  # a converted .pkl with folded statistics
    (1, "weight bias", (0, 1), []),
    (None, "weight bias running_mean", (5, 1), []),  # what the file has is kept
    (None, "running_mean running_var", (5, 5), ["weight", "bias"]),
    (2, "weight bias", (9, 1 - 1e-5), ["running_mean", "running_var"]),  # a file with a gap
    (3, "weight bias running_var", (9, 5), ["running_mean"]),
]


@pytest.mark.parametrize(("version", "keys", "statistics", "missing"), UNVERSIONED)
def test_frozen_norm_fills_in_statistics_of_unversioned_files(
    version: int | None, keys: str, statistics: tuple[float, float], missing: list[str]
) -> None:
    frozen = FrozenBatchNorm2d(2)
    frozen.running_mean.fill_(9)
    saved = OrderedDict((key, torch.full((2,), 5.0)) for key in keys.split())
    if version is not None:
        saved._metadata = {"": {"version": version}}
    result = frozen.load_state_dict(saved, strict=False)
    assert result.missing_keys == missing
    assert not result.unexpected_keys
    assert list(saved) == keys.split()  # the caller's dictionary stays as it was
    loaded = torch.stack([frozen.running_mean, frozen.running_var], 1)
    want = torch.tensor([statistics] * 2, dtype=torch.float32)
    torch.testing.assert_close(loaded, want, atol=1e-7, rtol=0)


def test_convert_reaches_nested_norms_and_freeze_stops_gradients() -> None:
    class Block(CNNBlockBase):
        def __init__(self) -> None:
            super().__init__(3, 4, 2)
            self.conv = Conv2d(3, 4, 1, norm=nn.BatchNorm2d(4))
            self.more = nn.Sequential(nn.ModuleList([nn.SyncBatchNorm(4)]), nn.GroupNorm(2, 4))

    block = Block()
    assert (block.in_channels, block.out_channels, block.stride) == (3, 4, 2)
    assert block.freeze() is block
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)
    assert isinstance(block.more[0][0], FrozenBatchNorm2d)
    assert isinstance(block.more[1], nn.GroupNorm)
    assert not any(p.requires_grad for p in block.parameters())
    assert "conv.norm.running_mean" in block.state_dict()


NORMS = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": NaiveSyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": nn.GroupNorm,
}


def test_get_norm() -> None:
    assert get_norm("", 32) is None
    assert get_norm(None, 32) is None
    for name, kind in NORMS.items():
        assert type(get_norm(name, 32)) is kind
    assert get_norm("GN", 64).num_groups == 32
    assert isinstance(get_norm(nn.InstanceNorm2d, 8), nn.InstanceNorm2d)
    with pytest.raises(KeyError, match="XN"):
        get_norm("XN", 8)
    x = torch.randn(2, 8, 3, 3)
    out = get_norm("LN", 8)(x)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3, 3), atol=1e-5, rtol=0)
    # In one process the synchronised kinds are plain batch norm.
    torch.testing.assert_close(get_norm("naiveSyncBN", 8)(x), nn.BatchNorm2d(8)(x))


def test_conv_applies_norm_then_activation() -> None:
    x = torch.randn(1, 2, 5, 5)
    conv = Conv2d(2, 3, 3, padding=1, bias=False, norm=_trained_norm(3), activation=F.relu)
    assert sorted(conv.state_dict())[0] == "norm.bias"
    want = F.relu(conv.norm(F.conv2d(x, conv.weight, padding=1)))
    torch.testing.assert_close(conv(x), want)
    empty = conv(torch.zeros(0, 2, 5, 5))
    assert empty.shape == (0, 3, 5, 5)
    with pytest.raises(ValueError, match="empty"):
        Conv2d(2, 3, 1, norm=nn.SyncBatchNorm(3))(torch.zeros(0, 2, 5, 5))


def test_cross_entropy_of_nothing_is_a_zero_with_gradient() -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad.shape == (0, 5)
    full, target = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    for reduction in ("mean", "sum", "none"):
        got = cross_entropy(full, target, reduction=reduction)
        torch.testing.assert_close(got, F.cross_entropy(full, target, reduction=reduction))


def test_small_wrappers() -> None:
    x = torch.rand(2, 3)
    assert cat([x]) is x
    assert cat((x, x), dim=1).shape == (2, 6)
    with pytest.raises(TypeError):
        cat(x)
    rows, columns = nonzero_tuple(torch.tensor([[0, 1], [1, 0]]))
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])
    assert ShapeSpec(channels=3) == ShapeSpec(3, None, None, None)


def test_batched_nms_keeps_groups_apart() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]])
    scores, groups = torch.tensor([0.5, 0.9, 0.8, 0.1]), torch.tensor([0, 0, 1, 0])
    assert batched_nms(boxes, scores, groups, 0.5).tolist() == [1, 2, 3]
    assert batched_nms(boxes, scores, torch.zeros(4, dtype=torch.long), 0.5).tolist() == [1, 3]
    # Half precision cannot hold the offsets that separate the groups.
    assert batched_nms(boxes.half(), scores.half(), groups, 0.5).tolist() == [1, 2, 3]
    none = batched_nms(boxes[:0], scores[:0], groups[:0], 0.5)
    assert none.numel() == 0


def test_roi_align_takes_pixel_centres_at_halves() -> None:
    ramp = torch.arange(5.0).expand(1, 1, 5, 5)
    box = torch.tensor([[0.0, 1, 1, 3, 3]])
    aligned = ROIAlign(2, 1.0, 0)(ramp, box)
    # Bins are the pixels 1 and 2 themselves; the old version samples half a pixel further.
    assert aligned[0, 0, 0].tolist() == [1, 2]
    assert ROIAlign(2, 1.0, 0, aligned=False)(ramp, box)[0, 0, 0].tolist() == [1.5, 2.5]
    assert ROIAlign((3, 4), 0.5, 2)(ramp, box[:0]).shape == (0, 1, 3, 4)
    assert "aligned=True" in repr(ROIAlign(2, 1.0, 0))
    with pytest.raises(ValueError, match="R, 5"):
        ROIAlign(2, 1.0, 0)(ramp, box[:, 1:])


# fan_in = 4 * 9, fan_out = 8 * 9
FILLS: dict[str, tuple[Callable[[nn.Module], None], float]] = {
    "xavier: uniform in +-sqrt(3 / fan_in)": (c2_xavier_fill, math.sqrt(1 / 36)),
    "msra: normal, variance 2 / fan_out": (c2_msra_fill, math.sqrt(2 / 72)),
}


@pytest.mark.parametrize("name", FILLS)
def test_weight_init(name: str) -> None:
    fill, deviation = FILLS[name]
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3)
    samples = []
    for _ in range(40):
        fill(conv)
        samples.append(conv.weight.detach().flatten().clone())
    assert float(torch.cat(samples).std()) == pytest.approx(deviation, rel=0.03)
    assert not conv.bias.detach().any()
    fill(nn.Conv2d(4, 8, 3, bias=False))


def _diou(a: list[float], b: list[float]) -> float:
    """Equation 7 of the DIoU paper, from the definition."""
    inter = math.prod(max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    iou = inter / (sum(areas) - inter)
    enclosing = sum((max(a[i + 2], b[i + 2]) - min(a[i], b[i])) ** 2 for i in (0, 1))
    centres = sum(((a[i] + a[i + 2] - b[i] - b[i + 2]) / 2) ** 2 for i in (0, 1))
    return 1 - iou + centres / enclosing


def _ciou(a: list[float], b: list[float]) -> float:
    """Equation 10 of the DIoU paper, from the definition."""
    angles = [math.atan((x1 - x0) / (y1 - y0)) for x0, y0, x1, y1 in (a, b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    distance = _diou(a, b)
    inter = math.prod(max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    iou = inter / (sum(areas) - inter)
    return distance + v * v / (1 - iou + v) if v else distance


LOSSES: dict[str, tuple[Any, Any]] = {"diou": (diou_loss, _diou), "ciou": (ciou_loss, _ciou)}


@pytest.mark.parametrize("name", LOSSES)
def test_paired_box_losses(name: str) -> None:
    loss, naive = LOSSES[name]
    first = [[-1.0, -1, 1, 1], [0, 0, 4, 2], [0, 0, 1, 1], [2, 2, 5, 9]]
    second = [[-1.0, -1, 1, 1], [1, 1, 3, 5], [5, 5, 7, 6], [2, 3, 6, 8]]
    want = torch.tensor([naive(a, b) for a, b in zip(first, second)])
    got = loss(torch.tensor(first), torch.tensor(second))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    mean = loss(torch.tensor(first), torch.tensor(second), reduction="mean")
    assert float(mean) == pytest.approx(float(want.mean()), rel=1e-4)
    assert float(loss(torch.zeros(0, 4), torch.zeros(0, 4), reduction="mean")) == 0
