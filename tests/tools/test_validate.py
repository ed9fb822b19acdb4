"""tools/validate.py: lines, exit status, and that a repair never touches its input."""

import json
import subprocess
import sys

import pytest

from pseudolabel.store import BoxFile
from pseudolabel.validation import read_checked
from tests.tools.commands import ROOT, SMALL_DISK, load_command

command = load_command("validate")


def edit(folder, **values):
    """Sets keys of annotation 10."""
    path = folder / "instances.json"
    data = json.loads(path.read_text())
    data["annotations"][0].update(values)
    path.write_text(json.dumps(data))


def run(capsys, *arguments):
    status = command.main(["instances.json", *arguments])
    return status, capsys.readouterr().out.splitlines()


def test_a_sound_file(folder, capsys):
    status, lines = run(capsys, "--images", ".", "--strict")
    assert (status, lines) == (0, ["instances.json: 0 errors, 0 warnings"])


def test_errors_and_warnings(folder, capsys):
    edit(folder, area=5000)
    status, lines = run(capsys)
    assert status == 0
    assert lines[0].startswith("instances.json (annotation 10): warning area_differs: area is 5000")
    assert "Remedy: take the area of the mask." in lines[0]
    assert lines[1:] == ["       1 area_differs", "instances.json: 0 errors, 1 warnings"]
    assert run(capsys, "--strict")[0] == 1
    edit(folder, bbox=[1, 2, 3])
    assert run(capsys)[0] == 1


def test_the_images_count(folder, capsys):
    (folder / "3.png").write_bytes(b"")
    assert run(capsys)[0] == 0
    status, lines = run(capsys, "--images", ".")
    assert status == 1
    assert lines[0].startswith("instances.json (image 3): error image_empty: '3.png' has 0 bytes")


def test_the_number_of_lines_is_bounded_and_the_counts_are_not(folder, capsys):
    path = folder / "instances.json"
    data = json.loads(path.read_text())
    for annotation in data["annotations"]:
        annotation["bbox"] = None
    path.write_text(json.dumps(data))
    status, lines = run(capsys, "--max", "2")
    assert status == 1
    assert len(lines) == 5
    assert lines[2] == "... and 6 more (--max 8 prints all)"
    assert lines[3] == "       8 box_missing"


def test_repair_accounts_for_every_annotation(folder, capsys):
    edit(folder, bbox=[1, 2, -3, 4])
    (folder / "3.png").unlink()
    before = (folder / "instances.json").read_bytes()
    options = ("--images", ".", "--repair", "new.json", "--report", "report.json")
    status, lines = run(capsys, *options)
    assert status == 1
    assert (folder / "instances.json").read_bytes() == before
    for line in (
        "dropped image 3: '3.png' does not exist",
        "dropped annotation 30: its image 3 was dropped",
        "dropped annotation 31: its image 3 was dropped",
        "dropped annotation 10: bbox is [1, 2, -3, 4] on a 64x64 image",
        "new.json: annotations 8 in, 5 out, 3 dropped",
    ):
        assert line in lines
    assert [a["id"] for a in read_checked("new.json")["annotations"]] == [11, 20, 21, 40, 41]
    assert len(BoxFile("new.json").jobs) == 3
    report = json.loads((folder / "report.json").read_text())
    assert report["repair"]["counts"]["annotations"] == {"in": 8, "out": 5, "dropped": 3}
    assert report["records"]["annotations"] == 8
    assert report["counts"] == {"box_negative": 1, "image_missing": 1}
    assert [d["record"] for d in report["defects"]] == ["annotation 10", "image 3"]
    assert {tuple(s["place"]) for s in report["repair"]["steps"]} == {
        ("images", 2),
        ("annotations", 0),
        ("annotations", 4),
        ("annotations", 5),
    }
    # The repaired file is sound.
    assert command.main(["new.json", "--images", "."]) == 0


def test_repair_mends_before_it_drops(folder, capsys):
    """The file alone tells how to mend each of these faults: no record goes."""
    path = folder / "instances.json"
    data = json.loads(path.read_text())
    for position, values in enumerate(
        (
            {"iscrowd": True},
            {"area": -1},
            {"id": 11.0},
            {"image_id": 2.0},
            {"category_id": "3"},
            {"iscrowd": 0.0, "score": 87.5},
        )
    ):
        data["annotations"][position].update(values)
    data["images"][3].update(width=64.0, height=64.0)
    path.write_text(json.dumps(data))
    status, lines = run(capsys, "--images", ".", "--repair", "new.json")
    assert status == 1
    assert "new.json: annotations 8 in, 8 out, 0 dropped" in lines
    assert "new.json: images 4 in, 4 out, 0 dropped" in lines
    assert command.main(["new.json", "--images", ".", "--strict"]) == 0


def test_a_repair_that_leaves_nothing_is_not_written(folder, capsys):
    """All images are missing: the folder is wrong, not the file."""
    (folder / "empty").mkdir()
    arguments = ["instances.json", "--images", "empty", "--repair", "new.json"]
    assert command.main(arguments) == 1
    err = capsys.readouterr().err
    assert "none of its 4 images would be left; image 1: '1.png' does not exist" in err
    assert "Remedy" in err
    assert not (folder / "new.json").exists()
    # The same where only the annotations would go.
    path = folder / "instances.json"
    data = json.loads(path.read_text())
    for annotation in data["annotations"]:
        annotation["bbox"] = None
    path.write_text(json.dumps(data))
    assert command.main(["instances.json", "--repair", "new.json"]) == 1
    assert "none of its 8 annotations would be left" in capsys.readouterr().err
    # A file without annotations stays one.
    path.write_text(json.dumps({**data, "annotations": []}))
    assert command.main(["instances.json", "--repair", "new.json"]) == 0


def test_links_out_of_the_folder(folder, capsys):
    (folder / "images").mkdir()
    for number in range(1, 5):
        (folder / "images" / f"{number}.png").symlink_to(folder / f"{number}.png")
    status, lines = run(capsys, "--images", "images", "--repair", "new.json")
    assert status == 1
    assert "       4 image_outside_root" in lines
    assert "new.json: images 4 in, 4 out, 0 dropped" in lines
    assert run(capsys, "--images", "images", "--allow-links")[0] == 0


def test_duplicate_keys_are_found_and_not_repaired(folder, capsys):
    path = folder / "instances.json"
    path.write_text(path.read_text()[:-1] + ', "annotations": []}')
    status = command.main(["instances.json", "--repair", "new.json"])
    out, err = capsys.readouterr()
    assert status == 1
    assert "error duplicate_key: an object has the key 'annotations' twice" in out
    assert "cannot be repaired" in err
    assert not (folder / "new.json").exists()


def test_what_cannot_be_written_is_named_as_the_user_named_it(folder, capsys):
    (folder / "file").touch()
    edit(folder, area=5000)
    assert command.main(["instances.json", "--repair", "file/new.json"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: file/new.json: ")
    assert err.count("\n") == 1


def test_names_that_no_terminal_shows(folder, capsys):
    path = folder / "instances.json"
    data = json.loads(path.read_text())
    data["images"][0]["file_name"] = "\ud800\x1b[2J\n.png"
    data["categories"][0]["name"] = data["categories"][1]["name"] = "\ud800"
    path.write_text(json.dumps(data))
    status, lines = run(capsys, "--images", ".", "--report", "report.json", "--repair", "new.json")
    assert status == 1
    assert "\x1b" not in "".join(lines)
    assert sum("(image 1)" in line for line in lines) == 1
    json.loads((folder / "report.json").read_text())
    assert len(json.loads((folder / "new.json").read_text())["images"]) == 3


def test_a_byte_order_mark_goes(folder, capsys):
    path = folder / "instances.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    status, lines = run(capsys, "--repair", "new.json")
    assert status == 0
    assert any("warning byte_order_mark" in line for line in lines)
    assert "changed the file: removed the byte order mark" in lines
    assert (folder / "new.json").read_bytes()[:1] == b"{"


def test_what_cannot_be_read_is_not_repaired(folder, capsys):
    path = folder / "instances.json"
    path.write_bytes(path.read_bytes()[:-40])
    status = command.main(["instances.json", "--repair", "new.json", "--report", "report.json"])
    out, err = capsys.readouterr()
    assert status == 1
    assert "instances.json: error json_malformed: not valid JSON" in out
    assert "cannot be repaired" in err
    assert "Remedy" in err
    assert not (folder / "new.json").exists()
    report = json.loads((folder / "report.json").read_text())
    assert report["errors"] == 1
    assert "repair" not in report


@pytest.mark.parametrize(
    "arguments",
    [
        ("--repair", "instances.json"),  # never over the input
        ("--repair", "./link.json"),  # by whatever name
        ("--report", "instances.json"),
        ("--repair", "x.json", "--report", "x.json"),
        ("--images", "no_such_folder"),
        ("--max", "-1"),
        ("--no-such-option",),
    ],
)
def test_wrong_usage(arguments, folder, capsys):
    (folder / "link.json").symlink_to("instances.json")
    before = (folder / "instances.json").read_bytes()
    with pytest.raises(SystemExit) as error:
        command.main(["instances.json", *arguments])
    assert error.value.code == 2
    assert (folder / "instances.json").read_bytes() == before


def test_a_full_disk_keeps_the_old_repair(folder):
    edit(folder, area=5000)
    (folder / "new.json").write_text("old")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SMALL_DISK.format(300),
            str(ROOT / "tools/validate.py"),
            "instances.json",
        ]
        + ["--repair", "new.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "new.json").read_text() == "old"
    assert not list(folder.glob(".new*"))
