"""Writers: what each format can hold comes back identical, what it cannot is counted by record."""

import copy
import json

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_rle

from pseudolabel.conversion import read_label_map
from pseudolabel.errors import DataError
from pseudolabel.export import FORMATS, export_labels
from pseudolabel.export.voc import palette
from pseudolabel.masks import decode_segmentation, encode_rle
from pseudolabel.validation import read_checked

H, W = 9, 11


def annotation(key, mask, image=1, category=3, **more):
    return {
        "id": key,
        "image_id": image,
        "category_id": category,
        "bbox": [0.0, 0.0, float(W), float(H)],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": encode_rle(mask),
        "quality": 0.75,
        "mask_source": "model",
        **more,
    }


def block(y0, y1, x0, x1):
    mask = np.zeros((H, W), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def ring_and_dot():
    """Two parts, one with a hole of a pixel."""
    mask = block(1, 4, 1, 4)
    mask[2, 2] = False
    mask[7, 9] = True
    return mask


def labels(*annotations, names=("a.png",), categories=None):
    return {
        "images": [
            {"id": k, "file_name": name, "width": W, "height": H, "status": "labelled"}
            for k, name in enumerate(names, 1)
        ],
        "annotations": list(annotations),
        "categories": categories or [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    }


def export(folder, data, name, output="out"):
    path = folder / "labels.json"
    path.write_text(json.dumps(data))
    return export_labels(path, name, folder / output)


def read_yolo(text):
    """(class, mask) of each line: filled at pixel centres, by pycocotools."""
    for line in text.splitlines():
        index, *numbers = line.split()
        points = (np.array(numbers, dtype=float).reshape(-1, 2) * [W, H]).ravel()
        code = coco_rle.merge(coco_rle.frPyObjects([points.tolist()], H, W))
        yield int(index), coco_rle.decode(code) != 0


@settings(max_examples=25, deadline=None)
@given(st.lists(arrays(bool, (H, W)), min_size=1, max_size=4))
def test_every_mask_comes_back(tmp_path_factory, masks):
    """Exact: both COCO formats and, filled at pixel centres, YOLO. VOC: exact but for overlaps."""
    folder, reports = tmp_path_factory.mktemp("random"), {}
    rows = [annotation(k, mask) for k, mask in enumerate(masks, 1)]
    kept = [(k, mask) for k, mask in enumerate(masks, 1) if mask.any()]
    for name in FORMATS:
        reports[name] = report = export(folder, labels(*rows), name, name)
        assert report.written == len(kept)
        empty = [f"annotation {k}" for k, mask in enumerate(masks, 1) if not mask.any()]
        assert [record for record, _ in report.left_out] == empty
    for name in ("coco-polygons", "label-tool"):
        written = json.loads((folder / name).read_text())["annotations"]
        assert [a["id"] for a in written] == [k for k, _ in kept]
        for entry, (_, mask) in zip(written, kept):
            assert isinstance(entry["segmentation"], list)
            back = decode_segmentation(entry["segmentation"], H, W)
            np.testing.assert_array_equal(back, mask)
            assert entry["area"] == mask.sum()
    lines = list(read_yolo((folder / "yolo-seg/labels/a.txt").read_text()))
    assert len(lines) == len(kept)
    for (_, back), (_, mask) in zip(lines, kept):
        np.testing.assert_array_equal(back, mask)
    drawn = read_label_map(folder / "voc-png/SegmentationObject/a.png")
    for number, (k, mask) in enumerate(kept, 1):
        visible = drawn == number
        assert not (visible & ~mask).any()
        assert mask.sum() - visible.sum() == reports["voc-png"].hidden.get(k, 0)
    np.testing.assert_array_equal(drawn > 0, np.any(masks, axis=0))


def test_polygons_change_nothing_else(tmp_path):
    """Unknown keys stay, a crowd keeps run lengths, holes and parts are there."""
    crowd = annotation(2, block(0, 9, 0, 1), iscrowd=1)
    data = labels(annotation(1, ring_and_dot(), note={"by": "me"}), crowd)
    data["extra"] = 1
    before = copy.deepcopy(data)
    report = export(tmp_path, data, "coco-polygons")
    assert report.losses == report.left_out == []
    written = json.loads((tmp_path / "out").read_text())
    polygons, runs = (a.pop("segmentation") for a in written["annotations"])
    assert len(polygons) == 2
    assert polygons[1] == [9, 7, 10, 7, 10, 8, 9, 8]
    assert runs == {"size": [H, W], "counts": [0, H, H * (W - 1)]}
    for entry in before["annotations"]:
        del entry["segmentation"]
    assert written == before
    assert read_checked(tmp_path / "out")["extra"] == 1


def test_label_tools_get_standard_keys(tmp_path):
    """Ids are kept, ours go to attributes; what has no place there is counted."""
    crowd = annotation(7, block(0, 9, 0, 1), iscrowd=1)
    odd = annotation(5, ring_and_dot(), score=0.5, note={"by": "me"}, attributes={"seen": True})
    data = labels(odd, crowd)
    data["images"][0].update(hardness=0.25, license=4)
    report = export(tmp_path, data, "label-tool")
    written = json.loads((tmp_path / "out").read_text())
    assert set(written) == {"info", "licenses", "images", "annotations", "categories"}
    assert written["images"] == [
        {"id": 1, "file_name": "a.png", "width": W, "height": H, "license": 4}
    ]
    first, second = written["annotations"]
    assert set(first) == {
        *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "attributes")
    }
    expected = {"seen": True, "score": 0.5, "quality": 0.75, "mask_source": "model"}
    assert (first["id"], first["attributes"]) == (5, expected)
    assert isinstance(second["segmentation"]["counts"], list)
    np.testing.assert_array_equal(
        decode_segmentation(second["segmentation"], H, W), block(0, 9, 0, 1)
    )
    assert report.losses == [
        "annotations.note in 1 records",
        "images.hardness in 1 records",
        "images.status in 1 records",
    ]


def test_an_lvis_image_gets_its_file_name(tmp_path):
    data = labels(annotation(1, block(0, 2, 0, 2)))
    del data["images"][0]["file_name"]
    data["images"][0]["coco_url"] = "http://example.org/train2017/000000000009.jpg"
    export(tmp_path, data, "label-tool", "tool.json")
    assert json.loads((tmp_path / "tool.json").read_text())["images"][0]["file_name"] == (
        "000000000009.jpg"
    )
    export(tmp_path, data, "yolo-seg", "yolo")
    assert (tmp_path / "yolo/labels/000000000009.txt").is_file()


def test_yolo_folder(tmp_path):
    """Classes count from 0, folders are kept, crowds and rejected images are named."""
    rows = [
        annotation(1, block(0, 2, 0, 2), category=8),
        annotation(2, block(0, 9, 0, 1), iscrowd=1),
        annotation(3, block(1, 2, 1, 2), image=3),
    ]
    data = labels(*rows, names=("a.png", "deep/a.png", "c.png"))
    data["images"][2]["status"] = "rejected"
    data["categories"][1]["name"] = 'a "dog"\u2028\\ ü'
    report = export(tmp_path, data, "yolo-seg")
    out = tmp_path / "out"
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert found == ["data.yaml", "images.txt", "labels/a.txt", "labels/deep/a.txt"]
    assert (out / "images.txt").read_text() == "./images/a.png\n./images/deep/a.png\n"
    assert (out / "labels/deep/a.txt").read_text() == ""
    (index, mask), *others = read_yolo((out / "labels/a.txt").read_text())
    assert (index, others) == (1, [])
    np.testing.assert_array_equal(mask, block(0, 2, 0, 2))
    names = yaml.safe_load((out / "data.yaml").read_text())["names"]
    assert names == {0: "cat", 1: 'a "dog"\u2028\\ ü'}
    assert (report.annotations, report.written) == (3, 1)
    assert report.left_out == [
        ("annotation 2", "is a crowd"),
        ("image 3", "its status is rejected"),
        ("annotation 3", "the status of its image is rejected"),
    ]


def test_yolo_counts_what_joined_parts_cost(tmp_path):
    """Two dots, four pixels apart: OpenCV paints the joint, three pixels of it not mask."""
    import cv2

    mask = block(4, 5, 2, 3) | block(4, 5, 6, 7)
    report = export(tmp_path, labels(annotation(1, mask)), "yolo-seg")
    assert report.losses[0].startswith("1 masks of several parts are joined by lines: 3 px more")
    numbers = (tmp_path / "out/labels/a.txt").read_text().split()[1:]
    points = np.array(numbers, dtype=float).reshape(-1, 2) * [W, H]
    canvas = np.zeros((H, W), dtype=np.uint8)
    cv2.fillPoly(canvas, [points.astype(np.int32)], 1)
    assert (canvas != mask).sum() == 3
    # A hole costs nothing even there.
    alone = block(1, 4, 1, 4)
    alone[2, 2] = False
    report = export(tmp_path, labels(annotation(1, alone)), "yolo-seg", "second")
    assert len(report.losses) == 1


def test_voc_folder(tmp_path):
    """The smaller mask lies on top, crowds are void below; hidden pixels by id."""
    rows = [
        annotation(11, block(0, 2, 0, 2), category=8),
        annotation(12, block(0, 4, 0, 4)),
        annotation(13, block(0, 9, 0, 9), iscrowd=1),
        annotation(14, block(0, 2, 0, 2)),
    ]
    report = export(tmp_path, labels(*rows, names=("a.png", "deep/b.jpg")), "voc-png")
    out = tmp_path / "out"
    expected = np.where(block(0, 9, 0, 9), 255, 0)
    expected[:4, :4] = 2
    expected[:2, :2] = 3
    objects = read_label_map(out / "SegmentationObject/a.png")
    np.testing.assert_array_equal(objects, expected)
    classes = read_label_map(out / "SegmentationClass/a.png")
    np.testing.assert_array_equal(classes, np.where(expected == 255, 255, (expected > 0) * 1))
    assert read_label_map(out / "SegmentationClass/deep/b.png").max() == 0
    assert (out / "ImageSets/Segmentation/all.txt").read_text() == "a\ndeep/b\n"
    assert json.loads((out / "objects.json").read_text()) == {
        "a.png": {"1": 11, "2": 12, "3": 14},
        "deep/b.png": {},
    }
    lines = (out / "labelmap.txt").read_text().splitlines()
    assert lines[1:] == ["background:0,0,0::", "cat:128,0,0::", "dog:0,128,0::"]
    assert report.hidden == {12: 4, 11: 4}
    assert "lost: annotation 12: 4 px hidden" in report.lines()
    assert "lost: 8 px of 2 overlapped masks" in report.lines()
    with Image.open(out / "SegmentationObject/a.png") as image:
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((0, 0)) == (128, 128, 0)


def test_the_palette_of_voc():
    """The colours that VOC publishes for aeroplane, bicycle, tv monitor and void."""
    colours = np.array(palette()).reshape(256, 3).tolist()
    assert [colours[k] for k in (0, 1, 2, 20, 255)] == [
        *([0, 0, 0], [128, 0, 0], [0, 128, 0]),
        *([0, 64, 128], [224, 224, 192]),
    ]
    assert len(set(map(tuple, colours))) == 256


def many(count):
    return [annotation(k, block(0, 1, 0, 1)) for k in range(1, count + 1)]


def test_254_objects_are_the_most_of_voc(tmp_path):
    assert export(tmp_path, labels(*many(254)), "voc-png").written == 254
    with pytest.raises(DataError, match=r"image 1\): has 255 objects, a palette PNG holds 254"):
        export(tmp_path, labels(*many(255)), "voc-png", "more")
    classes = [{"id": k, "name": f"c{k}"} for k in range(1, 256)]
    with pytest.raises(DataError, match="has 255 categories"):
        export(tmp_path, labels(categories=classes), "voc-png", "more")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.json", "out"]


FOLDERS = ("yolo-seg", "voc-png")
BAD = [
    # What leaves the folder, by whatever spelling, and what cannot stand in a list of names.
    ("../evil.png", FORMATS, "not a path below"),
    ("/evil.png", FORMATS, "not a path below"),
    ("a/../../evil.png", FORMATS, "not a path below"),
    ("..\\evil.png", FORMATS, "not a path below"),
    ("C:\\evil.png", FORMATS, "not a path below"),
    ("evil\n.png", FOLDERS, "does not print"),
]


@pytest.mark.parametrize(("name", "formats", "message"), BAD)
def test_names_that_leave_the_output(tmp_path, name, formats, message):
    inside = tmp_path / "inside"
    inside.mkdir()
    for form in formats:
        with pytest.raises(DataError, match=message):
            export(inside, labels(annotation(1, block(0, 2, 0, 2)), names=(name,)), form)
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]
    assert [p.name for p in inside.iterdir()] == ["labels.json"]


@pytest.mark.parametrize("form", FOLDERS)
@pytest.mark.parametrize(
    "names",
    [("a.png", "a.jpg"), ("a.png", "A.png"), ("d/a.png", "d\\a.jpg"), ("a.png", "./a.jpg")],
)
def test_images_that_would_share_a_file(tmp_path, form, names):
    with pytest.raises(DataError, match=r"image 2\): would be written to .* as image 1 would"):
        export(tmp_path, labels(names=names), form)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_an_output_that_exists_stays(tmp_path, form):
    """A file, a folder that holds something, a link, and the input itself."""
    data = labels(annotation(1, block(0, 2, 0, 2)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/keep").write_text("keep")
    (tmp_path / "file").write_text("keep")
    (tmp_path / "link").symlink_to("nowhere")
    for output in ("full", "file", "link", "labels.json"):
        with pytest.raises(DataError, match=r"exists|replace the input"):
            export(tmp_path, data, form, output)
    assert (tmp_path / "full/keep").read_text() == (tmp_path / "file").read_text() == "keep"
    assert json.loads((tmp_path / "labels.json").read_text()) == data
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("form", FOLDERS)
def test_a_folder_is_whole_or_not_there(tmp_path, form, monkeypatch):
    """The second image fails: nothing of the first stays, and an empty folder may be filled."""
    data = labels(annotation(1, block(0, 2, 0, 2)), names=("a.png", "b.png"))
    (tmp_path / "out").mkdir()
    module = f"pseudolabel.export.{form.partition('-')[0]}"
    place = __import__(module, fromlist=["place"]).place

    def failing(folder, target):
        if "b." in str(target):
            raise OSError(28, "No space left on device")
        return place(folder, target)

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.place", failing)
        with pytest.raises(OSError, match="No space"):
            export(tmp_path, data, form)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["labels.json", "out"]
    assert export(tmp_path, data, form).written == 1
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["annotations"][0].update(segmentation=encode_rle(np.ones((2, 2)))),
            "image is",
        ),
        (lambda d: d["annotations"][0].update(category_id=4), "unknown category_id"),
        (lambda d: d["annotations"].append(d["annotations"][0]), "occurs twice"),
        (lambda d: d["images"][0].pop("height"), "has no height"),
        (lambda d: d.pop("categories"), "has no list"),
    ],
)
@pytest.mark.parametrize("form", FORMATS)
def test_bad_labels(tmp_path, form, change, message):
    data = labels(annotation(1, block(0, 2, 0, 2)))
    change(data)
    with pytest.raises(DataError, match=message) as caught:
        export(tmp_path, data, form)
    assert caught.value.file.endswith("labels.json")
    assert not (tmp_path / "out").exists()


def test_records_without_a_mask_are_named(tmp_path):
    bare = annotation(1, block(0, 2, 0, 2))
    del bare["segmentation"]
    for form in FORMATS:
        report = export(tmp_path, labels(bare), form, form)
        assert report.left_out == [("annotation 1", "has no mask")]
        assert report.lines()[-1].endswith("1 annotations in, 0 out, 1 left out")


@pytest.mark.parametrize("name", ["a:b", "#a", "a\nb"])
def test_class_names_that_a_list_cannot_hold(tmp_path, name):
    with pytest.raises(DataError, match=r"category 3\): the name"):
        export(tmp_path, labels(categories=[{"id": 3, "name": name}]), "voc-png")


def test_an_unknown_format(tmp_path):
    with pytest.raises(DataError, match="choose one of coco-polygons, yolo-seg"):
        export(tmp_path, labels(), "coco")
