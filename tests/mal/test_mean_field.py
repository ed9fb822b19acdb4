"""Mean field against the definition in probabilities, pixel by pixel."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mal import mean_field as module
from mal.mean_field import EPSILON, initial_state, mean_field, mean_field_kernel

LOW, HIGH = 0.1, 0.9


def _loop_kernel(image, zeta, size, omega=1.0):
    """(K, H, W) of one image (3, H, W), by loops."""
    _, height, width = image.shape
    radius = size // 2
    kernel = torch.zeros(size * size, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            for j in range(size * size):
                v, u = y + j // size - radius, x + j % size - radius
                if 0 <= v < height and 0 <= u < width:
                    distance = sum((image[c, y, x] - image[c, v, u]).item() ** 2 for c in range(3))
                    kernel[j, y, x] = omega * math.exp(-distance / (2 * zeta**2))
    return kernel


def _loop_mean_field(initial, box, kernel, iterations, unary=0.0):
    """The definition for one (H, W) map: products of powers, by loops, in double precision."""
    height, width = initial.shape
    size = math.isqrt(len(kernel))
    radius = size // 2
    q = start = [[min(max(v, LOW), HIGH) for v in row] for row in initial.tolist()]
    for _ in range(iterations):
        new = [row[:] for row in q]
        for y in range(height):
            for x in range(width):
                fg = box[y, x].item() * start[y][x] ** unary
                bg = (1 - start[y][x]) ** unary
                for j in range(size * size):
                    v, u = y + j // size - radius, x + j % size - radius
                    if 0 <= v < height and 0 <= u < width:
                        k = kernel[j, y, x].item()
                        fg *= q[v][u] ** k
                        bg *= (1 - q[v][u]) ** k
                new[y][x] = min(max(fg / (fg + bg + 1e-6), LOW), HIGH)
        q = new
    return torch.tensor(q)


def _powers(initial, box, kernel, iterations=100, epsilon=1e-6):
    """The same definition for whole batches, for maps too large for loops."""
    size = math.isqrt(kernel.shape[1])
    batch, height, width = initial.shape
    q = initial.clamp(LOW, HIGH)
    for _ in range(iterations):
        products = []
        for p in (q, 1 - q):
            patches = F.unfold(p[:, None], size, padding=size // 2)
            products.append((patches.view(batch, -1, height, width) ** kernel).prod(dim=1))
        fg, bg = box * products[0], products[1]
        q = (fg / (fg + bg + epsilon)).clamp(LOW, HIGH)
    return q


def _scene(seed, batch=2, height=24, width=20, contrast=0.05):
    """Noisy student, teacher and image; a box with fractional edges, another one per sample."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.rand(2, batch, height, width, generator=generator)
    image = contrast * torch.randn(batch, 3, height, width, generator=generator)
    box = torch.zeros(batch, height, width)
    for b in range(batch):
        box[b, 3 + b : height - 4, 2 : width - 3 - b] = 1
        box[b, 3 + b] *= 0.5
        box[b, :, 2] *= 0.25
    return initial_state(student, teacher, box), box, image


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("omega", [1.0, 2.0])
def test_kernel_equals_loops(size, omega):
    image = 0.2 * torch.randn(2, 3, 4, 5)
    kernel = mean_field_kernel(image, zeta=0.3, kernel_size=size, omega=omega)
    assert kernel.shape == (2, size * size, 4, 5)
    for b in range(2):
        expected = _loop_kernel(image[b], 0.3, size, omega)
        assert torch.allclose(kernel[b].double(), expected, atol=1e-6)


def test_kernel_ends_at_the_map_and_counts_the_centre():
    kernel = mean_field_kernel(torch.zeros(1, 3, 3, 4))[0]
    assert torch.equal(kernel[4], torch.ones(3, 4))
    assert torch.equal(kernel.sum(0), torch.tensor([[4.0, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]))


@pytest.mark.parametrize(
    ("gray_levels", "expected"), [(2, 0.83), (5, 0.32), (10, 0.011), (20, 0.0)]
)
def test_kernel_strictness_at_the_default_bandwidth(gray_levels, expected):
    """An equal step in R, G and B, after ImageNet normalisation."""
    image = torch.zeros(1, 3, 1, 2)
    for channel, std in enumerate((0.229, 0.224, 0.225)):
        image[0, channel, 0, 1] = gray_levels / 255 / std
    assert mean_field_kernel(image)[0, 5, 0, 0].item() == pytest.approx(expected, abs=0.005)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 3, 5]),
    iterations=st.integers(0, 6),
    omega=st.sampled_from([0.5, 1.0]),
    unary=st.sampled_from([0.0, 0.7]),
)
def test_equals_loops(seed, size, iterations, omega, unary):
    initial, box, image = _scene(seed, height=8, width=7)
    kernel = mean_field_kernel(image, kernel_size=size, omega=omega)
    soft = mean_field(initial, box, kernel, iterations, hard=False, unary=unary)
    for b in range(len(initial)):
        expected = _loop_mean_field(initial[b], box[b], kernel[b], iterations, unary)
        assert torch.allclose(soft[b], expected, atol=2e-5)
    hard = mean_field(initial, box, kernel, iterations, unary=unary)
    assert torch.equal(hard, (soft > 0.5).float())


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("contrast", [0.02, 0.05, 0.15, 0.5])
def test_hard_targets_equal_the_definition_on_noise(contrast, size):
    """100 iterations on near-tie noise, the hardest case; not one pixel may differ."""
    for seed in range(4):
        initial, box, image = _scene(seed, contrast=contrast)
        kernel = mean_field_kernel(image, kernel_size=size)
        exact = _powers(initial.double(), box.double(), kernel.double())
        # a pixel closer to the threshold than rounding could fall either way in any arithmetic
        assert (exact - 0.5).abs().min() > 1e-6
        assert torch.equal(mean_field(initial, box, kernel), (exact > 0.5).float())


def test_the_constant_is_kept():
    """Without 1e-6 some near ties would become foreground: the log-odds form is another target."""
    moved = 0
    for seed in range(6):
        initial, box, image = _scene(seed, height=40, width=40, contrast=0.02)
        kernel = mean_field_kernel(image)
        target = mean_field(initial, box, kernel)
        without = (_powers(initial, box, kernel, epsilon=0.0) > 0.5).float()
        assert (target <= without).all()  # it only ever moves pixels to the background
        moved += (target != without).sum().item()
    assert EPSILON == 1e-6
    assert moved > 0


def test_bimodal_input_equals_the_log_odds_form():
    """On confident predictions the constant is irrelevant and clipped log-odds diffuse linearly."""
    _, box, image = _scene(0, contrast=0.03)
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(20), indexing="ij")
    disc = ((rows - 11) ** 2 + (columns - 9) ** 2 < 36).float()
    wrong = torch.rand(box.shape, generator=torch.Generator().manual_seed(0)) < 0.08
    initial = box * (0.05 + 0.9 * (disc - wrong.float()).abs())
    kernel = mean_field_kernel(image + 0.3 * disc)
    odds = initial.clamp(LOW, HIGH).logit()
    for _ in range(100):
        patches = F.unfold(odds[:, None], 3, padding=1).view_as(kernel)
        odds = ((patches * kernel).sum(1) + box.log()).clamp(-math.log(9), math.log(9))
    target = mean_field(initial, box, kernel)
    assert torch.equal(target, (odds > 0).float())
    assert (target - disc).abs().mean() < 0.05  # 8 % wrong pixels before


def test_result_is_independent_of_the_rest_of_the_batch():
    """The iterated rectangle spans the whole batch; alone, a sample gets its own."""
    initial, box, image = _scene(1, batch=3)
    box[2] = 0
    initial[2] = 0
    kernel = mean_field_kernel(image)
    together = mean_field(initial, box, kernel, hard=False)
    for b in range(3):
        alone = mean_field(*(t[b : b + 1] for t in (initial, box, kernel)), hard=False)
        assert torch.equal(together[b], alone[0])


def test_the_rectangle_changes_no_bit(monkeypatch):
    """What a GPU does, where the whole map is iterated."""
    initial, box, image = _scene(8, batch=3)
    kernel = mean_field_kernel(image, kernel_size=5)
    cropped = mean_field(initial, box, kernel, hard=False)
    monkeypatch.setattr(module, "_active_rectangle", lambda active: (slice(None), slice(None)))
    assert torch.equal(mean_field(initial, box, kernel, hard=False), cropped)


def test_initial_values_outside_the_box_speak_once():
    """Not MAL's own input, but the shortcut for outside pixels must not change the meaning."""
    initial, box, image = _scene(2)
    initial = torch.where(box > 0, initial, torch.full_like(initial, 0.8))
    kernel = mean_field_kernel(image)
    for iterations in (0, 1, 2, 30):
        got = mean_field(initial, box, kernel, iterations, hard=False)
        expected = _powers(initial.double(), box.double(), kernel.double(), iterations)
        assert torch.allclose(got.double(), expected, atol=2e-5)


@pytest.mark.parametrize("hard", [True, False])
def test_target_stays_in_the_box_and_in_its_bounds(hard):
    initial, box, image = _scene(3)
    target = mean_field(initial + 0.4 * box, box, mean_field_kernel(image), hard=hard)
    if hard:
        assert set(target.unique().tolist()) == {0.0, 1.0}
        assert not target[box == 0].any()
    else:
        assert target.min() == pytest.approx(LOW)
        assert target.max() == pytest.approx(HIGH)
        assert target[box == 0].max() == pytest.approx(LOW)


@pytest.mark.parametrize(("level", "expected"), [(0.6, 1.0), (0.4, 0.0)])
def test_constant_image_takes_the_majority(level, expected):
    """With the box over the whole map, borders included: padding has no say."""
    initial = torch.full((1, 9, 8), level)
    box = torch.ones_like(initial)
    target = mean_field(initial, box, mean_field_kernel(torch.full((1, 3, 9, 8), 0.7)))
    assert torch.equal(target, torch.full_like(target, expected))


def test_constant_image_fills_a_hole_inside_the_box():
    initial = torch.zeros(1, 16, 16)
    initial[0, 3:13, 3:13] = 0.9
    box = (initial > 0).float()
    initial[0, 7:9, 7:9] = 0.1
    target = mean_field(initial, box, mean_field_kernel(torch.zeros(1, 3, 16, 16)))
    assert target[0, 7:9, 7:9].all()


def test_a_colour_edge_stops_the_diffusion():
    image = torch.zeros(1, 3, 12, 12)
    image[..., 6:] = 1.0
    initial = torch.full((1, 12, 12), 0.4)
    initial[0, :, :5] = 0.8  # the column at the edge and a hole are undecided
    initial[0, 5:7, 2] = 0.4
    box = torch.ones_like(initial)
    target = mean_field(initial, box, mean_field_kernel(image))
    assert target[0, :, :6].all()
    assert not target[0, :, 6:].any()


def test_boundary_pixels_of_the_map_follow_the_loops():
    """The box touches two edges of the map; no padded value may leak in."""
    generator = torch.Generator().manual_seed(5)
    initial = torch.rand(1, 6, 6, generator=generator)
    box = torch.zeros(1, 6, 6)
    box[0, :4, :5] = 1
    initial = initial * box
    kernel = mean_field_kernel(0.05 * torch.randn(1, 3, 6, 6, generator=generator))
    expected = _loop_mean_field(initial[0], box[0], kernel[0], 8)
    assert torch.allclose(mean_field(initial, box, kernel, 8, hard=False)[0], expected, atol=2e-5)


def test_determinism_inputs_untouched_and_no_gradient():
    initial, box, image = _scene(4)
    initial.requires_grad_()
    image.requires_grad_()
    kernel = mean_field_kernel(image)
    copies = [t.detach().clone() for t in (initial, box, kernel)]
    first, second = (mean_field(initial, box, kernel, hard=False) for _ in range(2))
    assert torch.equal(first, second)
    assert not kernel.requires_grad
    assert not first.requires_grad
    assert not initial_state(initial, initial, box).requires_grad
    assert all(torch.equal(a, b) for a, b in zip(copies, (initial, box, kernel)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_everything_runs_in_float32(dtype):
    initial, box, image = _scene(6)
    inputs = [t.to(dtype) for t in (initial, box, image)]
    kernel = mean_field_kernel(inputs[2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = mean_field(inputs[0], inputs[1], kernel, hard=False)
    expected = mean_field(inputs[0].float(), inputs[1].float(), kernel, hard=False)
    assert kernel.dtype == target.dtype == torch.float32
    assert torch.equal(target, expected)


@pytest.mark.parametrize(("unary", "kept"), [(0.0, False), (8.0, True)])
def test_a_strong_unary_term_holds_to_the_start(unary, kept):
    initial, box, _ = _scene(9)
    initial = torch.where(initial > 0.5, 0.8, 0.2)
    # Weak messages: strong ones times a strong unary term fall below the 1e-6, to the background.
    kernel = mean_field_kernel(torch.zeros(2, 3, 24, 20), omega=0.2)
    target = mean_field(initial, (box > 0).float(), kernel, unary=unary)
    assert torch.equal(target, (initial > 0.5).float()) == kept


def test_initial_state_averages_inside_the_box():
    box = torch.tensor([[[0.0, 0.5, 1.0]]])
    student, teacher = torch.tensor([[[0.2, 0.4, 1.0]]]), torch.tensor([[[0.6, 0.8, 0.5]]])
    state = initial_state(student, teacher, box)
    assert torch.allclose(state, torch.tensor([[[0.0, 0.3, 0.75]]]))


@pytest.mark.parametrize(
    "shape",
    [(0, 6, 6), (2, 6, 6)],  # no sample; samples without any box pixel
)
def test_nothing_to_do(shape):
    zeros = torch.zeros(shape)
    target = mean_field(zeros, zeros, mean_field_kernel(zeros[:, None].expand(-1, 3, -1, -1)))
    assert target.shape == shape
    assert not target.any()


@pytest.mark.parametrize(
    "call",
    [
        lambda q, b, k: mean_field_kernel(torch.zeros(1, 3, 4, 4), kernel_size=2),
        lambda q, b, k: mean_field_kernel(torch.zeros(1, 3, 4, 4), zeta=0.0),
        lambda q, b, k: mean_field(q, b, k, low=0.0),
        lambda q, b, k: mean_field(q, b, k, low=0.6, high=0.4),
        lambda q, b, k: mean_field(q, b, k, unary=-0.1),
        lambda q, b, k: mean_field(q, b[:1], k),
        lambda q, b, k: mean_field(q, b, k[:, :8]),
    ],
)
def test_impossible_arguments_are_refused(call):
    initial, box, image = _scene(0)
    with pytest.raises(ValueError, match=r"required|belong together"):
        call(initial, box, mean_field_kernel(image))
