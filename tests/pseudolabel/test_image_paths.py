"""Where an image lies: no link leads out of the image folder unless links are allowed."""

import os

import pytest

from pseudolabel.errors import DataError
from pseudolabel.image_paths import ImageFolder, OutsideError, image_candidates, image_path


def make_link(kind, root, outside):
    """A link below `root`; returns the file_name that goes through it."""
    (root / "sub").mkdir()
    (root / "sub/real.png").touch()
    (outside / "secret.png").touch()
    name, target = {
        "file": ("a.png", outside / "secret.png"),
        "relative": ("a.png", "../outside/secret.png"),
        "chain": ("a.png", "b.png"),
        "folder": ("linked", outside),
        "dangling": ("a.png", outside / "nothing.png"),
        "inside": ("a.png", "sub/real.png"),
        "folder inside": ("linked", "sub"),
    }[kind]
    (root / name).symlink_to(target)
    if kind == "chain":
        (root / "b.png").symlink_to(outside / "secret.png")
    return {"folder": "linked/secret.png", "folder inside": "linked/real.png"}.get(kind, name)


@pytest.fixture
def folders(tmp_path):
    """(image folder, a folder beside it), the first one given by a link to it."""
    for name in ("images", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "root").symlink_to("images")
    return tmp_path / "root", tmp_path / "outside"


@pytest.mark.parametrize("kind", ["file", "relative", "chain", "folder", "dangling"])
def test_link_out_of_the_folder_is_refused_unless_allowed(kind, folders):
    root, outside = folders
    image = {"id": 3, "file_name": make_link(kind, root, outside)}
    with pytest.raises(OutsideError, match=r"a\.json \(image 3\).*outside.*allow_links.*--allow-l"):
        image_path(image, root, "a.json")
    assert image_path(image, root, "a.json", allow_links=True) == root / image["file_name"]


@pytest.mark.parametrize("kind", ["inside", "folder inside"])
def test_link_within_the_folder_is_taken_and_so_is_the_folder_as_a_link(kind, folders):
    root, outside = folders
    image = {"id": 3, "file_name": make_link(kind, root, outside)}
    assert image_path(image, root, "a.json") == root / image["file_name"]


def test_folder_whose_name_begins_alike_is_outside(folders):
    root, _ = folders
    sibling = root.parent / "images2"
    sibling.mkdir()
    (sibling / "a.png").touch()
    (root / "a.png").symlink_to("../images2/a.png")
    with pytest.raises(OutsideError):
        image_path({"id": 1, "file_name": "a.png"}, root, "a.json")


def test_later_candidate_stands_in_for_what_is_no_file(folders):
    root, _ = folders
    (root / "a.png").symlink_to("a.png")  # a loop
    (root / "b.png").mkdir()
    (root / "c.png").touch()
    for name in ("a.png", "b.png", "missing.png", "n" * 300):
        image = {"id": 1, "file_name": name, "coco_url": "http://host/split/c.png"}
        assert image_path(image, root, "a.json") == root / "c.png"
        del image["coco_url"]
        assert image_path(image, root, "a.json") == root / name


def test_folder_is_resolved_once(folders, monkeypatch):
    root, _ = folders
    calls, resolve = [], os.path.realpath
    (root / "sub").mkdir()
    for name in "abc":
        (root / "sub" / name).touch()
    monkeypatch.setattr(os.path, "realpath", lambda path: calls.append(path) or resolve(path))
    folder = ImageFolder(root, "a.json")
    for name in "abc":
        assert folder.path({"id": 1, "file_name": f"sub/{name}"}) == root / "sub" / name
    assert len(calls) == 2  # the root, and the folder of all three


@pytest.mark.parametrize("url", ["http://[", 5, None, ["a"], ""])
def test_broken_address_is_none(url):
    image = {"id": 1, "file_name": "a.png", "coco_url": url}
    assert [path.name for path in image_candidates(image, "root", "a.json")] == ["a.png"]
    with pytest.raises(DataError, match="neither a file_name nor a coco_url"):
        image_candidates({"id": 1, "coco_url": url}, "root", "a.json")
