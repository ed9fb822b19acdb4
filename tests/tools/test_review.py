"""tools/review.py: the loop from labels to a label tool and back, and wrong usage."""

import json

import pytest

from pseudolabel.export import export_labels
from tests.tiny import write_coco
from tests.tools.commands import load_command

command = load_command("review")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Labels with 10, 11 on image 1 up to 40, 41 on image 4; the tool's file lacks 10."""
    write_coco(tmp_path)
    monkeypatch.chdir(tmp_path)
    export_labels("instances.json", "label-tool", "tool.json")
    data = json.loads((tmp_path / "tool.json").read_text())
    (tmp_path / "queue.json").write_text(json.dumps(data))
    del data["annotations"][0]
    (tmp_path / "corrected.json").write_text(json.dumps(data))
    return tmp_path


def run(capsys, *options, corrected="corrected.json"):
    status = command.main(["instances.json", corrected, "--output", "merged.json", *options])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def ids(folder):
    data = json.loads((folder / "merged.json").read_text())
    return [annotation["id"] for annotation in data["annotations"]]


ALL = [10, 11, 20, 21, 30, 31, 40, 41]


@pytest.mark.parametrize(
    ("options", "kept", "total"),
    [
        (("--deletions",), ALL[1:], "7 unchanged, 0 untouched, 0 changed, 1 deleted, 0 added"),
        (("--partial",), ALL, "7 unchanged, 1 untouched, 0 changed, 0 deleted, 0 added"),
        (
            ("--queue", "queue.json", "--deletions"),
            ALL[1:],
            "7 unchanged, 0 untouched, 0 changed, 1 deleted, 0 added",
        ),
    ],
)
def test_what_absence_means(folder, capsys, options, kept, total):
    status, lines, _ = run(capsys, *options)
    assert status == 0
    assert lines[-1] == f"merged.json: 8 annotations in: {total}; {len(kept)} out"
    assert ids(folder) == kept
    diff = json.loads((folder / "merged.review.json").read_text())
    assert [change["id"] for change in diff["changes"]] == ALL


def test_absence_is_refused_by_default(folder, capsys):
    status, lines, error = run(capsys)
    assert (status, lines) == (1, [])
    assert error.startswith("error: corrected.json: lacks annotations 10. Remedy")
    assert not list(folder.glob("merged*"))


def test_lines_are_bounded(folder, capsys):
    data = json.loads((folder / "queue.json").read_text())
    for annotation in data["annotations"]:
        annotation["category_id"] = 3
    (folder / "queue.json").write_text(json.dumps(data))
    status, lines, _ = run(capsys, "--max", "1", corrected="queue.json")
    assert status == 0
    assert lines[:2] == [
        "annotation 11: class changed 'right' -> 'left'",
        "... and 3 more (merged.review.json has all)",
    ]


def test_an_output_that_exists_stays(folder, capsys):
    for name in ("merged.json", "merged.review.json"):
        (folder / name).write_text("keep")
        status, _, error = run(capsys, "--partial")
        assert (status, (folder / name).read_text()) == (1, "keep")
        assert "the output exists" in error
        (folder / name).unlink()
    for name in ("instances.json", "corrected.json"):
        before = (folder / name).read_bytes()
        assert command.main(["instances.json", "corrected.json", "--output", name]) == 1
        assert (folder / name).read_bytes() == before
    assert "replace the input" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--partial", "--deletions"),
        ("--partial", "--queue", "queue.json"),
        ("--same-iou", "0"),
        ("--same-iou", "nan"),
        ("--max", "-1"),
        ("--no-such-option",),
    ],
)
def test_wrong_usage(folder, options):
    with pytest.raises(SystemExit) as error:
        command.main(["instances.json", "corrected.json", "--output", "merged.json", *options])
    assert error.value.code == 2
    assert not list(folder.glob("merged*"))


def test_a_place_where_nothing_can_be_written(folder, capsys):
    output = "/dev/null/merged.json"
    status = command.main(["instances.json", "queue.json", "--output", output])
    assert status == 1
    assert "Remedy" in capsys.readouterr().err
