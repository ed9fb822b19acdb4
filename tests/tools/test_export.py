"""tools/export.py: lines, accounts, exit status, and that nothing is ever replaced."""

import json
import subprocess
import sys

import pytest

from pseudolabel.export import FORMATS
from tests.tools.commands import ROOT, SMALL_DISK, load_command

command = load_command("export")


def make_crowds(folder, count):
    path = folder / "instances.json"
    data = json.loads(path.read_text())
    for annotation in data["annotations"][:count]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("form", FORMATS)
def test_every_format(folder, capsys, form):
    assert command.main(["instances.json", "--format", form, "--output", "deep/out"]) == 0
    assert capsys.readouterr().out.endswith("deep/out: 8 annotations in, 8 out, 0 left out\n")
    assert (folder / "deep/out").is_dir() is (form in ("yolo-seg", "voc-png"))
    # A second run replaces nothing.
    assert command.main(["instances.json", "--format", form, "--output", "deep/out"]) == 1
    assert "the output exists. Remedy" in capsys.readouterr().err


def test_lines_are_bounded_and_the_report_is_not(folder, capsys):
    make_crowds(folder, 5)
    arguments = ["instances.json", "--format", "yolo-seg", "--output", "out"]
    assert command.main([*arguments, "--report", "report.json", "--max", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "left out: annotation 10: is a crowd",
        "left out: annotation 11: is a crowd",
        "... and 4 more (--report OUT.json writes all)",
        "out: 8 annotations in, 3 out, 5 left out",
    ]
    report = json.loads((folder / "report.json").read_text())
    assert (report["annotations_in"], report["annotations_out"]) == (8, 3)
    assert [row["record"] for row in report["left_out"]] == [
        f"annotation {key}" for key in (10, 11, 20, 21, 30)
    ]


@pytest.mark.parametrize("options", [("--max", "-1"), ("--format", "coco"), ("--no-such-option",)])
def test_wrong_usage(folder, options):
    with pytest.raises(SystemExit) as error:
        command.main(["instances.json", "--format", "voc-png", "--output", "out", *options])
    assert error.value.code == 2
    assert not (folder / "out").exists()


@pytest.mark.parametrize("report", ["instances.json", "out", "full"])
def test_a_report_replaces_nothing(folder, capsys, report):
    (folder / "full").mkdir()
    (folder / "full/x").write_text("x")
    before = (folder / "instances.json").read_bytes()
    arguments = ["instances.json", "--format", "label-tool", "--output", "out"]
    assert command.main([*arguments, "--report", report]) == 1
    assert "Remedy" in capsys.readouterr().err
    assert (folder / "instances.json").read_bytes() == before
    assert not (folder / "out").exists()


@pytest.mark.parametrize("form", ["label-tool", "voc-png"])
def test_a_full_disk_leaves_nothing(folder, form):
    arguments = ["instances.json", "--format", form, "--output", "out"]
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK.format(300), str(ROOT / "tools/export.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p.name for p in folder.iterdir() if "out" in p.name]
