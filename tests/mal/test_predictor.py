"""Labelling: resampling against its plain form, which networks run, and what spoils a box."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mal.crops import Window, resize_image, test_window, wrap_crop
from mal.labeler import MALLabeler
from mal.predictor import BoxPredictor
from mal.resampling import cut_and_resize, resize_on_device, sample_boxes, sample_pixels
from pseudolabel.calibration import Calibration
from pseudolabel.errors import DataError
from pseudolabel.masks import box_to_slices, decode_segmentation

HEIGHT, WIDTH = 40, 56
SIZE = 16
rng = np.random.default_rng(0)
IMAGE = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
BOXES = np.array([[4, 4, 24, 30], [20.5, 10.2, 50, 33], [0, 0, 56, 40], [30, 30, 31, 31]], float)


class Counting(nn.Module):
    """Brightness as log odds, and how often it was asked."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale, self.calls = scale, 0

    def forward(self, images, areas):
        self.calls += 1
        return self.scale * F.avg_pool2d(images.mean(dim=1), 2)


def normalize(images):
    return images.float() / 64 - 2


def predictor(student=None, teacher=None, **options):
    networks = {"student": student or Counting(), "teacher": teacher or Counting(2.0)}
    return BoxPredictor(networks, normalize, crop_size=SIZE, **options)


windows = st.builds(
    lambda y, x, h, w: Window(y, x, y + h, x + w),
    *(st.integers(-30, 60), st.integers(-30, 70), st.integers(1, 90), st.integers(1, 90)),
)


@settings(max_examples=60, deadline=None)
@given(windows)
def test_crops_are_those_of_training_and_one_grey_level_off_on_other_devices(window):
    # Far from 0 and 255, beyond which the two filters cut off in different order.
    pixels = 90 + IMAGE // 4
    image = torch.from_numpy(pixels)
    expected = resize_image(wrap_crop(pixels, window), SIZE).astype(int)
    here = cut_and_resize(image, window, SIZE).permute(1, 2, 0).numpy()
    assert (here == expected).all()
    crop = torch.from_numpy(wrap_crop(pixels, window))
    there = resize_on_device(crop, SIZE).permute(1, 2, 0).numpy()
    assert np.abs(there.astype(int) - expected).max() <= 1


@settings(max_examples=40, deadline=None)
@given(windows, st.sampled_from(["wrap", "reflect", "replicate"]))
def test_crops_continue_beyond_the_edge_as_in_training(window, border):
    expected = resize_image(wrap_crop(IMAGE, window, border), SIZE)
    found = cut_and_resize(torch.from_numpy(IMAGE), window, SIZE, border)
    assert (found.permute(1, 2, 0).numpy() == expected).all()


def pasted(probability, window):
    """A map on a canvas of the image's size: the whole window is drawn, and cut at the edges."""
    size = (window.height, window.width)
    full = F.interpolate(probability[None, None].float(), size, mode="bilinear")[0, 0].numpy()
    far = 200  # more than any window reaches
    canvas = np.zeros((HEIGHT + 2 * far, WIDTH + 2 * far), np.float32)
    canvas[far + window.y0 : far + window.y1, far + window.x0 : far + window.x1] = full
    return canvas[far : far + HEIGHT, far : far + WIDTH]


boxes = st.tuples(
    *(st.floats(-20, 50), st.floats(-20, 35), st.floats(0.1, 70), st.floats(0.1, 60))
).map(lambda b: np.array([b[0], b[1], b[0] + b[2], b[1] + b[3]]))


@settings(max_examples=60, deadline=None)
@given(boxes, st.integers(2, 20))
def test_sampling_a_box_equals_pasting_the_window_and_cutting(box, side):
    clipped = np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    window = test_window(clipped)
    probability = torch.rand(side, side, generator=torch.Generator().manual_seed(side))
    rows, columns = box_to_slices(box, HEIGHT, WIDTH)
    expected = pasted(probability, window)[rows, columns]
    found = sample_pixels(probability, window, rows, columns).numpy()
    assert found.shape == (rows.stop - rows.start, columns.stop - columns.start)
    assert found == pytest.approx(expected, abs=1e-5)


def test_points_of_a_box_do_not_depend_on_its_window():
    """A map that is linear in image coordinates is read off exactly, whatever the margin."""
    box = np.array([[10.0, 20.0, 30.0, 26.0]])
    for window in (Window(10, 0, 40, 40), Window(18, 8, 28, 34)):
        side = 60
        columns = window.x0 + (torch.arange(side) + 0.5) / side * window.width
        grid = sample_boxes(columns.expand(1, side, side), [window], box, 4)[0]
        assert grid[0].tolist() == pytest.approx([12.5, 17.5, 22.5, 27.5], abs=1e-3)
        assert torch.allclose(grid, grid[:1].expand(4, 4))


@pytest.mark.parametrize(
    ("quality", "names", "student_calls", "teacher_calls", "agreement"),
    [
        ("expected_iou", ["teacher"], 0, 1, False),  # one network is enough
        ("expected_iou", ["student"], 1, 0, False),
        ("soft_agreement", ["teacher"], 1, 1, True),
        ("flip_agreement", ["teacher"], 0, 2, True),  # the mirrored crop, and no student
        ("estimate", ["student"], 1, 1, True),
        ("expected_iou", None, 1, 1, True),  # evaluation: both have masks
    ],
)
def test_only_what_the_measure_asks_for_runs(
    quality, names, student_calls, teacher_calls, agreement
):
    student, teacher = Counting(), Counting(2.0)
    found = predictor(student, teacher, quality=quality).predict(IMAGE, BOXES, names)
    assert (student.calls, teacher.calls) == (student_calls, teacher_calls)
    assert sorted(found) == sorted(names or ["student", "teacher"])
    for records in found.values():
        drawn = [r for r in records if r.mask_source == "model"]
        assert drawn
        assert all((r.agreement is not None) == agreement for r in drawn)


@pytest.mark.parametrize("quality", ["expected_iou", "estimate"])
def test_a_mask_does_not_depend_on_the_measure_of_its_quality(quality):
    plain = predictor(quality="soft_flip_agreement").predict(IMAGE, BOXES, ["teacher"])["teacher"]
    other = predictor(quality=quality).predict(IMAGE, BOXES, ["teacher"])["teacher"]
    assert [r.segmentation for r in plain] == [r.segmentation for r in other]


@pytest.mark.parametrize(
    "box",
    [
        (4, 4, 24, 30),
        (0, 0, 56, 40),  # the whole image
        # It touches column 20, whose centre lies before it, and column 50, whose centre behind it;
        # row 33 has its centre within.
        (20.7, 10.2, 50.4, 33.6),
    ],
)
def test_masks_are_the_pasted_probabilities_above_the_threshold(box):
    (record,) = predictor().predict(IMAGE, np.array([box], float))["teacher"]
    window = test_window(box)
    crop = torch.from_numpy(resize_image(wrap_crop(IMAGE, window), SIZE).copy())
    logits = Counting(2.0)(normalize(crop.permute(2, 0, 1)[None]), None)
    full = F.interpolate(logits[:, None], (SIZE, SIZE), mode="bilinear")[0, 0].sigmoid()
    above = pasted(full, window) > 0.5
    x, y = np.arange(WIDTH) + 0.5, np.arange(HEIGHT)[:, None] + 0.5
    expected = above & (box[0] <= x) & (x < box[2]) & (box[1] <= y) & (y < box[3])
    mask = decode_segmentation(record.segmentation, HEIGHT, WIDTH)
    assert (mask == expected).all()
    touched = np.zeros_like(above)
    touched[box_to_slices(box, HEIGHT, WIDTH)] = True
    if box[0] % 1:
        assert (above & touched).sum() > expected.sum(), "the case must tell the two rules apart"


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batches_and_repeats_do_not_change_a_record(batch_size):
    boxes = np.concatenate([BOXES, BOXES + 1.5, BOXES - 1])
    first = predictor(quality="estimate").predict(IMAGE, boxes, ["teacher"])
    again = predictor(quality="estimate", batch_size=batch_size).predict(IMAGE, boxes, ["teacher"])
    assert first == again


@pytest.mark.parametrize("quality", ["expected_iou", "estimate"])
def test_numbers_that_are_none_are_an_error_and_no_empty_mask(quality):
    with pytest.raises(DataError, match=r"teacher network \(box \[4.0.*is no number"):
        predictor(teacher=Counting(float("nan")), quality=quality).predict(
            IMAGE, BOXES, ["teacher"]
        )


def test_a_nan_of_the_network_that_only_confirms_is_an_error_too():
    with pytest.raises(DataError, match="other: a probability"):
        predictor(student=Counting(float("nan")), quality="estimate").predict(
            IMAGE, BOXES, ["teacher"]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "best"}, r"TEST.QUALITY 'best': use one of \['agreement'"),
        ({"border": "mirror"}, "BORDER 'mirror': use one of wrap, reflect, replicate"),
        # Steps of 0 would never end, those below label nothing.
        ({"batch_size": 0}, "BATCH_SIZE 0: use 1 or more"),
        ({"batch_size": -4}, "BATCH_SIZE -4: use 1 or more"),
        ({"thresholds": (0.5, 0.5)}, r"THRESHOLDS \(0.5, 0.5\): give three"),
        ({"thresholds": (0.5, 0.5, 50)}, "THRESHOLDS .*: give three numbers from 0 to 1"),
        ({"thresholds": (float("nan"), 0.5, 0.5)}, "THRESHOLDS .*: give three"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        predictor(**options)


def test_the_border_is_seen_by_boxes_at_the_edge_alone():
    inner = np.array([[15.0, 12, 35, 25]])
    edge = np.array([[0.0, 0, 20, 20]])
    found = {
        border: [predictor(border=border).predict(IMAGE, b)["teacher"] for b in (inner, edge)]
        for border in ("wrap", "replicate")
    }
    assert found["wrap"][0] == found["replicate"][0]
    assert found["wrap"][1] != found["replicate"][1]


@pytest.mark.parametrize("quality", ["estimate", "agreement", "soft_agreement"])
@pytest.mark.parametrize(
    "networks", [{"student": Counting()}, {"student": Counting(), "teacher": None}]
)
def test_one_network_cannot_be_compared_with_another(networks, quality):
    with pytest.raises(ValueError, match=r"TEACHER False\): use one of \['expected_iou', 'flip_"):
        BoxPredictor(networks, normalize, crop_size=SIZE, quality=quality)


@pytest.mark.parametrize("quality", ["expected_iou", "soft_flip_agreement"])
def test_one_network_labels_as_it_does_beside_another(quality):
    alone = BoxPredictor({"student": Counting()}, normalize, crop_size=SIZE, quality=quality)
    both = predictor(quality=quality).predict(IMAGE, BOXES, ["student"])
    assert alone.predict(IMAGE, BOXES) == both


class ByClass(Counting):
    """Log odds of the class's own sign."""

    def forward(self, images, areas, classes):
        self.seen = [*getattr(self, "seen", []), classes.tolist()]
        return super().forward(images, areas) * (1 - 2 * classes[:, None, None])


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_classes_follow_their_boxes(batch_size):
    teacher = ByClass()
    own = predictor(ByClass(), teacher, quality="soft_agreement", batch_size=batch_size)
    found = own.predict(IMAGE, BOXES[:3], ["teacher"], classes=[0, 1, 0])["teacher"]
    plain, negative = (
        predictor(Counting(s), Counting(s), quality="soft_agreement").predict(IMAGE, BOXES[:3])
        for s in (1.0, -1.0)
    )
    assert found[::2] == plain["teacher"][::2]
    assert found[1] == negative["teacher"][1]
    assert [c for asked in teacher.seen for c in asked] == [0, 1, 0]


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_calibration_maps_the_quality_of_drawn_masks_alone(calibrated):
    model = SimpleNamespace(
        student=Counting(),
        teacher=Counting(2.0),
        normalize=normalize,
        predict_options={"crop_size": SIZE},
        label_with="teacher",
        eval=lambda: model,
    )
    boxes = np.concatenate([BOXES[:3], [[5.0, 5.0, 6.0, 20.0]]])
    facts = {"image_ids": [7, 9]}
    calibration = Calibration((0.0, 1.0), (0.0, 0.5), facts) if calibrated else None
    labeler = MALLabeler(model, {"network": "teacher"}, "soft_agreement", calibration)
    plain = predictor(quality="soft_agreement").predict(IMAGE, boxes, ["teacher"])["teacher"]
    records = labeler.label(IMAGE, boxes)
    factor = 0.5 if calibrated else 1
    expected = [p.quality * (factor if p.mask_source == "model" else 1) for p in plain]
    assert [r.quality for r in records] == pytest.approx(expected)
    assert [r.segmentation for r in records] == [r.segmentation for r in plain]
    assert records[-1].mask_source == "filled_tiny"
    described = labeler.describe()
    assert described["quality"] == "soft_agreement"
    if calibrated:
        assert described["calibration"]["image_ids"] == [7, 9]
    else:
        assert described["calibration"] is None


def test_no_boxes_no_forward():
    student, teacher = Counting(), Counting()
    assert predictor(student, teacher).predict(IMAGE, np.zeros((0, 4)), ["teacher"]) == {
        "teacher": []
    }
    assert student.calls + teacher.calls == 0
