"""Anchors, box deltas, matching and pooling against numbers that upstream Detectron2 computed."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes

PYRAMID_SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def test_anchors(parts):
    want = parts["anchors"]
    generator = DefaultAnchorGenerator(
        sizes=want["sizes"], aspect_ratios=want["ratios"], strides=want["strides"], offset=0.0
    )
    got = generator([torch.zeros(1, 1, *grid) for grid in want["grids"]])
    assert generator.num_anchors == generator.num_cell_anchors == want["num_anchors"]
    for level, boxes in zip(got, want["boxes"], strict=True):
        torch.testing.assert_close(level.tensor, torch.tensor(boxes), rtol=1e-5, atol=1e-4)
    assert not generator.state_dict(), "cell anchors must not be saved"


def test_anchors_centred_in_their_cells(parts):
    generator = DefaultAnchorGenerator(
        sizes=[[32, 64]], aspect_ratios=[[1.0]], strides=[16], offset=0.5
    )
    got = generator([torch.zeros(1, 1, 1, 2)])
    want = torch.tensor(parts["anchors_offset_half"][0])
    torch.testing.assert_close(got[0].tensor, want, rtol=1e-5, atol=1e-4)


def test_anchors_from_config():
    from detectron2.config import get_cfg

    generator = build_anchor_generator(get_cfg(), [ShapeSpec(stride=16)])
    assert generator.num_anchors == [15]  # five sizes by three ratios
    assert generator.strides == [16]


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1.0},  # would be the next cell's corner
        {"sizes": []},  # no anchors at all
        {"sizes": [[32], [64], [128]]},  # three lists, two levels
    ],
)
def test_anchor_mistakes(change):
    arguments = {"sizes": [[32], [64]], "aspect_ratios": [[1.0]], "strides": [4, 8], "offset": 0.0}
    with pytest.raises(AssertionError):
        DefaultAnchorGenerator(**arguments | change)


def test_box_deltas(parts):
    want = parts["box2box"]
    transform = Box2BoxTransform(weights=tuple(want["weights"]))
    source, target = torch.tensor(want["src"]), torch.tensor(want["tgt"])
    deltas = transform.get_deltas(source, target)
    torch.testing.assert_close(deltas, torch.tensor(want["deltas"]), rtol=1e-4, atol=1e-5)
    back = transform.apply_deltas(deltas, source)
    torch.testing.assert_close(back, torch.tensor(want["back"]), rtol=1e-4, atol=1e-3)
    # A delta this large would make the box overflow; its size is cut at 1000 / 16.
    cut = transform.apply_deltas(torch.tensor(want["clamp_in"]).float(), source[:1])
    torch.testing.assert_close(cut, torch.tensor(want["clamp_out"]), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("low", [False, True])
def test_matcher_of_anchors(parts, low):
    want = parts[f"matcher_rpn_low{low}"]
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=low)
    index, label = matcher(torch.tensor(want["q"]))
    assert index.tolist() == want["idx"]
    assert label.tolist() == want["lab"]
    assert (index.dtype, label.dtype) == (torch.int64, torch.int8)


def test_matcher_of_proposals(parts):
    want = parts["matcher_roi"]
    matcher = Matcher([0.5], [0, 1], allow_low_quality_matches=False)
    index, label = matcher(torch.tensor(parts["matcher_rpn_lowTrue"]["q"]))
    assert index.tolist() == want["idx"]
    assert label.tolist() == want["lab"]


def test_levels(parts):
    want = parts["levels"]
    boxes = [Boxes(torch.tensor(want["boxes"]))]
    assert assign_boxes_to_levels(boxes, 2, 5, 224, 4).tolist() == want["level_of_p2_to_p5"]


@pytest.mark.parametrize(
    ("kind", "ratio", "key"),
    [("ROIAlignV2", 0, "roi_pool_v2"), ("ROIAlign", 2, "roi_pool_v1_sr2")],
)
def test_pooling(parts, kind, ratio, key):
    maps = [
        torch.as_tensor(np.random.RandomState(7 + k).standard_normal((1, 2, 64 >> k, 64 >> k)))
        for k in range(4)
    ]
    boxes = [Boxes(torch.tensor(parts["roi_pool_v2"]["boxes"]))]
    pooler = ROIPooler(output_size=3, scales=PYRAMID_SCALES, sampling_ratio=ratio, pooler_type=kind)
    want = parts[key]["out"] if key == "roi_pool_v2" else parts[key]
    got = pooler([m.float() for m in maps], boxes)
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-3, atol=2e-5)
