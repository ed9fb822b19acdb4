"""Label maps to regions and records, against whole-image comparisons on random maps."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from pseudolabel.conversion import (
    MAX_LABEL,
    CocoWriter,
    check_same_size,
    image_size,
    read_image_list,
    read_label_map,
    regions,
    run_conversion,
)
from pseudolabel.errors import DataError
from pseudolabel.masks import encode_rle

maps = arrays(
    np.int32,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 1, 2, 26, 255, 24000, MAX_LABEL]),
)


@settings(max_examples=60, deadline=None)
@given(maps)
def test_regions_are_the_numbers_of_the_map(label_map):
    """Each number but 0 once, ascending; its record is the code of `label_map == number`."""
    writer = CocoWriter("random", {1: "thing"})
    writer.add_image("a.png", label_map.shape)
    found = list(regions(label_map))
    assert [r.value for r in found] == sorted(set(label_map.ravel().tolist()) - {0})
    for region in found:
        assert region.patch.any(0)[[0, -1]].all()
        assert region.patch.any(1)[[0, -1]].all()
        writer.add_region(region, 1)
    for record in writer.data["annotations"]:
        mask = label_map == record["instance_id"]
        assert record["segmentation"] == encode_rle(mask)
        assert record["area"] == mask.sum()
        x, y, w, h = record["bbox"]
        assert mask[y : y + h, x : x + w].sum() == mask.sum()


@pytest.mark.parametrize(
    ("mode", "numbers"),
    [
        ("L", [[0, 255]]),
        ("P", [[3, 250]]),
        ("1", [[0, 1]]),
        ("I;16", [[24000, 65535]]),
        ("I", [[0, 33018]]),
    ],
)
def test_numbers_of_every_kind_of_map(tmp_path, mode, numbers):
    depth = {"1": np.uint8, "I;16": np.uint16, "I": np.int32}.get(mode, np.uint8)
    array = np.array(numbers, depth)
    if mode == "P":
        image = Image.frombytes("P", (2, 1), array.tobytes())
        image.putpalette(list(range(255, -1, -1)) * 3)
    elif mode == "1":
        image = Image.fromarray(array * 255).convert("1", dither=Image.Dither.NONE)
    else:
        image = Image.fromarray(array)
    image.save(tmp_path / "map.png", "TIFF" if mode == "I" else "PNG")
    np.testing.assert_array_equal(read_label_map(tmp_path / "map.png"), numbers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: cut(path), "cannot be read"),
        (lambda path: Image.new("RGB", (2, 2)).save(path), "mode RGB, not a map"),
        (lambda path: Image.new("LA", (2, 2)).save(path), "mode LA, not a map"),
        (lambda path: Image.new("F", (2, 2)).save(path, "TIFF"), "mode F, not a map"),
        # More than 16 bits, or below zero.
        (lambda path: Image.new("I", (2, 2), 65536).save(path, "TIFF"), "outside"),
        (lambda path: Image.new("I", (2, 2), -1).save(path, "TIFF"), "outside"),
    ],
)
def test_what_is_no_label_map(tmp_path, make, message):
    make(tmp_path / "map.png")
    with pytest.raises(DataError, match=message) as caught:
        read_label_map(tmp_path / "map.png")
    assert caught.value.file.endswith("map.png")


def cut(path):
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-700])


def test_sizes(tmp_path):
    Image.new("RGB", (7, 3)).save(tmp_path / "a.jpg")
    assert image_size(tmp_path / "a.jpg") == (3, 7)
    check_same_size(np.zeros((3, 7)), "a.png", (3, 7))
    with pytest.raises(DataError, match=r"a\.png: is 7x3, its image 3x7"):
        check_same_size(np.zeros((3, 7)), "a.png", (7, 3))


def test_image_list(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("b\r\n\n a \n")
    assert read_image_list(path) == ["a", "b"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        read_image_list(path)


def command(tmp_path, convert, output):
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = [str(tmp_path / "root"), "--output", str(output)]
    return run_conversion(convert, parser, ["maps", "lists"], arguments)


def test_command_writes_and_counts(tmp_path, capsys):
    writer = CocoWriter("nothing", {2: "b", 1: "a"})
    writer.add_image("a.png", (2, 2))
    output = tmp_path / "deep" / "out.json"
    assert command(tmp_path, lambda options: writer, output) == 0
    assert "1 images (1 without any object), 0 instances" in capsys.readouterr().out
    assert '"categories": [{"id": 1, "name": "a"}' in output.read_text()


def test_command_that_cannot_write(tmp_path, capsys):
    assert command(tmp_path, lambda options: CocoWriter("x", {1: "a"}), "/dev/null/out.json") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Remedy: check disk space and rights" in error


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("root/lists/train.txt", "lies in .*lists, among the files of the data set"),
        ("root/maps/new.json", "lies in .*maps"),  # even a file that does not exist yet
        ("link/a_polygons.json", "lies in .*maps"),  # a JSON of the data set, through a link
        ("notes.txt", "exists and is no .json"),
        ("root/README", "exists and is no .json"),
    ],
)
def test_command_never_replaces_what_it_reads(output, problem, tmp_path, capsys):
    for name in ("root/lists/train.txt", "root/maps/a_polygons.json", "notes.txt", "root/README"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    (tmp_path / "link").symlink_to("root/maps")
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert command(tmp_path, lambda options: pytest.fail("it has begun"), tmp_path / output) == 1
    assert re.search(problem + ".*Remedy", capsys.readouterr().err)
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_command_replaces_a_json_beside_the_data(tmp_path):
    """A second run takes the place of the first, also below the root."""
    output = tmp_path / "root" / "annotations" / "train.json"
    for _ in range(2):
        assert command(tmp_path, lambda options: CocoWriter("x", {1: "a"}), output) == 0
