"""Guarded paths, atomic writes and named errors."""

import os
import pickle
import resource
import struct
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from pseudolabel.errors import DataError
from pseudolabel.files import (
    atomic_write,
    expand_path,
    guarded_join,
    read_image,
    read_json,
    refuse_overwrite,
    write_json,
)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",  # absolute
        "../up.png",  # climbs out at once
        "a/../../up.png",  # climbs out later
        "..\\up.png",  # the same on Windows
        "c:/up.png",  # drive letter
        "",  # nothing
    ],
)
def test_guarded_join_refuses(name, tmp_path):
    with pytest.raises(DataError, match="not a path below the image folder"):
        guarded_join(tmp_path, name, "x.json")


def test_guarded_join_accepts_subfolders(tmp_path):
    assert guarded_join(tmp_path, "a/b.png") == tmp_path / "a" / "b.png"


def test_atomic_write_keeps_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def break_off():
        with atomic_write(path) as file:
            file.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_keeps_the_old_file(tmp_path):
    """A real limit on the file size: the write fails part way."""
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    code = (
        "import resource, signal, sys\n"
        "from pseudolabel.files import write_json\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_json(sys.argv[1], {'a': 'x' * 5000})\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert run.returncode
    assert "OSError" in run.stderr
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),  # no file
        (b'{"a": ', "not valid JSON"),  # truncated
        (b"[1]", "holds no JSON object"),  # a bare list
        (b"\xff\xfe\x00", "not valid JSON"),  # not UTF-8
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),  # a number beyond Python's limit
    ],
)
def test_read_json_names_the_file(content, message, tmp_path):
    path = tmp_path / "boxes.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"boxes\.json.*{message}.*Remedy"):
        read_json(path)


def test_read_json_of_a_folder(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path)


def test_read_json_accepts_a_byte_order_mark(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],  # truncated
        lambda data: b"",  # 0 bytes
        lambda data: b"not an image",  # something else
        None,  # missing
    ],
)
def test_read_image_names_the_file(damage, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    data = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(data))
    with pytest.raises(DataError, match=r"photo\.png.*Remedy"):
        read_image(path)


def test_read_image_turns_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("RGB", (30, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (30, 10, 3)


def test_expand_path(monkeypatch):
    monkeypatch.setenv("MASKSMITH_TEST_ROOT", "/data")
    assert expand_path("$MASKSMITH_TEST_ROOT/a.json") == "/data/a.json"
    with pytest.raises(DataError, match="environment variable"):
        expand_path("$MASKSMITH_UNSET_ROOT/a.json")


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_deep_images_are_refused(mode, tmp_path):
    """Pillow would clip them to white without a word."""
    path = tmp_path / "deep.tif"
    Image.new(mode, (4, 4), 1000).save(path)
    with pytest.raises(DataError, match=rf"deep\.tif.*mode {mode}.*convert it to 8 bit"):
        read_image(path)


def test_a_sixteen_bit_png_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="convert it to 8 bit"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_eight_bit_modes_are_accepted(mode, tmp_path):
    Image.new("RGB", (4, 3), "white").convert(mode).save(tmp_path / "x.tif")
    assert read_image(tmp_path / "x.tif").shape == (3, 4, 3)
    assert read_image(tmp_path / "x.tif").min() >= 254


def test_a_failed_write_names_the_path_that_was_asked_for(tmp_path):
    """Not the temporary file beside it, nor nothing at all as a full disk does."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as error, atomic_write(tmp_path / "file" / "a.json"):
        pass
    assert error.value.filename == str(tmp_path / "file" / "a.json")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError) as error, atomic_write(tmp_path / "taken"):
        pass
    assert (error.value.filename, error.value.filename2) == (str(tmp_path / "taken"), None)
    with pytest.raises(OSError) as error, atomic_write(tmp_path / "a.json"):
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(tmp_path / "a.json")
    # An error of something else keeps its name.
    with pytest.raises(OSError, match="absent"), atomic_write(tmp_path / "a.json"):
        (tmp_path / "absent").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_refuse_overwrite_sees_through_links(tmp_path):
    (tmp_path / "boxes.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "boxes.json")
    refuse_overwrite(tmp_path / "boxes.json", tmp_path / "labels.json")
    with pytest.raises(DataError, match=r"link\.json.*would replace the input"):
        refuse_overwrite(tmp_path / "boxes.json", tmp_path / "labels.json", tmp_path / "link.json")
    with pytest.raises(DataError, match="is a folder"):
        refuse_overwrite(tmp_path / "boxes.json", tmp_path)


@pytest.mark.parametrize("record", [None, "annotation 3"])
def test_data_error_survives_pickling(record, tmp_path):
    error = DataError(tmp_path / "x.json", "is bad", "mend it", record)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is DataError
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_pipe_is_no_image_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(DataError, match="no regular file"):
        read_image(tmp_path / "1.png")


def test_whatever_a_decoder_raises_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    # Seen with a damaged EXIF block.
    fault = Mock(side_effect=struct.error("required argument is not an integer"))
    monkeypatch.setattr("pseudolabel.files.ImageOps.exif_transpose", fault)
    with pytest.raises(DataError, match=r"1.png.*cannot be read"):
        read_image(tmp_path / "1.png")
