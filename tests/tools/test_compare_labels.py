"""tools/compare_labels.py: what it prints and writes, and its one clear error."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pseudolabel.masks import encode_rle
from tests.tools.commands import ROOT, load_command


def write(path, widths, scores=None):
    """One image; per instance a square of 10 px, its mask as many columns wide."""
    annotations = []
    for key, width in enumerate(widths, start=1):
        mask = np.zeros((20, 50), dtype=bool)
        mask[:10, 10 * key : 10 * key + width] = True
        row = {"id": key, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 10 * width}
        row |= {"bbox": [10 * key, 0, width, 10], "segmentation": encode_rle(mask)}
        row |= {"score": scores[key - 1], "quality": width / 10} if scores else {}
        annotations.append(row)
    images = [{"id": 1, "file_name": "a.png", "height": 20, "width": 50}]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    path.write_text(json.dumps(data))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three instances; masks of IoU 1, .8 and .3, the worst with the highest score."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "truth.json", [10, 10, 10])
    write(tmp_path / "labels.json", [10, 8, 3], [0.6, 0.45, 0.95])
    return ["labels.json", "truth.json"]


def run(*arguments):
    return load_command("compare_labels").main([*arguments])


def test_it_prints_and_writes(files, tmp_path, capsys):
    status = run(*files, "--floors", "0.5", "0.9", "--output", "c.json", "--plot", "c.png")
    printed = capsys.readouterr()
    assert status == 0, printed.err
    lines = [line.split() for line in printed.out.splitlines()]
    # floor, kept, per image, right, precision, recall, mean IoU; the correlation needs two.
    assert ["0.50", "2", "2.00", "1", "0.500", "0.333", "1.000", "1.000"] in lines
    assert ["0.90", "1", "1.00", "0", "0.000", "0.000", "-", "-"] in lines
    assert "quality with true mask IoU of all, best overlap (n=3): rank correlation 1.000" in (
        printed.out
    )
    written = json.loads((tmp_path / "c.json").read_text())
    assert [row["matched"] for row in written["floors"]] == [1, 0]
    assert written["score"]["best"]["spearman"] == pytest.approx(-0.5)
    with Image.open(tmp_path / "c.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    # Something is drawn in both halves.
    assert min(half.std() for half in np.array_split(pixels, 2, axis=1)) > 5


def test_a_threshold_decides_what_is_right(files, capsys):
    assert run(*files, "--iou", "0.25", "--floors", "0.4") == 0
    assert ["0.40", "3", "3.00", "3", "1.000", "1.000", "0.700", "1.000"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_labels_without_quality(files, tmp_path, capsys):
    data = json.loads((tmp_path / "labels.json").read_text())
    for annotation in data["annotations"]:
        del annotation["quality"]
    (tmp_path / "labels.json").write_text(json.dumps(data))
    assert run(*files, "--plot", "c.png") == 0
    assert "quality: no label states it" in capsys.readouterr().out


# Options, and what the one line says.
BAD = [
    (["--iou", "0"], "error: --iou: is 0"),
    (["--output", "labels.json"], "error: labels.json: the output would replace the input"),
    (["--plot", "truth.json"], "error: truth.json: the output would replace the input"),
    (["--plot", "file/c.png"], "error: file"),  # a file where a folder is needed
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_one_clear_error(files, tmp_path, options, message, capsys):
    (tmp_path / "file").write_text("")
    before = (tmp_path / "labels.json").read_bytes()
    assert run(*files, *options) == 1
    assert capsys.readouterr().err.startswith(message)
    assert (tmp_path / "labels.json").read_bytes() == before


def test_labels_of_given_boxes_are_refused(files, tmp_path):
    """As a process: no score, and no traceback."""
    write(tmp_path / "labels.json", [10, 10, 10])
    command = [sys.executable, str(ROOT / "tools/compare_labels.py"), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "labels.json (annotation 1): its score is None" in done.stderr
    assert "Traceback" not in done.stderr
