"""Reading images, annotations to instances, the mapper."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image


def _annotation(**kwargs):
    base = {
        "bbox": [10.0, 10.0, 200.0, 300.0],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 3,
        "segmentation": [[10.0, 10.0, 100.0, 100.0, 100.0, 10.0]],
    }
    return {**base, **kwargs}


def _rle(height, width, rows, columns):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[rows, columns] = 1
    return mask_util.encode(mask)


def test_polygons_are_transformed():
    flip = T.TransformList([T.HFlipTransform(400)])
    output = utils.transform_instance_annotations(_annotation(), flip, (400, 400))
    assert output["bbox"].tolist() == [200, 10, 390, 300]
    assert output["segmentation"][0].tolist() == [390, 10, 300, 100, 300, 10]
    instances = utils.annotations_to_instances([output, output], (400, 400))
    assert isinstance(instances.gt_masks, PolygonMasks)
    assert instances.gt_classes.tolist() == [3, 3]


def test_boxes_are_converted_and_clipped():
    annotation = _annotation(bbox=[-5, 350, 30, 100], bbox_mode=BoxMode.XYWH_ABS)
    del annotation["segmentation"]
    output = utils.transform_instance_annotations(annotation, [T.NoOpTransform()], (400, 20))
    assert output["bbox"].tolist() == [0, 350, 20, 400]
    assert output["bbox_mode"] == BoxMode.XYXY_ABS


def test_rle_is_transformed():
    annotation = _annotation(segmentation=_rle(30, 40, slice(None), slice(0, 20)))
    transforms = T.TransformList([T.HFlipTransform(40), T.ResizeTransform(30, 40, 60, 40)])
    output = utils.transform_instance_annotations(annotation, transforms, (60, 40))
    assert output["segmentation"].shape == (60, 40)
    assert not output["segmentation"][:, :20].any()
    assert output["segmentation"][:, 20:].all()
    instances = utils.annotations_to_instances([output], (60, 40), "bitmask")
    assert isinstance(instances.gt_masks, BitMasks)
    assert instances.gt_masks.tensor.sum() == 1200


def test_all_kinds_of_masks_make_the_same_bitmask():
    rle = _rle(20, 30, slice(4, 10), slice(5, 25))
    polygon = [[5, 4, 25, 4, 25, 10, 5, 10]]
    kinds = [polygon, rle, mask_util.decode(rle)]
    annotations = [_annotation(segmentation=s) for s in kinds]
    masks = utils.annotations_to_instances(annotations, (20, 30), "bitmask").gt_masks.tensor
    assert (masks == masks[0]).all()
    assert masks[0].sum() == 120


def test_no_annotations():
    instances = utils.annotations_to_instances([], (40, 40))
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64
    assert not instances.has("gt_masks")


# (segmentation, mask format, part of the message)
WRONG = [
    (_rle(4, 4, 0, 0), "polygon", "bitmask"),  # RLE needs bit masks
    (np.zeros((1, 2, 3), np.uint8), "bitmask", r"\(H, W\)"),
    ("mask", "bitmask", "str"),
    ([[1, 2, 3, 4, 5, 6]], "circles", "mask_format"),
]


@pytest.mark.parametrize(("segmentation", "mask_format", "message"), WRONG)
def test_wrong_segmentations(segmentation, mask_format, message):
    with pytest.raises(ValueError, match=message):
        utils.annotations_to_instances(
            [_annotation(segmentation=segmentation)], (4, 4), mask_format
        )


def test_transforming_what_is_no_segmentation():
    with pytest.raises(ValueError, match="str"):
        utils.transform_instance_annotations(
            _annotation(segmentation="mask"), T.NoOpTransform(), (4, 4)
        )
    with pytest.raises((ValueError, AssertionError), match="size"):
        utils.transform_instance_annotations(
            _annotation(segmentation=_rle(5, 4, 0, 0)), T.NoOpTransform(), (4, 4)
        )


KEYPOINTS = {
    # name: transform, (H, W) after it, what becomes of three keypoints
    "nothing": (T.NoOpTransform(), (20, 20), [[1, 2, 2], [5, 6, 1], [0, 0, 0]]),
    "one is cut off": (T.CropTransform(2, 2, 9, 9), (9, 9), [[0] * 3, [3, 4, 1], [0] * 3]),
    "mirrored": (T.HFlipTransform(20), (20, 20), [[15, 6, 1], [19, 2, 2], [0, 0, 0]]),
    "twice": ([T.HFlipTransform(20)] * 2, (20, 20), [[1, 2, 2], [5, 6, 1], [0, 0, 0]]),
}


@pytest.mark.parametrize("name", KEYPOINTS)
def test_keypoints_follow_the_image(name):
    transform, size, expected = KEYPOINTS[name]
    annotation = _annotation(keypoints=[1, 2, 2, 5, 6, 1, 7, 8, 0])
    swap = np.array([1, 0, 2])
    out = utils.transform_instance_annotations(
        annotation, transform, size, keypoint_hflip_indices=swap
    )
    np.testing.assert_allclose(out["keypoints"], expected)


@pytest.mark.parametrize("indices", [None, np.array([1, 0])])
def test_mirrored_keypoints_need_their_partners(indices):
    with pytest.raises(ValueError, match="keypoint_hflip_indices"):
        utils.transform_keypoint_annotations([1, 2, 2], T.HFlipTransform(9), (9, 9), indices)


def test_a_crop_needs_a_box_centred_in_the_image():
    instance = _annotation(bbox=[10, 10, 100, 100], bbox_mode=BoxMode.XYXY_ABS)
    with pytest.raises(AssertionError, match="outside"):
        utils.gen_crop_transform_with_instance((10, 10), (15, 15), instance)


def test_filter_empty_instances():
    full, empty = _rle(20, 20, slice(2, 5), slice(2, 5)), _rle(20, 20, slice(0), slice(0))
    boxes = [[1, 1, 5, 5], [1, 1, 1, 5], [1, 1, 5, 5]]  # the second has no width
    annotations = [
        _annotation(bbox=box, segmentation=mask) for box, mask in zip(boxes, [full, full, empty])
    ]
    instances = utils.annotations_to_instances(annotations, (20, 20), "bitmask")
    kept, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert mask.tolist() == [True, False, False]
    assert len(kept) == 1
    assert len(utils.filter_empty_instances(instances, by_mask=False)) == 2
    with pytest.raises((ValueError, AssertionError)):
        utils.filter_empty_instances(instances, by_box=False, by_mask=False)


def test_crop_contains_the_centre_of_an_instance():
    for _ in range(20):
        crop = utils.gen_crop_transform_with_instance(
            (10, 12), (150, 160), _annotation(bbox=[10, 10, 100, 110])
        )
        assert crop.x0 <= 55 <= crop.x0 + crop.w
        assert crop.y0 <= 60 <= crop.y0 + crop.h
        assert crop.x0 + crop.w <= 160
    with pytest.raises(AssertionError):
        utils.gen_crop_transform_with_instance(
            (10, 10), (15, 15), _annotation(bbox=[20, 20, 30, 30])
        )


# image formats and the first pixel they give for RGB (10, 20, 30)
FORMATS = [("RGB", [10, 20, 30]), ("BGR", [30, 20, 10]), (None, [10, 20, 30]), ("L", [18])]


@pytest.mark.parametrize(("name", "pixel"), FORMATS)
def test_read_image_formats(name, pixel, tmp_path):
    Image.new("RGB", (5, 4), (10, 20, 30)).save(tmp_path / "a.png")
    image = utils.read_image(str(tmp_path / "a.png"), name)
    assert image.shape == (4, 5, len(pixel))
    assert image[0, 0].tolist() == pixel


def test_convert_image_to_rgb():
    image = np.full((2, 2, 3), (1, 2, 3), np.uint8)
    assert utils.convert_image_to_rgb(image, "BGR")[0, 0].tolist() == [3, 2, 1]
    assert utils.convert_image_to_rgb(torch.from_numpy(image), "RGB")[0, 0].tolist() == [1, 2, 3]
    assert utils.convert_image_to_rgb(image[:, :, :1], "L")[0, 0].tolist() == [1, 1, 1]


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert utils.read_image(str(tmp_path / "a.jpg"), "RGB").shape == (8, 4, 3)


def test_broken_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    with pytest.raises(OSError, match=r"bad\.png"):
        utils.read_image(str(tmp_path / "bad.png"))
    Image.new("RGB", (50, 50)).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match=r"cut\.png"):
        utils.read_image(str(tmp_path / "cut.png"))


def test_check_image_size():
    record = {"file_name": "a.png"}
    utils.check_image_size(record, np.zeros((3, 4)))
    assert (record["height"], record["width"]) == (3, 4)
    with pytest.raises(utils.SizeMismatchError, match=r"a\.png is 5 x 3"):
        utils.check_image_size(record, np.zeros((3, 5)))


def test_metadata_consistency():
    MetadataCatalog.get("lite_m1").x = [1]
    MetadataCatalog.get("lite_m2").x = [1]
    MetadataCatalog.get("lite_m3").x = [2]
    utils.check_metadata_consistency("x", ["lite_m1", "lite_m2"])
    utils.check_metadata_consistency("x", [])
    with pytest.raises(ValueError, match="lite_m3"):
        utils.check_metadata_consistency("x", ["lite_m1", "lite_m3"])
    for name in ("lite_m1", "lite_m2", "lite_m3"):
        MetadataCatalog.remove(name)


# (RANDOM_FLIP, what the training augmentations print as)
FLIPS = [
    ("horizontal", "RandomFlip()"),
    ("vertical", "RandomFlip(horizontal=False, vertical=True)"),
    ("none", None),
]


@pytest.mark.parametrize(("flip", "text"), FLIPS)
def test_augmentations_from_config(flip, text):
    cfg = get_cfg()
    cfg.INPUT.RANDOM_FLIP = flip
    training = [str(a) for a in utils.build_augmentation(cfg, True)]
    assert training[1:] == ([] if text is None else [text])
    testing = utils.build_augmentation(cfg, False)
    assert [type(a) for a in testing] == [T.ResizeShortestEdge]


@pytest.fixture
def record(tmp_path):
    Image.new("RGB", (30, 20), (10, 20, 30)).save(tmp_path / "a.png")
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30) % 7).save(tmp_path / "s.png")
    return {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "s.png"),
        "height": 20,
        "width": 30,
        "image_id": 5,
        "annotations": [
            _annotation(
                bbox=[5, 4, 20, 6],
                bbox_mode=BoxMode.XYWH_ABS,
                segmentation=_rle(20, 30, slice(4, 10), slice(5, 25)),
            ),
            _annotation(bbox=[0, 0, 9, 9], iscrowd=1),
            _annotation(bbox=[3, 3, 3, 9], segmentation=_rle(20, 30, slice(4), slice(4))),
        ],
    }


def _mapper_cfg():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (40,), "none"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MASK_FORMAT = 10, "bitmask"
    cfg.MODEL.MASK_ON = True
    return cfg


def test_mapper_in_training(record):
    before = record["annotations"][0]["bbox"]
    mapped = DatasetMapper(_mapper_cfg(), True)(record)
    assert mapped["image"].shape == (3, 40, 60)
    assert mapped["image"][:, 0, 0].tolist() == [30, 20, 10]
    assert (mapped["height"], mapped["width"]) == (20, 30)  # of the file
    assert mapped["sem_seg"].shape == (40, 60)
    assert mapped["sem_seg"].dtype == torch.int64
    instances = mapped["instances"]
    assert len(instances) == 1  # neither the crowd nor the box without width
    assert instances.image_size == (40, 60)
    assert instances.gt_boxes.tensor.tolist() == [[10, 8, 50, 20]]
    assert instances.gt_masks.tensor.sum() == 480
    assert "annotations" not in mapped
    assert record["annotations"][0]["bbox"] is before  # the record itself is unchanged
    assert len(record["annotations"]) == 3


def test_mapper_in_testing(record):
    mapped = DatasetMapper(_mapper_cfg(), is_train=False)(record)
    assert mapped["image"].shape == (3, 10, 15)
    assert "annotations" not in mapped
    assert "instances" not in mapped
    assert mapped["image_id"] == 5


def test_mapper_without_masks(record):
    cfg = _mapper_cfg()
    cfg.MODEL.MASK_ON = False
    assert not DatasetMapper(cfg, True)(record)["instances"].has("gt_masks")


def test_crop_comes_first_and_boxes_follow_masks(record):
    cfg = _mapper_cfg()
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [20, 15]
    mapper = DatasetMapper(cfg, True)
    assert mapper.recompute_boxes
    assert isinstance(mapper.augmentations.augs[0], T.RandomCrop)
    instances = mapper(record)["instances"]
    boxes = instances.gt_masks.get_bounding_boxes().tensor
    assert torch.equal(instances.gt_boxes.tensor, boxes)
    assert not DatasetMapper(cfg, False).recompute_boxes


def test_mapper_names_the_image_of_a_bad_annotation(record):
    cfg = _mapper_cfg()
    cfg.INPUT.MASK_FORMAT = "polygon"
    with pytest.raises(ValueError, match=r"a\.png: .*INPUT\.MASK_FORMAT"):
        DatasetMapper(cfg, True)(record)


def test_what_the_mapper_does_not_do():
    with pytest.raises((ValueError, AssertionError), match="use_instance_mask"):
        DatasetMapper(True, augmentations=[], image_format="BGR", recompute_boxes=True)
    with pytest.raises(NotImplementedError, match="keypoints"):
        DatasetMapper(True, augmentations=[], image_format="BGR", use_keypoint=True)
