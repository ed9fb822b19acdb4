"""Dataset dicts to samples: what is in them, where the object is, and which images are refused."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import BitMasks, BoxMode
from PIL import Image
from scipy.ndimage import map_coordinates

from pais.config import add_pais_config
from pais.mapper import LabelledMapper, UnlabelledMapper
from pais.mapping import map_boxes, map_masks
from pseudolabel.config import add_masksmith_config
from pseudolabel.errors import DataError
from pseudolabel.files import read_json
from pseudolabel.loader import isolated_rng
from pseudolabel.masks import encode_rle

H, W = 90, 120
VIEWS = ("weak", "strong")
SQUARE = (slice(20, 60), slice(40, 90))


def config(*opts):
    cfg = get_cfg()
    add_masksmith_config(cfg)
    add_pais_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (80, 100)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.fixture
def record(tmp_path):
    """A red rectangle on black, with its mask; and a crowd."""
    pixels = np.zeros((H, W, 3), np.uint8)
    pixels[SQUARE] = (255, 10, 10)
    Image.fromarray(pixels).save(tmp_path / "7.png")
    mask = np.zeros((H, W), bool)
    mask[SQUARE] = True
    one = {
        "bbox": [40, 20, 50, 40],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 2,
        "segmentation": encode_rle(mask),
        "iscrowd": 0,
    }
    return {
        "file_name": str(tmp_path / "7.png"),
        "height": H,
        "width": W,
        "image_id": 7,
        "annotations": [one, {**one, "iscrowd": 1}],
    }


def bare(record):
    return {key: value for key, value in record.items() if key != "annotations"}


def drawn(mapper, record, seed=0):
    with isolated_rng(seed):
        return mapper(record)


def red(image, channel=0):
    return image[channel].numpy() > 128


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


NO_COLOUR = ("MODEL.PAIS.VIEWS.COLOUR", False)


def test_a_labelled_sample_has_one_view_whose_instances_moved_along(record):
    mapper = LabelledMapper(config(*NO_COLOUR, "INPUT.FORMAT", "RGB"))
    for seed in range(6):
        sample = drawn(mapper, record, seed)
        assert sample["labelled"] is True
        assert (sample["height"], sample["width"], sample["image_id"]) == (H, W, 7)
        assert sample["image"].dtype == torch.uint8
        instances = sample["instances"]
        assert instances.image_size == tuple(sample["image"].shape[1:])
        assert instances.gt_classes.tolist() == [2]  # the crowd is not trained on
        assert isinstance(instances.gt_masks, BitMasks)
        seen = red(sample["image"])
        assert iou(instances.gt_masks.tensor[0].numpy(), seen) > 0.95
        hull = BitMasks(torch.from_numpy(seen)[None]).get_bounding_boxes().tensor
        assert (instances.gt_boxes.tensor - hull).abs().max() <= 1.5


def test_labelled_views_differ_in_colour_but_not_in_geometry(record):
    mapper = LabelledMapper(config("INPUT.MIN_SIZE_TRAIN", (H, H), "INPUT.RANDOM_FLIP", "none"))
    samples = [drawn(mapper, record, seed) for seed in range(20)]
    assert len({sample["image"].numpy().tobytes() for sample in samples}) > 5
    assert len({sample["instances"].gt_boxes.tensor.numpy().tobytes() for sample in samples}) == 1


def test_an_unlabelled_sample_has_two_views_and_the_map_between_them(record):
    sample = drawn(UnlabelledMapper(config()), bare(record))
    assert sample.keys() == {
        *("weak", "strong", "weak_to_strong", "labelled"),
        *("file_name", "image_id", "height", "width"),
    }
    assert sample["labelled"] is False
    assert (sample["image_id"], sample["height"], sample["width"]) == (7, H, W)
    # Detectron2's own input, so that any of its models can be the teacher.
    assert sample["weak"].keys() == {"image", "height", "width"}
    assert (sample["weak"]["height"], sample["weak"]["width"]) == (H, W)
    for view in ("weak", "strong"):
        image = sample[view]["image"]
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        assert 80 <= min(image.shape[1:]) <= 100
    assert sample["weak_to_strong"].shape == (3, 3)
    assert sample["weak_to_strong"].dtype == torch.float64


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_map_takes_the_object_from_the_weak_view_to_the_strong_one(record, order):
    """Also back, for boxes: there the hull of a hull is looser, never tighter."""
    cfg = config(*NO_COLOUR, "MODEL.PAIS.VIEWS.ERASE", False, "INPUT.FORMAT", order)
    mapper, channel = UnlabelledMapper(cfg), order.index("R")
    moved = 0
    for seed in range(12):
        sample = drawn(mapper, bare(record), seed)
        weak, strong = (red(sample[view]["image"], channel) for view in ("weak", "strong"))
        matrix = sample["weak_to_strong"]
        mapped = map_masks(torch.from_numpy(weak)[None], matrix, strong.shape)[0].numpy()
        assert iou(mapped, strong) > 0.95
        moved += weak.shape != strong.shape or iou(weak, strong) < 0.9
        box = BitMasks(torch.from_numpy(weak)[None]).get_bounding_boxes().tensor.double()
        there = map_boxes(box, matrix, (10**6, 10**6))
        if (there > 0).all():
            back = map_boxes(there, torch.linalg.inv(matrix), weak.shape)
            assert (back[0, :2] <= box[0, :2] + 1e-6).all()
            assert (back[0, 2:] >= box[0, 2:] - 1e-6).all()
    assert moved > 6


def test_erased_patches_leave_the_map_and_the_weak_view_alone(record):
    with_patches = drawn(UnlabelledMapper(config()), bare(record))
    without = drawn(UnlabelledMapper(config("MODEL.PAIS.VIEWS.ERASE", False)), bare(record))
    assert torch.equal(with_patches["weak"]["image"], without["weak"]["image"])
    assert torch.equal(with_patches["weak_to_strong"], without["weak_to_strong"])
    changed = (with_patches["strong"]["image"] != without["strong"]["image"]).any(0)
    assert changed.any()
    assert (with_patches["strong"]["image"][:, changed] == 125).all()


def test_both_views_show_the_same_crop(record):
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [50, 60])
    cfg = config(*NO_COLOUR, *crop, "MODEL.PAIS.VIEWS.ERASE", False)
    mapper = UnlabelledMapper(cfg)
    shares = []
    for seed in range(8):
        sample = drawn(mapper, bare(record), seed)
        assert (sample["weak"]["height"], sample["weak"]["width"]) == (50, 60)
        weak, strong = (red(sample[view]["image"], 2) for view in ("weak", "strong"))
        mapped = map_masks(torch.from_numpy(weak)[None], sample["weak_to_strong"], strong.shape)
        if strong.sum() > 500:
            shares.append(iou(mapped[0].numpy(), strong))
    assert len(shares) > 3
    assert min(shares) > 0.93
    instances = drawn(LabelledMapper(cfg), record)["instances"]
    hull = instances.gt_masks.get_bounding_boxes().tensor
    assert torch.equal(instances.gt_boxes.tensor, hull)


def test_a_sample_is_fixed_by_numpy_s_seed_and_annotations_are_not_looked_at(record):
    mapper = UnlabelledMapper(config())
    first, again = drawn(mapper, bare(record), 3), drawn(mapper, bare(record), 3)
    told = drawn(mapper, {**record, "annotations": "nothing of use"}, 3)
    other = drawn(mapper, bare(record), 4)
    for sample in (again, told):
        assert torch.equal(first["strong"]["image"], sample["strong"]["image"])
        assert torch.equal(first["weak"]["image"], sample["weak"]["image"])
        assert torch.equal(first["weak_to_strong"], sample["weak_to_strong"])
    assert not torch.equal(first["weak_to_strong"], other["weak_to_strong"])


def test_mappers_reach_loader_processes(record):
    """By pickle, where processes are spawned and not forked."""
    for mapper in (LabelledMapper(config()), UnlabelledMapper(config())):
        copied = pickle.loads(pickle.dumps(mapper))
        assert drawn(copied, record).keys() == drawn(mapper, record).keys()


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("mapper", [LabelledMapper, UnlabelledMapper])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (cut, "cannot be read"),
        (lambda path: path.write_text("no image"), "cannot be read"),
        (lambda path: Image.new("RGB", (5, 5)).save(path), "5x5, the JSON says 120x90"),
        (lambda path: Image.new("I;16", (W, H)).save(path), "not 8 bit"),
    ],
)
def test_bad_images_are_named(record, tmp_path, mapper, damage, message):
    damage(tmp_path / "7.png")
    with pytest.raises(DataError, match=message) as caught:
        mapper(config())(record)
    assert str(tmp_path / "7.png") in str(caught.value)


def test_nuclei_are_carried_from_view_to_view(data_dir):
    """Real images: the weak view, sampled by scipy where the map says, is the strong view."""
    folder = data_dir / "dsb2018_dev"
    entries = read_json(folder / "annotations/instances_train.json")["images"]
    cfg = config(*NO_COLOUR, "MODEL.PAIS.VIEWS.ERASE", False)
    cfg.INPUT.MIN_SIZE_TRAIN = (240, 272)
    mapper = UnlabelledMapper(cfg)
    for seed, entry in enumerate(entries[:6]):
        known = {key: entry[key] for key in ("height", "width")}
        known["file_name"] = str(folder / "images" / entry["file_name"])
        sample = drawn(mapper, {**known, "image_id": entry["id"]}, seed)
        weak, strong = (sample[view]["image"].float().mean(0).numpy() for view in VIEWS)
        y, x = np.indices(strong.shape).reshape(2, -1) + 0.5
        back = np.linalg.inv(sample["weak_to_strong"].numpy())
        x, y, _ = back @ np.stack([x, y, np.ones_like(x)])
        inside = (x > 1) & (y > 1) & (x < weak.shape[1] - 1) & (y < weak.shape[0] - 1)
        assert inside.mean() > 0.5
        expected = map_coordinates(weak, [y[inside] - 0.5, x[inside] - 0.5], order=1)
        # Of 255 levels; one pixel off costs some, and Pillow's cut fractions half a level.
        assert np.abs(expected - strong.ravel()[inside]).mean() < 1
        assert np.corrcoef(expected, strong.ravel()[inside])[0, 1] > 0.98
