"""The page of overlays: what it shows, and that it needs nothing but itself."""

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import overlays
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pseudolabel.errors import DataError
from pseudolabel.files import write_json
from pseudolabel.masks import encode_rle
from pseudolabel.report import drawing

LABELERS = ("filled_box", "ellipse", "mal")
# A name and a class that would be markup if they were not escaped.
TRAP = "<img src=x>&.png"


class Page(HTMLParser):
    """Tags with attributes, and the visible text; `unclosed` is empty for sound nesting."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.unclosed, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.unclosed.append(tag)

    def handle_endtag(self, tag):
        assert self.unclosed.pop() == tag

    def handle_data(self, data):
        self.text += data


def _coco(wrong):
    """Three images with two 10x10 instances each; those in `wrong` have one column only."""
    names = ["a.png", "b.png", TRAP]
    images = [{"id": i + 1, "file_name": n, "height": 30, "width": 50} for i, n in enumerate(names)]
    annotations = []
    for key in range(1, 7):
        mask = np.zeros((30, 50), dtype=np.uint8)
        x = 5 if key % 2 else 25
        mask[10:20, x : x + (1 if key in wrong else 10)] = 1
        annotations.append(
            {"id": key, "image_id": (key + 1) // 2, "category_id": 1, "bbox": [x, 10, 10, 10]}
            | {"segmentation": encode_rle(mask), "area": int(mask.sum()), "iscrowd": 0}
        )
    categories = [{"id": 1, "name": "<b>thing"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def experiment(tmp_path):
    """MAL is wrong on annotation 4, the ellipse on 1 and 2, the box on 1 to 3."""
    images = tmp_path / "images"
    images.mkdir()
    for entry in _coco(())["images"]:
        Image.new("RGB", (50, 30), (90, 90, 90)).save(images / entry["file_name"])
    write_json(tmp_path / "val.json", _coco(()))
    for name, wrong in (("mal", (4,)), ("ellipse", (1, 2)), ("filled_box", (1, 2, 3))):
        write_json(tmp_path / f"labels_{name}_val.json", _coco(wrong))
    return SimpleNamespace(
        name="toy & co",
        output=tmp_path,
        splits={"val": (tmp_path / "val.json", images)},
        labels=lambda labeler, split: tmp_path / f"labels_{labeler}_{split}.json",
    )


def _detect(experiment, scores):
    folder = experiment.output / "rcnn_mal/inference/demo_val"
    folder.mkdir(parents=True)
    segmentation = _coco(())["annotations"][0]["segmentation"]
    rows = [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": segmentation}
        | {"score": score}
        for score in scores
    ]
    (folder / "coco_instances_results.json").write_text(json.dumps(rows))


def test_page(experiment):
    path = overlays.write_page(experiment, LABELERS)
    assert path == experiment.output / "overlays.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.unclosed == []
    assert "Masks from boxes: toy & co" in page.text
    assert "best yardstick: exact ellipse" in page.text
    # 3 images x 4 panels, 6 worst boxes x 4 tiles.
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 36
    assert "annotation 4" in page.text.partition("worst")[2].partition("annotation 1")[0]
    assert "MAL, IoU 0.100" in page.text


def test_page_needs_nothing_else_and_holds_no_foreign_markup(experiment):
    page = Page(overlays.write_page(experiment, LABELERS).read_text(encoding="utf-8"))
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert all(source.startswith("data:image/") for source in sources)
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "a", "b"}
    assert TRAP in page.text
    assert "<b>thing" in page.text


def test_detections_are_one_more_column(experiment):
    _detect(experiment, [0.9, 0.5, 0.49])
    page = Page(overlays.write_page(experiment, LABELERS).read_text(encoding="utf-8"))
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 39
    assert "Mask R-CNN on MAL labels: 2 detections, score ≥ 0.5" in page.text
    assert "Mask R-CNN on MAL labels: 0 detections" in page.text  # the other images


def test_an_unlabelled_box_is_left_out(experiment):
    """A reject has no mask: the page shows the rest."""
    path = experiment.labels("mal", "val")
    labels = json.loads(path.read_text())
    # All of image 2 and one box of image 1.
    labels["annotations"] = [a for a in labels["annotations"] if a["id"] not in (1, 3, 4)]
    write_json(path, labels)
    page = Page(overlays.write_page(experiment, LABELERS).read_text(encoding="utf-8"))
    assert "2 of 2 images" in page.text
    assert "annotation 4" not in page.text


def test_a_missing_image_is_named(experiment):
    (experiment.output / "images/b.png").unlink()
    with pytest.raises(DataError, match=r"b\.png"):
        overlays.write_page(experiment, LABELERS)
    assert not (experiment.output / "overlays.html").exists()


def test_markdown():
    text = "## A `b`\n\nOne & two.\n\n| x | y |\n| --- | ---: |\n| <i> | 2 |\n\n- p\n- q\n"
    assert overlays._markdown_to_html(text).split("\n") == [
        "<h2>A <code>b</code></h2>",
        "<p>One &amp; two.</p>",
        "<table><thead><tr><th>x</th><th>y</th></tr></thead>"
        "<tbody><tr><td>&lt;i&gt;</td><td>2</td></tr></tbody></table>",
        "<ul><li>p</li><li>q</li></ul>",
    ]


def test_masks_are_drawn_where_they_are():
    image = np.full((10, 20, 3), 100, dtype=np.uint8)
    mask = np.zeros((10, 20), dtype=bool)
    mask[2:7, 4:9] = True
    panel = drawing.Panel(image, 40).masks([(3, mask)])
    color = np.array(drawing.color_of(3))
    assert panel.size == (40, 20)
    # At scale 2 the mask covers rows 4-13 and columns 8-17: outline, fill, and nothing outside.
    assert np.array_equal(panel.pixels[4, 8], color)
    assert np.array_equal(panel.pixels[13, 17], color)
    inner = 0.72 * 100 + 0.28 * color
    assert np.abs(panel.pixels[8, 12] - inner).max() <= 1
    panel.pixels[4:14, 8:18] = 100
    assert (panel.pixels == 100).all()


def test_masks_and_boxes_follow_the_window():
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=bool)
    mask[20:22, 30:32] = True
    window = (28, 18, 38, 28)
    painted = drawing.Panel(image, 10, window).masks([(0, mask)]).pixels.any(-1)
    assert np.argwhere(painted).min(0).tolist() == [2, 2]
    assert np.argwhere(painted).max(0).tolist() == [3, 3]
    framed = drawing.Panel(image, 10, window).boxes([(0, [30, 20, 4, 3])]).pixels.any(-1)
    assert np.argwhere(framed).min(0).tolist() == [2, 2]
    assert np.argwhere(framed).max(0).tolist() == [4, 5]


def test_an_empty_mask_changes_nothing():
    image = np.full((8, 8, 3), 7, dtype=np.uint8)
    panel = drawing.Panel(image, 16).masks([(0, np.zeros((8, 8), dtype=bool))])
    assert (panel.pixels == 7).all()


@given(st.integers(0, 500))
def test_colours_are_bright(index):
    """Dark blue on a dark image could not be seen."""
    red, green, blue = drawing.color_of(index)
    assert 0.299 * red + 0.587 * green + 0.114 * blue > 135


@given(
    st.floats(-50, 120), st.floats(-50, 120), st.floats(0.1, 200), st.floats(0.1, 200),
    st.integers(1, 90), st.integers(1, 90),
)  # fmt: skip
def test_windows_lie_in_the_image(x, y, box_width, box_height, height, width):
    x0, y0, x1, y1 = drawing.window_around([x, y, box_width, box_height], height, width)
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
