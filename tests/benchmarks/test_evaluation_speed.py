"""The evaluation benchmark: what it compares, never how fast that is."""

import evaluation_speed
import pytest

from tests.tiny import write_coco


@pytest.fixture
def folder(tmp_path):
    """A data set laid out as the benchmark reads it; train and val hold the same four images."""
    source = write_coco(tmp_path)
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        target = tmp_path / f"annotations/instances_{part}.json"
        target.write_text(source.read_text())
    return tmp_path


def test_both_backends_are_compared_at_the_asked_size(folder, capsys):
    evaluation_speed.main(["--data", str(folder), "--images", "10", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:3]] == [
        "pycocotools / faster_coco_eval",
        "pycocotools / hotcoco",
    ]
    assert "10 images" in lines[0]
    assert len(lines) == 3 * len(evaluation_speed.OTHER_CLASS)


def test_numbers_that_differ_stop_it(folder, monkeypatch):
    class Wrong(evaluation_speed.Ours):
        def evaluate(self, results):
            return {**super().evaluate(results), "AP75": 0.0}

    monkeypatch.setattr(evaluation_speed, "Ours", Wrong)
    with pytest.raises(AssertionError, match="AP75 differs"):
        evaluation_speed.main(["--data", str(folder), "--images", "10", "--repeats", "1"])
