"""The boxes-only copy keeps everything but what the masks tell."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "datasets" / "strip_masks.py"
DATA = {
    "info": {"year": 2026},
    "images": [{"id": 7, "file_name": "a.png", "height": 9, "width": 9, "neg_category_ids": [3]}],
    "categories": [{"id": 3, "name": "thing", "frequency": "r"}],
    "annotations": [
        {"id": 5, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3.5, 4], "area": 9, "iscrowd": 0,
         "segmentation": [[1, 2, 4, 2, 4, 6]], "note": {"by": "us"}},
        {"id": 4, "image_id": 7, "category_id": 3, "bbox": [0, 0, 2, 2], "area": 3, "iscrowd": 1,
         "segmentation": {"size": [9, 9], "counts": [81]}},
        {"id": 9, "image_id": 7, "category_id": 3, "bbox": [0, 0, 2, 0]},
    ],
}  # fmt: skip


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def write(path, data):
    path.write_text(json.dumps(data))
    return path


def test_only_masks_and_areas_change(tmp_path):
    source = write(tmp_path / "full.json", DATA)
    before = source.read_bytes()
    done = run(source, tmp_path / "deep" / "boxes.json")
    assert done.returncode == 0, done.stderr
    assert "3 boxes on 1 images; 2 masks removed" in done.stdout
    expected = copy.deepcopy(DATA)
    for record, area in zip(expected["annotations"], (14.0, 4, 0)):
        record.pop("segmentation", None)
        record["area"] = area
    stripped = json.loads((tmp_path / "deep" / "boxes.json").read_text())
    assert stripped == expected
    assert list(stripped) == list(DATA)
    assert source.read_bytes() == before
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["boxes.json"]


@pytest.mark.parametrize(
    "box",
    [
        None,
        [1, 2, 3],
        [1, 2, -3, 4],
        [1, 2, "3", 4],
        [1, 2, True, 4],
        [1, 2, 1e200, 1e200],  # an infinite area
        [1, 2, float("nan"), 4],  # Python reads and writes NaN in JSON
    ],
)
def test_annotation_without_a_usable_box(tmp_path, box):
    data = copy.deepcopy(DATA)
    data["annotations"][1]["bbox"] = box
    source, target = write(tmp_path / "full.json", data), write(tmp_path / "boxes.json", "old")
    done = run(source, target)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    for part in ("full.json", "annotation 4", "add its box or remove"):
        assert part in done.stderr
    assert json.loads(target.read_text()) == "old"  # the last good file stays


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no JSON object"),
        ('{"images": []}', "no list of annotations"),
        ('{"annotations": [3]}', "an annotation is 3"),
        ('{"annotations": [], "info": NaN}', "NaN or infinity"),
    ],
)
def test_not_an_instances_file(tmp_path, text, message):
    source = tmp_path / "full.json"
    source.write_text(text)
    done = run(source, tmp_path / "boxes.json")
    assert done.returncode == 1
    assert message in done.stderr
    assert "full.json" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "boxes.json").exists()


def test_the_input_is_never_replaced(tmp_path):
    source = write(tmp_path / "full.json", DATA)
    done = run(source, tmp_path / "deep" / ".." / "full.json")
    assert done.returncode == 1
    assert "would replace the input" in done.stderr
    assert json.loads(source.read_text()) == DATA


def test_missing_input(tmp_path):
    done = run(tmp_path / "none.json", tmp_path / "boxes.json")
    assert done.returncode == 1
    assert "none.json" in done.stderr


def test_full_disk_leaves_the_old_file(tmp_path):
    # A real limit on file size stands in for the full disk.
    source = write(tmp_path / "full.json", {**DATA, "info": "x" * 50_000})
    target = write(tmp_path / "boxes.json", "old")
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    limit += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", limit, SCRIPT, source, target],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"{target}: File too large")
    assert done.stderr.count("\n") == 1
    assert json.loads(target.read_text()) == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["boxes.json", "full.json"]
