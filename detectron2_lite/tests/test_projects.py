"""Point sampling, colour jitter and the poly schedule, against upstream's numbers and naive twins.

Run as a script where upstream is installed, this file writes upstream's numbers:
``python test_projects.py golden/projects.json``.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.projects.point_rend.mask_head import calculate_uncertainty as mask_uncertainty
from detectron2.projects.point_rend.point_features import (
    generate_regular_grid_point_coords,
    get_point_coords_wrt_image,
    get_uncertain_point_coords_on_grid,
    get_uncertain_point_coords_with_randomness,
    point_sample,
    point_sample_fine_grained_features,
    sample_point_labels,
)
from detectron2.projects.point_rend.semantic_seg import calculate_uncertainty as pixel_uncertainty
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

SCHEDULES = [
    {},
    {"POLY_LR_POWER": 1.0, "WARMUP_METHOD": "constant", "WARMUP_FACTOR": 0.25},
    {"POLY_LR_CONSTANT_ENDING": 0.3, "WARMUP_ITERS": 0},
    {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (8, 11)},
]
BOXES = [[2.0, 3, 10, 20], [0, 0, 4, 4], [5, 1, 29, 19]]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.as_tensor(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.as_tensor(np.random.RandomState(seed).uniform(size=shape).astype(np.float32))


def learning_rates(settings: dict) -> list[float]:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    stock = {"LR_SCHEDULER_NAME": "WarmupPolyLR", "MAX_ITER": 16, "WARMUP_ITERS": 4}
    for name, value in (stock | settings).items():
        cfg.SOLVER[name] = value
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [{"params": [parameters[0]], "lr": 0.2}, {"params": [parameters[1]]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(16):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def random_points() -> list:
    """From torch's generator; equal seeds give equal points in both builds."""
    torch.manual_seed(3)
    ratios = [(8, 3, 0.75), (5, 1.5, 1.0), (4, 2, 0.0)]
    return [
        get_uncertain_point_coords_with_randomness(
            noise(2, 1, 7, 9), lambda x: -x.abs(), *ratio
        ).tolist()
        for ratio in ratios
    ]


def fine_features() -> list:
    maps = [noise(2, 3, 8, 10), noise(2, 2, 4, 5, seed=1)]
    per_image = [Boxes(torch.tensor(BOXES[:2])), Boxes(torch.tensor(BOXES[2:]))]
    values, positions = point_sample_fine_grained_features(
        maps, [1 / 4, 1 / 8], per_image, uniform(3, 5, 2)
    )
    return [values.tolist(), positions.tolist()]


def point_labels() -> list:
    masks = BitMasks(noise(3, 20, 30) > 0)
    regions = Instances((20, 30), gt_masks=masks)
    nobody = regions[torch.zeros(3, dtype=torch.bool)]
    positions = get_point_coords_wrt_image(torch.tensor(BOXES), uniform(3, 6, 2))
    return sample_point_labels([regions[:2], nobody, regions[2:]], positions).tolist()


def colours() -> list:
    """For 24 seeds, four pixels of a jittered image of noise and its mean."""
    image = np.random.RandomState(0).randint(0, 256, (24, 64, 3)).astype(np.uint8)
    rows = []
    for seed in range(24):
        random.seed(seed)
        jitter = ColorAugSSDTransform("RGB" if seed % 2 else "BGR", hue_delta=18 + seed)
        out = jitter.apply_image(image).astype(int)
        rows.append([*out[3, ::20].ravel().tolist(), round(float(out.mean()), 2)])
    return rows


def compute() -> dict:
    index, centres = get_uncertain_point_coords_on_grid(noise(2, 1, 4, 6), 5)
    return {
        "rates": [learning_rates(settings) for settings in SCHEDULES],
        "random_points": random_points(),
        "grid_points": [index.tolist(), centres.tolist()],
        "fine_features": fine_features(),
        "labels": point_labels(),
        "mask_uncertainty": mask_uncertainty(noise(3, 4, 5), torch.tensor([0, 3, 1])).tolist(),
        "pixel_uncertainty": pixel_uncertainty(noise(2, 4, 3, 2)).tolist(),
        "colours": colours(),
    }


@pytest.fixture(scope="module")
def pair(golden_dir) -> tuple[dict, dict]:
    text = (golden_dir / "projects.json").read_text(encoding="utf-8")
    return compute(), json.loads(text)


@pytest.mark.parametrize(
    "name",
    [
        "rates",
        "random_points",
        "grid_points",
        "fine_features",
        "labels",
        "mask_uncertainty",
        "pixel_uncertainty",
    ],
)
def test_equal_to_upstream(pair, name):
    got, want = ([x] if not isinstance(x, list) else x for x in (p[name] for p in pair))
    assert len(got) == len(want)
    for mine, theirs in zip(got, want):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_colours_equal_upstream_to_one_level(pair):
    """Upstream's come from OpenCV, which itself differs by a level with the image's width."""
    got, want = (np.array(p["colours"]) for p in pair)
    assert np.abs(got[:, :-1] - want[:, :-1]).max() <= 1
    np.testing.assert_allclose(got[:, -1], want[:, -1], atol=0.05)


def test_point_sample_is_bilinear():
    """Against a loop over points and neighbours; outside of the map there is 0."""
    image, points = noise(2, 3, 4, 5), uniform(2, 30, 2, seed=1)
    points[:, :3] = torch.tensor([[0.0, 0.0], [1.0, 0.5], [0.02, 0.97]])
    want = torch.zeros(2, 3, 30)
    for n in range(2):
        for k, (x, y) in enumerate(points[n].tolist()):
            column, row = x * 5 - 0.5, y * 4 - 0.5
            for i in range(4):
                for j in range(5):
                    weight = max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j))
                    want[n, :, k] += weight * image[n, :, i, j]
    torch.testing.assert_close(
        point_sample(image, points, align_corners=False), want, rtol=1e-4, atol=1e-5
    )
    grid = point_sample(image, points.view(2, 5, 6, 2), align_corners=False)
    torch.testing.assert_close(grid, want.view(2, 3, 5, 6), rtol=1e-4, atol=1e-5)


def test_grid_of_points():
    points = generate_regular_grid_point_coords(2, 2, "cpu")
    want = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert points.tolist() == [want, want]
    whole_map = get_uncertain_point_coords_on_grid(noise(1, 1, 2, 2), 99)[0]
    assert sorted(whole_map[0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [0, 3])
def test_points_of_no_region(count):
    points = get_uncertain_point_coords_with_randomness(
        torch.zeros(count, 1, 7, 7), lambda x: -x.abs(), 8, 3, 0.75
    )
    assert points.shape == (count, 8, 2)


def test_uncertain_points_lie_on_the_outline():
    """Sure of yes on the left, of no on the right: in the middle it is uncertain, and at the
    border, beyond which a map is 0."""
    logits = torch.full((1, 1, 32, 32), 9.0)
    logits[..., 16:] = -9
    torch.manual_seed(0)
    points = get_uncertain_point_coords_with_randomness(logits, lambda x: -x.abs(), 20, 50, 1.0)
    x, from_border = points[..., 0], torch.minimum(points, 1 - points).amin(dim=-1)
    assert (((x - 0.5).abs() < 1 / 64) | (from_border < 1 / 64)).all()


@pytest.mark.parametrize(("oversample", "share"), [(0.5, 0.75), (3, 1.5), (3, -0.1)])
def test_sampling_mistakes(oversample, share):
    with pytest.raises(AssertionError, match="ratio"):
        get_uncertain_point_coords_with_randomness(
            torch.zeros(1, 1, 7, 7), torch.abs, 8, oversample, share
        )


def test_boxes_and_labels():
    positions = get_point_coords_wrt_image(torch.tensor([BOXES[0]]), torch.tensor([[[0.25, 0.5]]]))
    assert positions.tolist() == [[[4.0, 11.5]]]
    polygons = PolygonMasks([[[0, 0, 5, 5, 5, 0]]])
    regions = Instances((9, 9), gt_masks=polygons)
    with pytest.raises(AssertionError, match="bitmask"):
        sample_point_labels([regions], torch.zeros(1, 4, 2))


def test_colour_jitter_leaves_the_rest():
    jitter = ColorAugSSDTransform("BGR")
    points = np.ones((2, 2))
    assert jitter.apply_coords(points) is points
    assert jitter.apply_segmentation(points) is points
    with pytest.raises(AssertionError):
        ColorAugSSDTransform("L")


def test_poly_refuses_an_unknown_warmup():
    with pytest.raises(ValueError, match="cubic"):
        learning_rates({"WARMUP_METHOD": "cubic"})
    with pytest.raises(ValueError, match="NoSuchLR"):
        learning_rates({"LR_SCHEDULER_NAME": "NoSuchLR"})


if __name__ == "__main__":
    torch.set_num_threads(1)

    def short(value):
        if isinstance(value, list):
            return [short(v) for v in value]
        return float(f"{value:.7g}") if isinstance(value, float) else value

    numbers = {name: short(value) for name, value in compute().items()}
    Path(sys.argv[1]).write_text(json.dumps(numbers, separators=(",", ":")) + "\n")
