"""The image files of a label file: each thing that can be wrong with one, and its name."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pseudolabel.defects import ERROR, KINDS, WARNING
from pseudolabel.instances import load_instances
from pseudolabel.validation import check_images
from tests.pseudolabel.label_files import HEIGHT, TABLE, WIDTH, sound


def draw(path, mode="RGB", size=(WIDTH, HEIGHT), **options):
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8))
    pixels.convert(mode).save(path, **options)


def turned(stored, orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return lambda path: draw(path, size=stored, format="JPEG", exif=exif)


def cut(path):
    draw(path)
    path.write_bytes(path.read_bytes()[:-600])


def cut_jpeg(path):
    draw(path, format="JPEG", size=(WIDTH, HEIGHT))
    path.write_bytes(path.read_bytes()[:-200])


def elsewhere(path):
    draw(path.parent.parent / "secret.png")
    path.symlink_to("../secret.png")


def elsewhere_by_folder(path):
    """The name is harmless and the file real; a folder on the way is a link."""
    (path.parent.parent / "other").mkdir()
    draw(path.parent.parent / "other" / "5.png")
    (path.parent / "sub").symlink_to("../other")
    path.symlink_to("sub/5.png")


def cycle(path):
    path.symlink_to(path.name)


def deep(path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 999, np.uint16)).save(path, format="PNG")


def bomb(path):
    """The header of a PNG of 10^10 pixels."""
    draw(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


IMAGE_TABLE = [
    ("image_missing", lambda path: None),
    ("image_missing", lambda path: path.mkdir()),
    ("image_missing", lambda path: path.symlink_to("nowhere.png")),
    ("image_outside_root", elsewhere),
    ("image_outside_root", elsewhere_by_folder),
    ("image_empty", lambda path: path.write_bytes(b"")),
    ("image_unreadable", lambda path: path.write_text("<html>not found</html>")),
    ("image_truncated", cut),
    ("image_truncated", cut_jpeg),
    ("image_deep", deep),
    ("image_too_large", bomb),
    ("image_cmyk", lambda path: draw(path, "CMYK", format="JPEG")),
    ("image_one_pixel", lambda path: draw(path, size=(1, 1))),
    ("image_size_differs", lambda path: draw(path, size=(WIDTH + 1, HEIGHT))),
    ("image_rotated", turned((WIDTH, HEIGHT))),  # the JSON states the stored size
    ("image_rotated_as_stated", turned((HEIGHT, WIDTH))),  # the JSON states the upright size
]


IMAGE_TABLE += [
    row
    # All four quarter turns, mirrored or not.
    for orientation in (5, 7, 8)
    for row in (
        ("image_rotated", turned((WIDTH, HEIGHT), orientation)),
        ("image_rotated_as_stated", turned((HEIGHT, WIDTH), orientation)),
    )
] + [
    # Half turns and mirrors keep the size.
    ("image_rotated_as_stated", turned((WIDTH, HEIGHT), orientation))
    for orientation in (2, 3, 4)
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    draw(tmp_path / "images" / "6.png")
    return tmp_path / "images"


def test_sound_images(folder):
    draw(folder / "5.png")
    assert check_images(sound(), folder) == []


@pytest.mark.parametrize(
    ("kind", "make"), IMAGE_TABLE, ids=[f"{n}-{row[0]}" for n, row in enumerate(IMAGE_TABLE)]
)
def test_each_defect_of_an_image(kind, make, folder):
    make(folder / "5.png")
    found = {defect.kind: defect for defect in check_images(sound(), folder)}
    defect = found[kind]
    assert defect.record == "image 5"
    assert "5.png" in defect.problem
    assert defect.place == ("images", 0)
    assert (defect.severity, defect.remedy) == KINDS[kind]


def test_a_loop_of_links_is_named(folder):
    cycle(folder / "5.png")
    (defect,) = check_images(sound(), folder)
    assert defect.kind in ("image_missing", "image_unreadable")
    assert defect.record == "image 5"


def test_the_image_folder_itself_may_be_a_link(folder):
    draw(folder / "5.png")
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert check_images(sound(), link) == []
    # A link that stays in the folder is fine, too.
    (folder / "5.png").rename(folder / "real.png")
    (folder / "5.png").symlink_to("real.png")
    assert check_images(sound(), folder) == []


@pytest.mark.parametrize("make", [elsewhere, elsewhere_by_folder])
def test_links_that_leave_the_folder_may_be_allowed(make, folder):
    make(folder / "5.png")
    (defect,) = check_images(sound(), folder)
    assert "--allow-links" in defect.remedy
    assert "allow_links: true in DATASETS.REGISTER" in defect.remedy
    assert check_images(sound(), folder, allow_links=True) == []


def test_files_are_looked_for_where_the_loaders_look(folder):
    """The stated name first, then the others: here without the prefix of 2014, then by the URL."""
    data = sound()
    data["images"][0]["file_name"] = "COCO_val2014_000000000005.png"
    data["images"][1] |= {"file_name": "absent.png", "coco_url": "http://x.org/val2017/6.png"}
    draw(folder / "000000000005.png")
    assert check_images(data, folder) == []
    # A file of the stated name goes before: this one is too small.
    draw(folder / "absent.png", size=(WIDTH - 1, HEIGHT))
    (defect,) = check_images(data, folder)
    assert (defect.kind, defect.record) == ("image_size_differs", "image 6")
    records = load_instances(data, "labels.json", folder, {3: 0, 9: 1})
    names = ["000000000005.png", "absent.png"]
    assert [Path(record["file_name"]).name for record in records] == names


def test_a_size_with_a_decimal_point_is_compared(folder):
    draw(folder / "5.png")
    data = sound()
    data["images"][0]["width"] = WIDTH + 1.0
    (defect,) = check_images(data, folder)
    assert defect.kind == "image_size_differs"


def test_what_no_reader_opens_is_not_checked(folder):
    data = sound()
    data["images"][0]["status"] = "rejected"
    assert check_images(data, folder) == []
    for unusable in ({"file_name": "../x.png"}, {"file_name": None}, {"file_name": 5}):
        data["images"][0] = {"id": 5, "height": HEIGHT, "width": WIDTH, **unusable}
        assert check_images(data, folder) == []
    assert check_images({"images": [None, 7]}, folder) == check_images([], folder) == []


def test_headers_alone_do_not_show_a_cut(folder):
    cut(folder / "5.png")
    assert check_images(sound(), folder, pixels=False) == []


def test_kinds_have_remedies_and_all_of_them_are_tested():
    tested = {row[0] for row in (*TABLE, *IMAGE_TABLE)}
    of_files = {"file_unreadable", "json_malformed", "byte_order_mark", "duplicate_key"}
    assert tested | of_files | {"not_an_object"} == set(KINDS)
    assert {severity for severity, _ in KINDS.values()} == {ERROR, WARNING}
