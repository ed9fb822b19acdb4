"""Labelers of someone else, labelers that need categories, and what may lie in a folder."""

import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pseudolabel.errors import DataError
from pseudolabel.image_paths import image_path
from pseudolabel.job import found
from pseudolabel.job.categories import label_with_categories
from pseudolabel.job.dry_run import calibrate
from pseudolabel.job.found import ImageSource, require_finder
from pseudolabel.job.identity import code_hashes
from pseudolabel.job.labelers import load_labeler
from pseudolabel.store import BoxFile, LabelResult
from tests.pseudolabel.job.made import (
    FOREIGN,
    Blocks,
    Counting,
    assert_all_accounted_for,
    label,
    write_job,
)


@pytest.fixture
def folder(tmp_path):
    write_job(tmp_path)
    return tmp_path


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Modules of someone else, where Python finds them."""
    (tmp_path / "made_labelers.py").write_text(FOREIGN)
    (tmp_path / "made_broken.py").write_text("import no_such_module_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("made_labelers", "made_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_labeler_of_someone_else_counts_with_its_code(module):
    labeler = load_labeler("made_labelers:Middle", {"weights": ""}, {})
    packages = {"pseudolabel", "mal", "pais", "masksmith_projects", "detectron2"}
    assert set(code_hashes(labeler)) == {*packages, "made_labelers"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("made_labelers:Absent", "made_labelers has no factory 'Absent'"),
        ("made_labelers:number", "made_labelers has no factory 'number'"),
        ("made_labelers:", "has no factory ''"),
        (":Middle", "module '' cannot be imported"),
        ("no_such_module:Middle", "'no_such_module' cannot be imported .No module named"),
        ("made_broken:Middle", "'made_broken' cannot be imported .*no_such_module_at_all"),
        ("made_labelers:thing", "built something without `name`, `label` and `describe`"),
        ("made_labelers:with_options", "cannot be built .missing a .*: 'weights'"),
        ("made_labelers:Middle", "has no options, got x.pth"),
        ("absent", "unknown name 'absent'"),
        ("far", "module 'no_such_home' cannot be imported"),
    ],
)
def test_a_name_that_gives_no_labeler(name, message, module):
    weights = "x.pth" if "no options" in message else ""
    with pytest.raises(DataError, match=message):
        load_labeler(name, {"weights": weights}, {"far": "no_such_home"})


def test_a_labeler_that_describes_itself_by_no_json(module, folder):
    unready = load_labeler("made_labelers:Unready", {}, {})
    with pytest.raises(DataError, match="describes itself by values that are no JSON"):
        label(folder, labeler=unready)
    assert not (folder / "out").exists()


class ByCategory(Counting):
    """Knows categories 7 and 9 and tells what it was given."""

    needs_categories, category_ids = True, (7, 9)

    def __init__(self):
        super().__init__()
        self.given = []

    def label(self, image, boxes, *, categories):
        assert len(categories) == len(boxes)
        self.given.append(categories)
        return super().label(image, boxes)


@pytest.fixture
def classes(folder):
    """Every third box is of category 8, which the labeler does not know, others of 7 or 9."""
    data = json.loads((folder / "boxes.json").read_text())
    for annotation in data["annotations"]:
        annotation["category_id"] = 7 + annotation["id"] % 3
    data["categories"] = [{"id": k, "name": f"thing {k}"} for k in (7, 8, 9)]
    (folder / "boxes.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_labeler_that_needs_categories_gets_one_per_box(workers, classes):
    labeler = ByCategory()
    label(classes, labeler=labeler, build=ByCategory, workers=workers)
    assert_all_accounted_for(classes)
    labels = json.loads((classes / "out/labels.json").read_text())
    masks = [a for a in labels["annotations"] if not a["iscrowd"]]
    assert {a["category_id"] for a in masks} == {7, 9}
    lines = (classes / "out/labels.rejects.jsonl").read_text().splitlines()
    rejects = [row for row in map(json.loads, lines) if row["reason"] == "category_unknown"]
    assert rejects
    assert all("does not know category 8" in row["detail"] for row in rejects)
    assert all(row["id"] % 3 == 1 for row in rejects)
    if workers == 1:
        given = sorted(category for categories in labeler.given for category in categories)
        assert given == sorted(a["category_id"] for a in masks)


def test_categories_come_in_the_order_of_boxes(classes):
    """Beside bad boxes and crowds, which the labeler does not see."""
    seen, labeler = {}, ByCategory()
    for job in BoxFile(classes / "boxes.json").jobs:
        labeler.given.clear()
        result = LabelResult()
        label_with_categories(job, "boxes.json", classes, labeler, result)
        masks = [a["category_id"] for a in result.annotations if not a["iscrowd"]]
        seen[job.image["id"]] = masks
        assert labeler.given == ([masks] if masks else [])
    assert sum(map(len, seen.values())) > 20


def test_an_image_of_unknown_categories_alone_is_not_background(classes):
    labeler = ByCategory()
    labeler.category_ids = ()
    label(classes, labeler=labeler)
    assert_all_accounted_for(classes)
    images = json.loads((classes / "out/labels.json").read_text())["images"]
    assert [image["status"] for image in images].count("empty") == 1
    assert not labeler.given


def test_dry_run_gives_the_categories_too(classes):
    labeler = ByCategory()
    assert calibrate(BoxFile(classes / "boxes.json"), labeler, classes, 0).sample_boxes > 20
    assert sum(map(len, labeler.given)) > 20


@pytest.fixture
def strange(tmp_path):
    """A folder of images, and of what may lie in one."""
    root, outside = tmp_path / "images", tmp_path / "outside"
    (root / "below").mkdir(parents=True)
    outside.mkdir()
    names = ("12:30:00.png", "a.png", "below/b.PNG", "c\\d.png", "../outside/secret.png")
    for path in (root / name for name in names):
        Image.fromarray(np.full((30, 40, 3), 200, np.uint8)).save(path)
    (root / "notes.txt").write_text("no image by its name")
    (root / "text.png").write_text("an image by its name alone")
    (root / "empty.jpg").write_bytes(b"")
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    (root / "linked.png").symlink_to(outside / "secret.png")
    (root / "inside.png").symlink_to("a.png")
    (root / "nowhere.png").symlink_to("absent.png")
    (root / "itself.png").symlink_to("itself.png")
    (root / "up").symlink_to("..")
    return root


@pytest.mark.parametrize("allow_links", [False, True])
def test_what_may_lie_in_a_folder_of_images(allow_links, strange, tmp_path):
    """Every file that is called an image is labelled or rejected by name; nothing else is."""
    output = tmp_path / "out/labels.json"
    label(strange, None, Blocks(), output=output, allow_links=allow_links)
    lines = output.with_suffix(".rejects.jsonl").read_text().splitlines()
    rejects = {row["file_name"]: row["detail"] for row in map(json.loads, lines)}
    labels = json.loads(output.read_text())
    labelled = [i["file_name"] for i in labels["images"] if i["status"] == "labelled"]
    linked = ["linked.png"] if allow_links else []
    own = ["12:30:00.png", "a.png", "below/b.PNG", "c\\d.png", "inside.png"]
    assert labelled == [*own, *linked]
    expected = {
        "empty.jpg": "cannot be read",
        "itself.png": "",
        "linked.png": "leads by a link",
        "nowhere.png": "does not exist",
        "text.png": "cannot be read",
    }
    for name in linked:
        del expected[name]
    assert sorted(rejects) == sorted(expected)
    assert all(words in rejects[name] for name, words in expected.items())
    BoxFile(output)


def test_a_backslash_in_a_name_is_not_the_file_in_a_folder(tmp_path):
    """Each of the two gets its own masks; a JSON of Windows finds the one that is there."""
    root, output = tmp_path / "images", tmp_path / "out/labels.json"
    (root / "a").mkdir(parents=True)
    for name, value in {"a/b.png": 0, "a\\b.png": 200}.items():
        Image.fromarray(np.full((30, 40, 3), value, np.uint8)).save(root / name)
    label(root, None, Blocks(), output=output)
    images = json.loads(output.read_text())["images"]
    statuses = {image["file_name"]: image["status"] for image in images}
    assert statuses == {"a/b.png": "empty", "a\\b.png": "labelled"}
    assert image_path({"id": 1, "file_name": "a\\b.png"}, root, "x").name == "a\\b.png"
    (root / "a\\b.png").unlink()
    assert image_path({"id": 1, "file_name": "a\\b.png"}, root, "x") == root / "a/b.png"


class Broken(Blocks):
    """Finds what no label file may hold, or fails."""

    def __init__(self, change):
        self.change = change

    def label(self, image, boxes=None):
        return [self.change(instance) for instance in super().label(np.full_like(image, 255))]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda i: replace(i, category_id=2), "of category_id 2, which is none"),
        (lambda i: replace(i, category_id="1"), "of category_id '1', which is none"),
        (lambda i: replace(i, category_id=True), "of category_id True"),
        (lambda i: replace(i, score=float("nan")), "of score nan"),
        (lambda i: replace(i, score=1.5), "of score 1.5"),
        (lambda i: replace(i, score=np.float32(0.5)), r"of score .*0\.5"),  # is no JSON
        (lambda i: replace(i, box=(5, 5, 5, 9)), r"with the box \[5"),
        (lambda i: replace(i, box=(5, 5, float("inf"), 9)), "with the box"),
        (lambda i: replace(i, box=(5, 5, 9)), r"failed: ValueError at found\.py"),
        (lambda i: 1 / 0, r"failed: ZeroDivisionError at test_labelers\.py:\d+"),
        (lambda i: None, r"failed: AttributeError at found\.py"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_what_a_finder_may_not_find(change, problem, dry, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    given = ImageSource(tmp_path, Blocks.categories), Broken(change), tmp_path, 0
    work = calibrate if dry else lambda *_: label(tmp_path, None, given[1])
    with pytest.raises(DataError, match=rf"labeler blocks \(image 1\): .*{problem}"):
        work(*given)


@pytest.mark.parametrize("categories", [[1], [{"name": "thing"}], [{"id": "1"}]])
def test_a_finder_whose_categories_are_none(categories):
    labeler = Blocks()
    labeler.categories = categories
    with pytest.raises(DataError, match="--labeler blocks: its categories are none of COCO's"):
        require_finder(labeler)


class Short(Counting):
    """Leaves out a mask."""

    def label(self, image, boxes):
        return super().label(image, boxes)[1:]


def test_a_labeler_that_leaves_out_a_mask(folder):
    words = r"labeler ellipse \(image \d+\): failed: ValueError .*one record for each box"
    with pytest.raises(DataError, match=words):
        label(folder, labeler=Short())


def test_a_folder_that_cannot_be_listed_is_named(strange, tmp_path, monkeypatch):
    """Its images would be missing without a word. (Root may list any, so it is made up.)"""
    real = os.scandir

    def scandir(path):
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(found.os, "scandir", scandir)
    with pytest.raises(DataError, match=r"images/below: cannot be listed .Permission denied"):
        label(strange, None, Blocks(), output=tmp_path / "out/labels.json")
    assert not (tmp_path / "out").exists()
