"""The mean field at labelling time: against its parts, and what it leaves alone."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import mal.data  # noqa: F401  (registers the data pipeline)
from mal.crops import Window
from mal.label_refinement import LabelRefinement
from mal.mask_auto_labeler import MaskAutoLabeler
from mal.mean_field import mean_field, mean_field_kernel
from mal.predictor import BoxPredictor
from mal.resampling import box_maps
from pseudolabel.masks import box_to_centre_slices, decode_segmentation
from tests.tiny import tiny_config, write_coco

HEIGHT, WIDTH, SIZE = 40, 56, 32
DISC = (np.hypot(*np.ogrid[-20:20, -28:28]) < 10).astype(np.uint8)
IMAGE = np.repeat((60 + 100 * DISC)[..., None], 3, axis=2)
BOXES = np.array([[18, 10, 38, 30], [4, 4, 24, 30], [0, 0, 56, 40], [-6, 20, 20, 60]], float)


class Noisy(nn.Module):
    """Finds what is bright, but is wrong about one pixel in five."""

    def forward(self, images, areas):
        maps = F.avg_pool2d(images.mean(1), 2)
        wrong = torch.rand(maps.shape[1:], generator=torch.Generator().manual_seed(0)) < 0.2
        return torch.where(wrong, -maps, maps)


def normalize(images):
    return images.float() / 50 - 2


def predictor(refinement=None, **options):
    networks = {"student": Noisy(), "teacher": Noisy()}
    return BoxPredictor(networks, normalize, crop_size=SIZE, refinement=refinement, **options)


def masks(records):
    return np.array([decode_segmentation(r.segmentation, HEIGHT, WIDTH) for r in records])


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*(st.floats(-30, 70),) * 2, *(st.floats(0.5, 90),) * 2).map(
        lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
    ),
    st.tuples(*(st.integers(-30, 50),) * 2, *(st.integers(1, 80),) * 2),
    st.integers(1, 12),
)
def test_box_maps_hold_the_centres_inside_the_box(box, frame, size):
    y, x, height, width = frame
    window = Window(y, x, y + height, x + width)
    found = box_maps([window], np.array([box]), size)[0]
    assert found.dtype == torch.float32
    for row, column in itertools.product(range(size), repeat=2):
        centre_y = y + (row + 0.5) / size * height
        centre_x = x + (column + 0.5) / size * width
        inside = box[0] <= centre_x < box[2] and box[1] <= centre_y < box[3]
        assert found[row, column] == inside


@pytest.mark.parametrize(
    ("scale", "side", "unary"),
    [(1.0, 16, 0.0), (2.0, 32, 0.0), (0.5, 8, 0.0), (1.0, 16, 0.3)],
)
def test_equals_the_training_target_from_one_network(scale, side, unary):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 16, 16, generator=generator)
    images = 0.1 * torch.randn(3, 3, SIZE, SIZE, generator=generator)
    box = torch.zeros(3, SIZE, SIZE)
    box[:, 5:27, 4:30] = 1
    refine = LabelRefinement({"zeta": 0.3}, iterations=9, scale=scale, unary=unary)
    found = refine(logits, images, box, torch.tensor([0.5, 0.2, 0.9]))
    maps = [logits[:, None], box[:, None], images]
    start, inside, guide = (
        m if m.shape[-1] == side else F.interpolate(m, (side, side), mode="bilinear") for m in maps
    )
    kernel = mean_field_kernel(guide, zeta=0.3)
    # Odds over those of the thresholds: 1, 1/4 and 9.
    odds = start[:, 0].exp() / torch.tensor([1.0, 0.25, 9.0])[:, None, None]
    start = inside[:, 0] * odds / (1 + odds)
    state = mean_field(start, inside[:, 0], kernel, 9, hard=False, unary=unary)
    assert found.shape == (3, side, side)
    within = inside[:, 0] > 0
    assert torch.allclose(found[within], state[within], atol=1e-5)
    assert (found[~within] <= 0.1).all()


def test_a_noisy_mask_takes_the_outline_of_the_image():
    plain, refined = (
        masks(predictor(r).predict(IMAGE, BOXES[:1])["teacher"])[0]
        for r in (None, LabelRefinement(scale=2.0))
    )
    wrong = [(m != DISC.astype(bool)).sum() for m in (plain, refined)]
    assert wrong[0] > 40
    assert wrong[1] < wrong[0] / 2, wrong


def test_masks_stay_in_their_boxes_and_quality_stays_the_networks_own():
    plain, refined = (
        predictor(r, quality="soft_agreement").predict(IMAGE, BOXES)["student"]
        for r in (None, LabelRefinement())
    )
    for box, mask in zip(BOXES, masks(refined)):
        inside = np.zeros_like(mask)
        inside[box_to_centre_slices(box, HEIGHT, WIDTH)] = True
        assert not (mask & ~inside).any()
    drawn = [i for i, r in enumerate(refined) if r.mask_source == "model"]
    assert len(drawn) >= 3
    assert [plain[i].quality for i in drawn] == [refined[i].quality for i in drawn]
    assert [plain[i].agreement for i in drawn] == [refined[i].agreement for i in drawn]
    assert (masks(plain) != masks(refined)).any()


def test_thresholds_mean_what_they_mean_without():
    """On an image without colours to follow, the mask is the network's own at that threshold."""
    smooth = LabelRefinement({"zeta": 1e-3}, iterations=3)
    noise = np.random.default_rng(0).integers(0, 256, IMAGE.shape, np.uint8)
    own, refined = (
        [
            masks(predictor(r, thresholds=(t,) * 3).predict(noise, BOXES[:3])["teacher"])
            for t in (0.3, 0.5, 0.7)
        ]
        for r in (None, smooth)
    )
    areas = [m.sum() for m in own]
    assert areas[0] > 1.5 * areas[-1]
    # But for the outline at the box, where background begins.
    assert max((a != b).mean() for a, b in zip(own, refined)) < 0.08


def test_thresholds_of_zero_and_one_are_finite():
    everything, nothing = (
        predictor(LabelRefinement(), thresholds=(t,) * 3).predict(IMAGE, BOXES[:1])["teacher"][0]
        for t in (0.0, 1.0)
    )
    # The corners alone are given up, where more than half of the neighbours lie outside.
    assert 300 < masks([everything])[0].sum() < 400
    assert nothing.mask_source == "filled_empty"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_mask_depends_on_no_other_box_of_its_batch(batch_size):
    boxes = np.concatenate([BOXES, BOXES + 1.5])
    whole = predictor(LabelRefinement()).predict(IMAGE, boxes, ["teacher"])
    parts = predictor(LabelRefinement(), batch_size=batch_size).predict(IMAGE, boxes, ["teacher"])
    assert whole == parts


def test_boxes_at_the_border_use_what_the_crop_shows():
    """A bright half disc at two edges; wrapped, dark pixels of the far side end it there, while a
    replicated edge goes on in its colour, as background, which the mean field then spreads."""
    bright = np.hypot(*np.ogrid[-30:10, 0:WIDTH]) < 9
    image = np.repeat((60 + 100 * bright.astype(np.uint8))[..., None], 3, axis=2)
    box = np.array([[-6.0, 20, 20, 60]])

    def wrong(refinement, border):
        found = predictor(refinement, border=border).predict(image, box, ["teacher"])["teacher"]
        assert found[0].mask_source == "model"
        return (masks(found)[0] != bright).sum()

    assert wrong(LabelRefinement(), "wrap") <= 5
    assert wrong(None, "wrap") > 50
    assert wrong(LabelRefinement(), "replicate") > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "CRF_SCALE 0.0: use a number above 0"),
        ({"iterations": -1}, "CRF_ITERATIONS -1: use 0 or more"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LabelRefinement(**options)


@pytest.mark.parametrize("iterations", [0, 7])
def test_the_key_switches_it_on_and_takes_the_kernel_of_training(iterations, tmp_path):
    cfg = tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out")
    cfg.defrost()
    cfg.MODEL.MAL.TEST.CRF_ITERATIONS, cfg.MODEL.MAL.CRF.ZETA = iterations, 0.2
    refinement = MaskAutoLabeler(cfg).predict_options["refinement"]
    if iterations == 0:
        assert refinement is None
    else:
        assert (refinement.iterations, refinement.kernel["zeta"]) == (7, 0.2)
        assert (refinement.low, refinement.high, refinement.scale) == (0.1, 0.9, 1.0)
