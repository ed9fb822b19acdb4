"""Pictures of records and predictions: what is drawn, in which colours, with which words."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import read_image
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.env import NotInLiteError
from detectron2.utils.visualizer import ColorMode, GenericMask, Visualizer
from PIL import Image

H, W = 120, 160
# Red differs from green and blue, so that a grey pixel is one that was made grey.
TINTED = np.full((H, W, 3), (130, 100, 70), dtype=np.uint8)
BOXES = np.array([[20.0, 10.0, 60.0, 50.0], [80.0, 60.0, 150.0, 110.0]])
RED, GREEN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def bitmaps() -> np.ndarray:
    """(2, H, W) bool: the pixels of BOXES."""
    masks = np.zeros((2, H, W), dtype=bool)
    for mask, (left, top, right, bottom) in zip(masks, BOXES.astype(int)):
        mask[top:bottom, left:right] = True
    return masks


def polygons() -> list[list[np.ndarray]]:
    return [[box[[0, 1, 2, 1, 2, 3, 0, 3]]] for box in BOXES]


def encoded() -> list[dict]:
    return [mask_util.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in bitmaps()]


def words(visualizer: Visualizer) -> list[str]:
    return [text.get_text() for text in visualizer.output.ax.texts]


def predictions(**left_out: Any) -> Instances:
    fields = {
        "pred_boxes": Boxes(torch.from_numpy(BOXES).float()),
        "pred_masks": torch.from_numpy(bitmaps()),
        "pred_classes": torch.tensor([0, 2]),
        "scores": torch.tensor([0.966, 0.5]),
    }
    return Instances((H, W), **{k: v for k, v in fields.items() if k not in left_out})


def record(**extra: Any) -> dict:
    annotations = [
        {"bbox": [20, 10, 40, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
        {"bbox": BOXES[1].tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
    ]
    for annotation, parts in zip(annotations, polygons()):
        annotation["segmentation"] = [part.tolist() for part in parts]
    annotations[1]["iscrowd"] = 1
    return {"height": H, "width": W, "annotations": annotations, **extra}


# ---- objects -------------------------------------------------------------------------------------

MASKS: dict[str, Callable[[], Any]] = {
    "array": bitmaps,
    "tensor": lambda: torch.from_numpy(bitmaps()),
    "list of arrays": lambda: list(bitmaps()),
    "list of tensors": lambda: list(torch.from_numpy(bitmaps())),
    "BitMasks": lambda: BitMasks(torch.from_numpy(bitmaps())),
    "PolygonMasks": lambda: PolygonMasks(polygons()),
    "polygons": polygons,
    "RLE": encoded,
    "GenericMask": lambda: [GenericMask(mask, H, W) for mask in bitmaps()],
    "mixed": lambda: [encoded()[0], polygons()[1]],
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_all_kinds_of_masks_look_the_same(masks: Callable[[], Any]) -> None:
    output = Visualizer(TINTED).overlay_instances(masks=masks(), assigned_colors=[RED, GREEN])
    picture = output.get_image().astype(int)
    for box, color in zip(BOXES.astype(int), (RED, GREEN)):
        inner = picture[box[1] + 2 : box[3] - 2, box[0] + 2 : box[2] - 2]
        expected = (TINTED[0, 0] + 255 * np.array(color)) / 2
        assert np.abs(inner - expected).max() <= 2
    untouched = ~bitmaps().any(axis=0)
    for x, y in BOXES[:, :2].astype(int):
        untouched[y - 2 : y + 55, x - 2 : x + 75] = False
    assert (picture[untouched] == TINTED[0, 0]).all()


@pytest.mark.parametrize(
    "boxes",
    [Boxes(BOXES), BOXES, torch.from_numpy(BOXES), BOXES.tolist()],
    ids=lambda b: str(type(b)),
)
def test_all_kinds_of_boxes_look_the_same(boxes: Any) -> None:
    output = Visualizer(TINTED).overlay_instances(boxes=boxes, assigned_colors=[RED, GREEN])
    picture = output.get_image()
    assert picture[30, 20, 0] > 150
    assert picture[85, 150, 1] > 130
    assert (picture[30, 40] == TINTED[0, 0]).all()


def test_holes_stay_open() -> None:
    mask = bitmaps()[1]
    mask[75:95, 100:130] = False
    output = Visualizer(TINTED).overlay_instances(masks=[mask], assigned_colors=[RED])
    picture = output.get_image()
    assert (picture[85, 115] == TINTED[0, 0]).all()
    assert picture[65, 85, 0] > 150


def test_small_objects_are_drawn_over_large_ones() -> None:
    boxes = np.array([[50.0, 40.0, 70.0, 60.0], [10.0, 10.0, 150.0, 110.0]])
    masks = np.zeros((2, H, W), dtype=bool)
    masks[0, 40:60, 50:70], masks[1, 10:110, 10:150] = True, True
    for given in ({"boxes": boxes, "masks": masks}, {"masks": masks}):
        output = Visualizer(TINTED).overlay_instances(
            **given, assigned_colors=[RED, GREEN], alpha=1.0
        )
        assert output.get_image()[55, 65].tolist() == [255, 0, 0]


def test_empty_mask_draws_its_box_and_no_more() -> None:
    visualizer = Visualizer(TINTED)
    empty = np.zeros((2, H, W), dtype=bool)
    visualizer.overlay_instances(masks=empty, labels=["a", "b"])
    assert words(visualizer) == []
    assert (visualizer.get_output().get_image() == TINTED).all()
    visualizer.overlay_instances(boxes=BOXES, masks=[[], []], labels=["a", "b"])
    assert sorted(words(visualizer)) == ["a", "b"]


@pytest.mark.parametrize(
    "nothing", [{}, {"boxes": np.zeros((0, 4)), "masks": [], "labels": []}, {"boxes": []}]
)
def test_no_objects(nothing: dict) -> None:
    output = Visualizer(TINTED).overlay_instances(**nothing)
    assert (output.get_image() == TINTED).all()


MISMATCHES = {
    "labels": {"boxes": BOXES, "labels": ["one"]},
    "masks": {"boxes": BOXES, "masks": bitmaps()[:1]},
    "colours": {"boxes": BOXES, "assigned_colors": [RED]},
    "labels of nothing": {"labels": ["one"]},
}


@pytest.mark.parametrize("given", MISMATCHES.values(), ids=MISMATCHES)
def test_numbers_that_do_not_agree(given: dict) -> None:
    with pytest.raises(ValueError, match=r"differ in number|need boxes or masks"):
        Visualizer(TINTED).overlay_instances(**given)


# The four corners, and a box that begins outside.
@pytest.mark.parametrize(
    "box",
    [(0, 0, 9, 9), (151, 0, 160, 9), (0, 111, 9, 120), (151, 111, 160, 120), (-30, -5, 50, 60)],
)
@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_labels_stay_on_the_picture(box: tuple[int, ...], scale: float) -> None:
    visualizer = Visualizer(TINTED, scale=scale)
    visualizer.overlay_instances(boxes=np.array([box]), labels=["label"])
    (text,) = visualizer.output.ax.texts
    extent = text.get_window_extent(visualizer.output.canvas.get_renderer())
    rows, columns = visualizer.output.get_image().shape[:2]
    assert extent.x0 >= -0.5
    assert extent.y0 >= -0.5
    assert extent.x1 <= columns + 0.5
    assert extent.y1 <= rows + 0.5


# ---- predictions ---------------------------------------------------------------------------------

NAMES = ["cat", "dog", "owl"]
# metadata, fields to leave out, labels
LABELS = {
    "names": (Metadata(thing_classes=NAMES), (), ["cat 97%", "owl 50%"]),
    "no metadata": (None, (), ["0 97%", "2 50%"]),
    "class without a name": (Metadata(thing_classes=["cat"]), (), ["cat 97%", "2 50%"]),
    "no scores": (Metadata(thing_classes=NAMES), ("scores",), ["cat", "owl"]),
    "no classes": (None, ("pred_classes",), ["97%", "50%"]),
    "neither": (None, ("pred_classes", "scores"), []),
    "masks only": (None, ("pred_boxes",), ["0 97%", "2 50%"]),
    "boxes only": (None, ("pred_masks",), ["0 97%", "2 50%"]),
}


@pytest.mark.parametrize(("metadata", "left_out", "labels"), LABELS.values(), ids=LABELS)
def test_labels_of_predictions(metadata: Metadata | None, left_out: tuple, labels: list) -> None:
    visualizer = Visualizer(TINTED, metadata)
    output = visualizer.draw_instance_predictions(predictions(**dict.fromkeys(left_out)))
    assert sorted(words(visualizer)) == sorted(labels)
    assert (output.get_image() != TINTED).any()


def test_class_colors_with_and_without_jitter() -> None:
    metadata = Metadata(thing_classes=NAMES, thing_colors=[(255, 0, 0), (0, 0, 0), (0, 0, 255)])

    def inside(jittering: bool, seed: int) -> np.ndarray:
        np.random.seed(seed)
        visualizer = Visualizer(TINTED, metadata, instance_mode=ColorMode.SEGMENTATION)
        drawn = visualizer.draw_instance_predictions(predictions(), jittering=jittering)
        # A point of the first object away from its label.
        return drawn.get_image()[45, 50].astype(int)

    exact = inside(False, 0)
    np.testing.assert_allclose(exact, TINTED[0, 0] * 0.2 + np.array([255, 0, 0]) * 0.8, atol=2)
    assert (inside(False, 1) == exact).all()
    moved = inside(True, 0)
    assert (inside(True, 0) == moved).all()
    assert 0 < np.abs(moved - exact).max() <= 0.8 * 0.26 * 255


def test_classes_without_a_color_get_random_ones() -> None:
    metadata = Metadata(thing_colors=[(255, 0, 0)])
    visualizer = Visualizer(TINTED, metadata, instance_mode=ColorMode.SEGMENTATION)
    assert (visualizer.draw_instance_predictions(predictions()).get_image() != TINTED).any()


@pytest.mark.parametrize("masks", [True, False])
def test_grey_outside_the_masks(masks: bool) -> None:
    visualizer = Visualizer(TINTED, instance_mode=ColorMode.IMAGE_BW)
    left_out = {"scores": None, "pred_classes": None} | ({} if masks else {"pred_masks": None})
    picture = visualizer.draw_instance_predictions(predictions(**left_out)).get_image()
    # The mean of the channels.
    assert picture[100, 20].tolist() == [100, 100, 100]
    assert (len(set(picture[30, 40].tolist())) > 1) == masks


# ---- records and label maps ----------------------------------------------------------------------


def test_record_with_a_crowd() -> None:
    visualizer = Visualizer(TINTED, Metadata(thing_classes=["cat", "dog"]))
    output = visualizer.draw_dataset_dict(record())
    assert sorted(words(visualizer)) == ["cat", "dog|crowd"]
    marks = (output.get_image() != TINTED).any(axis=2)
    assert marks[30, 40]
    assert marks[85, 115]
    assert not marks[100, 30]


@pytest.mark.parametrize("missing", ["bbox", "segmentation", "category_id", "iscrowd"])
def test_record_without_a_field(missing: str) -> None:
    partial = record()
    for annotation in partial["annotations"]:
        annotation.pop(missing, None)
    visualizer = Visualizer(TINTED)
    assert (visualizer.draw_dataset_dict(partial).get_image() != TINTED).any()
    assert len(words(visualizer)) == (0 if missing == "category_id" else 2)


@pytest.mark.parametrize("empty", [{}, {"annotations": []}, {"file_name": "x.jpg"}])
def test_record_without_annotations(empty: dict) -> None:
    assert (Visualizer(TINTED).draw_dataset_dict(empty).get_image() == TINTED).all()


def test_record_in_class_colors() -> None:
    metadata = Metadata(thing_classes=["cat", "dog"], thing_colors=[(255, 0, 0), (0, 255, 0)])
    visualizer = Visualizer(TINTED, metadata, instance_mode=ColorMode.SEGMENTATION)
    picture = visualizer.draw_dataset_dict(record()).get_image().astype(int)
    assert picture[45, 50].argmax() == 0
    assert picture[100, 140].argmax() == 1


def label_map() -> np.ndarray:
    """0 left, 1 right, 7 and 255 in a strip each."""
    labels = np.zeros((H, W), dtype=np.uint8)
    labels[:, 80:], labels[100:110], labels[110:] = 1, 7, 255
    return labels


STUFF = Metadata(stuff_classes=["sky", "sea"], stuff_colors=[(255, 0, 0), (0, 0, 255)])


@pytest.mark.parametrize("kind", ["array", "tensor", "record", "file"])
def test_label_map_in_the_colors_of_its_classes(kind: str, tmp_path: Path) -> None:
    visualizer, alpha = Visualizer(TINTED, STUFF), 0.5
    if kind == "file":
        Image.fromarray(label_map()).save(tmp_path / "labels.png")
        output = visualizer.draw_dataset_dict({"sem_seg_file_name": str(tmp_path / "labels.png")})
    elif kind == "record":
        output = visualizer.draw_dataset_dict({"sem_seg": torch.from_numpy(label_map())})
    else:
        labels, alpha = label_map(), 0.8
        output = visualizer.draw_sem_seg(torch.from_numpy(labels) if kind == "tensor" else labels)
    assert sorted(words(visualizer)) == ["sea", "sky"]
    picture = output.get_image()
    for x, color in ((10, (255, 0, 0)), (150, (0, 0, 255))):
        expected = TINTED[0, 0] * (1 - alpha) + np.array(color) * alpha
        np.testing.assert_allclose(picture[20, x], expected, atol=2)
    # Labels without a class, and the one to ignore.
    assert (picture[104:108] == TINTED[0, 0]).all()
    assert (picture[115] == TINTED[0, 0]).all()


def test_label_map_options() -> None:
    unnamed = Visualizer(TINTED)
    unnamed.draw_sem_seg(label_map())
    assert sorted(words(unnamed)) == ["0", "1", "7"]
    other_ignored = Visualizer(TINTED, Metadata(ignore_label=7))
    other_ignored.draw_sem_seg(label_map())
    assert sorted(words(other_ignored)) == ["0", "1", "255"]
    silent = Visualizer(TINTED, STUFF)
    silent.draw_sem_seg(label_map(), draw_text=False)
    assert words(silent) == []
    strict = Visualizer(TINTED, STUFF)
    picture = strict.draw_sem_seg(label_map(), area_threshold=H * W).get_image()
    assert (picture == TINTED).all()
    assert words(strict) == []


# ---- outside the subset --------------------------------------------------------------------------

ROTATED = {"annotations": [{"bbox": [9, 9, 4, 4, 30], "bbox_mode": BoxMode.XYWHA_ABS}]}
KEYPOINTS = {"annotations": [{"bbox": [9, 9, 4, 4], "bbox_mode": 0, "keypoints": [1, 2, 2]}]}
ABSENT: dict[str, Callable[[Visualizer], Any]] = {
    "keypoints": lambda v: v.overlay_instances(boxes=BOXES, keypoints=np.zeros((2, 17, 3))),
    "record with keypoints": lambda v: v.draw_dataset_dict(KEYPOINTS),
    "one person's keypoints": lambda v: v.draw_and_connect_keypoints(np.zeros((17, 3))),
    "rotated boxes": lambda v: v.overlay_instances(boxes=np.zeros((2, 5))),
    "record with rotated boxes": lambda v: v.draw_dataset_dict(ROTATED),
    "rotated objects": lambda v: v.overlay_rotated_instances(boxes=np.zeros((2, 5))),
    "rotated label": lambda v: v.draw_rotated_box_with_label((5, 5, 3, 3, 30)),
    "panoptic": lambda v: v.draw_panoptic_seg(torch.zeros(H, W), []),
    "panoptic predictions": lambda v: v.draw_panoptic_seg_predictions(torch.zeros(H, W), []),
    "panoptic record": lambda v: v.draw_dataset_dict({"pan_seg_file_name": "x.png"}),
}


@pytest.mark.parametrize("call", ABSENT.values(), ids=ABSENT)
def test_what_only_upstream_draws(call: Callable[[Visualizer], Any]) -> None:
    with pytest.raises(NotInLiteError, match="Install upstream"):
        call(Visualizer(TINTED))


# ---- real data -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coco_dev() -> Path:
    value = os.environ.get("MASKSMITH_DATA", "")
    if value and (Path(value) / "coco_dev").is_dir():
        return Path(value) / "coco_dev"
    if os.environ.get("MASKSMITH_REQUIRE_DATA"):
        pytest.fail(f"MASKSMITH_DATA is {value!r}, but this run requires the data")
    pytest.skip("MASKSMITH_DATA is not set")


def test_coco_records_cover_their_masks_and_nothing_else(coco_dev: Path) -> None:
    index = coco_dev / "annotations" / "instances_val.json"
    records = load_coco_json(str(index), str(coco_dev / "images"))
    with_crowd = [r for r in records if any(a["iscrowd"] for a in r["annotations"])]
    for found in [*records[:2], *with_crowd[:2]]:
        picture = read_image(found["file_name"], "RGB")
        visualizer = Visualizer(picture)
        marks = (visualizer.draw_dataset_dict(found).get_image() != picture).any(axis=2)
        assert len(words(visualizer)) == len(found["annotations"])
        size = picture.shape[:2]
        allowed = np.zeros(size, dtype=bool)
        for annotation in found["annotations"]:
            shape = GenericMask(annotation["segmentation"], *size)
            assert marks[shape.mask != 0].mean() > 0.98
            x, y, width, height = annotation["bbox"]
            # Lines are a few pixels wide, and masks may leave their boxes by a pixel.
            allowed[
                max(int(y) - 4, 0) : int(y + height) + 5, max(int(x) - 4, 0) : int(x + width) + 5
            ] = 1
        for text in visualizer.output.ax.texts:
            extent = text.get_window_extent(visualizer.output.canvas.get_renderer())
            top, bottom = size[0] - extent.y1, size[0] - extent.y0
            allowed[
                max(int(top) - 3, 0) : int(bottom) + 4,
                max(int(extent.x0) - 3, 0) : int(extent.x1) + 4,
            ] = 1
        assert not (marks & ~allowed).any()
