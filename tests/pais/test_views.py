"""What the views draw: which operations, how strong, in which order, with which seed."""

from collections import Counter

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms

from pais import view_ops, views
from pais.config import add_pais_config
from pais.mapping import matrix_of
from pais.views import InRandomOrder, RandomColour, RandomErase, RandomGeometry, build_views
from pseudolabel.config import add_masksmith_config

H, W = 100, 200
IMAGE = np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)
BLANK = np.zeros((H, W, 3), np.uint8)


def config(*opts):
    cfg = get_cfg()
    add_masksmith_config(cfg)
    add_pais_config(cfg)
    cfg.merge_from_list([*("INPUT.MIN_SIZE_TRAIN", (80, 120)), *opts])
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    return cfg


def test_colours_are_drawn_evenly_with_magnitudes_from_one_to_nine(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        view_ops, "colour_transform", lambda *arguments: drawn.append(arguments) or "done"
    )
    np.random.seed(0)
    augmentation = RandomColour("BGR")
    results = [augmentation.get_transform(BLANK) for _ in range(1800)]
    assert set(results) == {"done"}
    names, magnitudes, formats = (Counter(values) for values in zip(*drawn))
    # 200 each are expected, with a standard deviation of 13.
    assert set(names) == set(view_ops.COLOUR_OPS)
    assert all(abs(count - 200) < 65 for count in names.values())
    assert set(magnitudes) == set(range(1, 10))
    assert all(abs(count - 200) < 65 for count in magnitudes.values())
    assert set(formats) == {"BGR"}


def matrices(name, draws=200, **options):
    np.random.seed(0)
    augmentation = RandomGeometry(names=[name], **options)
    return np.array([matrix_of(augmentation.get_transform(BLANK)) for _ in range(draws)])


@pytest.mark.parametrize(
    ("name", "row", "limit"),
    [
        ("shift_x", 0, 20),  # a tenth of the width
        ("shift_y", 1, 10),  # a tenth of the height
    ],
)
def test_shifts_are_along_one_axis_and_within_a_tenth(name, row, limit):
    drawn = matrices(name)
    offsets = drawn[:, row, 2]
    assert np.abs(offsets).max() <= limit
    assert offsets.min() < -0.9 * limit
    assert offsets.max() > 0.9 * limit
    drawn[:, row, 2] = 0
    assert np.allclose(drawn, np.eye(3))


def test_rotations_are_within_thirty_degrees_about_the_centre():
    drawn = matrices("rotate")
    angles = np.rad2deg(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0]))
    assert -30 <= angles.min() < -27
    assert 27 < angles.max() <= 30
    centre = np.array([W / 2, H / 2, 1])
    assert np.allclose(drawn @ centre, centre)
    turns = drawn[:, :2, :2]
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(2))


@pytest.mark.parametrize(("about", "fixed"), [("corner", (0, 0)), ("centre", (W / 2, H / 2))])
def test_shears_are_within_tanh_of_thirty_degrees_on_each_axis(about, fixed):
    drawn = matrices("shear", shear_about=about)
    along_x = drawn[:, 0, 1]
    along_y = drawn[:, 1, 0]
    limit = np.tanh(np.deg2rad(30))
    for factors in (along_x, along_y):
        assert -limit <= factors.min() < -0.9 * limit
        assert 0.9 * limit < factors.max() <= limit
    # First x, then y: the second diagonal entry is 1 + the product.
    assert np.allclose(drawn[:, 0, 0], 1)
    assert np.allclose(drawn[:, 1, 1], 1 + along_x * along_y)
    point = np.array([*fixed, 1])
    assert np.allclose(drawn @ point, point)
    assert np.abs(np.corrcoef(along_x, along_y)[0, 1]) < 0.3


def test_geometric_operations_are_drawn_evenly():
    np.random.seed(0)
    augmentation = RandomGeometry()
    kinds = Counter()
    for _ in range(800):
        matrix = matrix_of(augmentation.get_transform(BLANK))
        linear = not np.allclose(matrix[:2, :2], np.eye(2))
        turned = np.isclose(matrix[0, 1], -matrix[1, 0])
        kinds[("turn" if turned else "shear") if linear else abs(matrix[0, 2]) > 0] += 1
    # 200 each are expected, with a standard deviation of 12.
    assert len(kinds) == 4
    assert all(abs(count - 200) < 60 for count in kinds.values())


@pytest.mark.parametrize("name", views.GEOMETRIC_OPS)
def test_what_comes_from_outside_has_the_fill(name):
    np.random.seed(1)
    moved = RandomGeometry(names=[name], fill=7).get_transform(BLANK).apply_image(BLANK + 200)
    assert set(np.unique(moved)) == {7, 200}


def test_one_to_four_patches_of_the_image_s_shape_are_erased():
    np.random.seed(0)
    augmentation = RandomErase()
    drawn = [augmentation.get_transform(BLANK) for _ in range(600)]
    assert {one.fill for one in drawn} == {125}
    counts = Counter(len(one.patches) for one in drawn)
    # 150 each are expected, with a standard deviation of 11.
    assert set(counts) == {1, 2, 3, 4}
    assert all(abs(count - 150) < 55 for count in counts.values())
    x0, y0, x1, y1 = np.concatenate([one.patches for one in drawn]).T
    widths, heights = x1 - x0, y1 - y0
    # The same share of both sides, up to whole pixels.
    assert np.abs(widths / W - heights / H).max() < 1 / H
    shares = widths / W
    assert 0.18 < shares.max() <= 0.2
    assert abs(shares.mean() - 0.1) < 0.01
    assert x0.min() >= 0
    assert y0.min() >= 0
    assert x1.max() == W
    assert y1.max() == H
    # Anywhere: the centres spread over the image.
    assert abs((x0 + x1).mean() / (2 * W) - 0.5) < 0.03
    assert abs((y0 + y1).mean() / (2 * H) - 0.5) < 0.03


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RandomErase(patches=(3, 2)),  # most is less than fewest
        lambda: RandomErase(side=1.5),  # larger than the image
        lambda: RandomGeometry(shear_about="edge"),
        lambda: build_views(config("INPUT.FORMAT", "L")),  # no colours
        lambda: build_views(config("MODEL.PAIS.VIEWS.FILL", 256)),  # no level of an 8-bit image
        lambda: build_views(config("MODEL.PAIS.VIEWS.ERASE_SIDE", 2.0)),
    ],
)
def test_senseless_options_are_refused(wrong):
    with pytest.raises(ValueError):
        wrong()


def test_both_orders_occur_and_the_later_works_on_what_the_earlier_left():
    steps = [transforms.Resize((50, 60)), transforms.Resize((70, 30))]
    np.random.seed(0)
    shapes = Counter()
    for _ in range(100):
        holder = transforms.AugInput(IMAGE)
        applied = InRandomOrder(steps)(holder)
        assert np.array_equal(applied.apply_image(IMAGE), holder.image)
        shapes[holder.image.shape[:2]] += 1
    assert set(shapes) == {(50, 60), (70, 30)}
    assert min(shapes.values()) > 30


def kinds(augmentations):
    names = []
    for one in augmentations:
        group = one.augmentations if isinstance(one, InRandomOrder) else [one]
        names += [type(member).__name__ for member in group]
    return names


RESIZED = ["ResizeShortestEdge", "RandomFlip"]
STRONG = [*RESIZED, "RandomColour", "RandomGeometry", "RandomErase"]


@pytest.mark.parametrize(
    ("opts", "labelled", "weak", "strong"),
    [
        ([], [*RESIZED, "RandomColour"], RESIZED, STRONG),  # the paper's
        (
            ["MODEL.PAIS.VIEWS.COLOUR", False],
            RESIZED,
            RESIZED,
            [*RESIZED, "RandomGeometry", "RandomErase"],
        ),
        (
            ["MODEL.PAIS.VIEWS.GEOMETRIC", False],
            [*RESIZED, "RandomColour"],
            RESIZED,
            [*RESIZED, "RandomColour", "RandomErase"],
        ),
        (["MODEL.PAIS.VIEWS.ERASE", False], [*RESIZED, "RandomColour"], RESIZED, STRONG[:-1]),
        # Detectron2's own key switches the flip of every view.
        (
            ["INPUT.RANDOM_FLIP", "none"],
            ["ResizeShortestEdge", "RandomColour"],
            ["ResizeShortestEdge"],
            ["ResizeShortestEdge", *STRONG[2:]],
        ),
    ],
)
def test_views_by_config(opts, labelled, weak, strong):
    built = build_views(config(*opts))
    assert kinds(built.labelled) == labelled
    assert kinds(built.weak) == weak
    assert kinds(built.strong) == strong
    assert built.crop == []


def test_a_crop_comes_before_the_views():
    opts = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [40, 30]]
    built = build_views(config(*opts))
    assert kinds(built.crop) == ["RandomCrop"]
    assert transforms.apply_augmentations(built.crop, IMAGE)[0].shape == (40, 30, 3)
    assert kinds(built.strong) == STRONG


def test_keys_of_the_config_reach_the_operations():
    keys = {"SHIFT": 0.3, "ROTATE": 4.0, "SHEAR": 5.0, "FILL": 9, "ERASE_SIDE": 0.5}
    opts = [part for key, value in keys.items() for part in (f"MODEL.PAIS.VIEWS.{key}", value)]
    built = build_views(config(*opts, "MODEL.PAIS.VIEWS.ERASE_PATCHES", (2, 3)))
    geometry, erase = built.strong[2].augmentations[1], built.strong[3]
    assert (geometry.shift, geometry.rotate, geometry.shear, geometry.fill) == (0.3, 4.0, 5.0, 9)
    assert (erase.patches, erase.side, erase.fill) == ((2, 3), 0.5, 9)


def test_numpy_s_seed_fixes_a_view():
    built = build_views(config())

    def strong(seed):
        np.random.seed(seed)
        image, changes = transforms.apply_augmentations(built.strong, IMAGE.copy())
        return image, matrix_of(changes)

    (first, matrix), (again, same), (other, _) = strong(1), strong(1), strong(2)
    assert np.array_equal(first, again)
    assert np.array_equal(matrix, same)
    assert not np.array_equal(first, other)


def test_the_views_of_an_image_are_drawn_apart():
    """Sizes differ, and one is flipped without the other in half of the cases."""
    built = build_views(config("MODEL.PAIS.VIEWS.GEOMETRIC", False))
    np.random.seed(0)
    pairs = Counter()
    for _ in range(60):
        weak = matrix_of(transforms.apply_augmentations(built.weak, BLANK)[1])
        strong = matrix_of(transforms.apply_augmentations(built.strong, BLANK)[1])
        pairs[(weak[0, 0] < 0, strong[0, 0] < 0)] += 1
        sizes = 100 * np.array([weak[1, 1], strong[1, 1]])
        assert (np.round(sizes) >= 80).all()
        assert (np.round(sizes) <= 120).all()
    assert len(pairs) == 4
    assert min(pairs.values()) > 4
