"""tools/evaluate.py, run as a command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pseudolabel.masks import encode_rle
from tests.tools.commands import load_command

ROOT = Path(__file__).resolve().parents[2]


def _write(path, sides):
    """Instances of 10x10 boxes whose mask is `side` columns wide; None leaves the instance out."""
    annotations = []
    for key, side in enumerate(sides, start=1):
        mask = np.zeros((20, 50), dtype=np.uint8)
        mask[:10, 10 * key : 10 * key + (side or 0)] = 1
        if side is not None:
            annotations.append(
                {"id": key, "image_id": 1, "category_id": 1, "bbox": [10 * key, 0, 10, 10]}
                | {"segmentation": encode_rle(mask), "area": int(mask.sum()), "iscrowd": 0}
            )
    images = [{"id": 1, "file_name": "a.png", "height": 20, "width": 50}]
    categories = [{"id": 1, "name": "x"}]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )


def _run(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/evaluate.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_scores(tmp_path):
    _write(tmp_path / "truth.json", [10, 10])
    _write(tmp_path / "labels.json", [10, 5])
    done = _run(tmp_path, "labels.json", "truth.json", "--output", "iou.json")
    assert done.returncode == 0, done.stderr
    assert "mIoU 0.7500 over 2 instances" in done.stdout
    assert "large boxes - over 0" in done.stdout
    scores = json.loads((tmp_path / "iou.json").read_text())
    assert scores["small"] == pytest.approx(0.75)
    assert scores["large"] is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([10, None], "1 instances of truth.json have no label, first id 2"),
        ([10, 10, 10], "annotation 3"),  # not in the truth
        (None, "the file does not exist"),
    ],
)
def test_one_clear_error(tmp_path, labels, message):
    _write(tmp_path / "truth.json", [10, 10])
    if labels is not None:
        _write(tmp_path / "labels.json", labels)
    done = _run(tmp_path, "labels.json", "truth.json", "--output", "iou.json")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "iou.json").exists()


def _spoil(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# The file, what is wrong with it, and what the one line says.
MALFORMED = [
    ("labels.json", lambda d: d.pop("annotations"), "labels.json: has no list 'annotations'"),
    ("truth.json", lambda d: d.pop("annotations"), "truth.json: has no list 'annotations'"),
    ("truth.json", lambda d: d.pop("images"), "truth.json: has no list 'images'"),
    (
        "labels.json",
        lambda d: d["annotations"][1].pop("segmentation"),
        "labels.json (annotation 2)",
    ),
    ("labels.json", lambda d: d["annotations"][1].update(segmentation={}), "labels.json (annot"),
]


@pytest.mark.parametrize(("name", "change", "said"), MALFORMED)
def test_malformed_files(tmp_path, name, change, said, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for each in ("truth.json", "labels.json"):
        _write(tmp_path / each, [10, 10])
    _spoil(tmp_path / name, change)
    assert load_command("evaluate").main(["labels.json", "truth.json"]) == 1
    assert said in capsys.readouterr().err


# What must not be written, be it an input or a place without rights.
@pytest.mark.parametrize(
    "output", ["labels.json", "truth.json", "labels.manifest.json", "locked/x"]
)
def test_outputs_that_are_refused(tmp_path, output, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for each in ("truth.json", "labels.json"):
        _write(tmp_path / each, [10, 10])
    (tmp_path / "locked").write_text("a file where a folder is needed")
    before = (tmp_path / "labels.json").read_bytes()
    assert load_command("evaluate").main(["labels.json", "truth.json", "--output", output]) == 1
    assert capsys.readouterr().err.startswith(f"error: {output.split('/')[0]}")
    assert (tmp_path / "labels.json").read_bytes() == before
