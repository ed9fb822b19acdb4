"""Results are gathered from what the stages leave, and tables from the recorded results alone."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import results
import tables

from pseudolabel.errors import DataError
from pseudolabel.files import write_json
from pseudolabel.masks import encode_rle

ROOT = Path(__file__).resolve().parents[2]
LABELERS = ("filled_box", "mal")
ARMS = ("mal", "human")


def _coco(cells):
    """One 40x40 image with an 8x8 instance for each mask size in `cells`, plus a crowd."""
    annotations = []
    for key, side in enumerate(cells, start=1):
        mask = np.zeros((40, 40), dtype=bool)
        mask[:8, 10 * key : 10 * key + side] = True
        box = [10 * key, 0, 8, 8]
        annotations.append(
            {"id": key, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0}
            | {"segmentation": encode_rle(mask), "area": int(mask.sum())}
        )
    annotations.append({**annotations[0], "id": 99, "iscrowd": 1})
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 40}]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}


@pytest.fixture
def experiment(tmp_path):
    """Two instances: MAL's masks are right on both, the box's on one and half on the other."""
    for split in ("train", "val"):
        write_json(tmp_path / f"{split}.json", _coco([8, 4]))
    write_json(tmp_path / "labels_mal_val.json", _coco([8, 4]))
    write_json(tmp_path / "labels_mal_val.manifest.json", {"labeler": {"network": "student"}})
    write_json(tmp_path / "labels_filled_box_val.json", _coco([8, 8]))
    write_json(tmp_path / "mal/inference/demo_val/mask_iou.json", {"teacher": {"mIoU": 0.5}})
    for arm, ap in (("mal", 30.0), ("human", 40.0)):
        _metrics(tmp_path / f"rcnn_{arm}", [(149, ap - 1.5), (199, ap)])
    for name in ("mal", "rcnn"):
        (tmp_path / f"{name}.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 200}\n")
    (tmp_path / "base.yaml").write_text("SEED: 1\n")
    return SimpleNamespace(
        name="toy",
        seed=3,
        output=tmp_path,
        splits={s: (tmp_path / f"{s}.json", tmp_path) for s in ("train", "val")},
        labels=lambda labeler, split: tmp_path / f"labels_{labeler}_{split}.json",
        mal_config=tmp_path / "mal.yaml",
        rcnn_config=tmp_path / "rcnn.yaml",
        mal_run=tmp_path / "mal",
    )


def _metrics(run_dir, evaluations):
    run_dir.mkdir(exist_ok=True)
    lines = [{"iteration": 19, "total_loss": 2.0}]
    for step, ap in evaluations:
        numbers = {"segm/AP": ap, "segm/AP50": 60.0, "segm/AP75": 20.0, "segm/APl": float("nan")}
        lines.append({"iteration": step, **numbers, "bbox/AP": 38.0})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "metrics.json").write_text(text)


@pytest.fixture
def result(experiment):
    return results.collect(experiment, {"train_mal": 61.2, "strip": 0.4}, LABELERS, ARMS)


def test_collect(result):
    assert result["labels"]["filled_box"]["mIoU"] == pytest.approx(0.75)
    assert result["labels"]["mal"]["mIoU"] == 1.0
    assert result["labels"]["mal"]["large"] is None  # NaN is no JSON
    assert result["labels"]["mal"]["n"] == 2  # without the crowd
    assert result["arms"]["human"]["segm/AP"] == 40.0
    assert result["arms"]["human"]["segm/APl"] is None
    assert result["arms"]["human"]["history"] == [[149, 38.5], [199, 40.0]]
    assert result["retention"]["percent"] == pytest.approx(75.0)
    assert result["retention"]["last_quarter_gain"] == pytest.approx(1.5)
    assert result["mal_evaluation"] == {"teacher": {"mIoU": 0.5}}
    assert result["data"]["val"] | {"sha256": ""} == {
        **{"file": "val.json", "sha256": "", "images": 1, "instances": 2, "crowds": 1},
        "categories": 1,
    }
    assert result["versions"]["torch"]
    assert result["hardware"]["cores"] >= 1
    assert set(result["hardware"]) == {"cpu", "cores", "memory_gib", "gpu"}  # no host name


def test_nothing_of_this_machine_is_recorded(result, experiment):
    """No absolute path, wherever the checkout and the data lie."""
    text = json.dumps(result)
    assert str(experiment.output) not in text
    assert str(ROOT) not in text


def test_config_hash_sees_bases_and_no_comments(experiment):
    def digest():
        return results.config_facts(experiment.mal_config)["sha256"]

    first = digest()
    experiment.mal_config.write_text("# why\n" + experiment.mal_config.read_text())
    assert digest() == first
    (experiment.output / "base.yaml").write_text("SEED: 2\n")
    assert digest() != first


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ([], "no evaluation of masks"),
        (None, "no readable metrics"),  # the run left no file
    ],
)
def test_a_run_without_evaluation_is_an_error(experiment, evaluations, message):
    if evaluations is None:
        (experiment.output / "rcnn_mal/metrics.json").unlink()
    else:
        _metrics(experiment.output / "rcnn_mal", evaluations)
    with pytest.raises(DataError, match=message):
        results.collect(experiment, {}, LABELERS, ARMS)


def _run(*aps):
    steps = [100 * (i + 1) - 1 for i in range(len(aps))]
    return {"segm/AP": aps[-1], "history": [list(pair) for pair in zip(steps, aps)]}


@pytest.mark.parametrize(
    ("mal", "human", "percent", "note", "gain"),
    [
        (_run(20.0), _run(25.0), 80.0, None, None),  # the bar itself counts; one evaluation only
        (_run(20.0), _run(24.9), None, "under-trained", None),
        (_run(20.0), None, None, "not measured", None),
        (_run(None), _run(30.0), None, "not measured", None),
        (_run(50.0), _run(40.0), 125.0, None, None),  # above 100 % is possible and shown
        # 4 evaluations: the one at exactly 3/4 is the reference.
        (_run(20.0), _run(10.0, 20.0, 30.0, 40.0), 50.0, None, 10.0),
        # 3 evaluations: the one at 2/3.
        (_run(20.0), _run(10.0, 25.0, 40.0), 50.0, None, 15.0),
    ],
)
def test_retention(mal, human, percent, note, gain):
    found = results.retention(mal, human)
    assert found == {"percent": percent, "note": note, "last_quarter_gain": gain}


def test_table_from_the_recorded_file(result, tmp_path):
    folder = tmp_path / "docs"
    path = results.record(result, folder)
    assert path == folder / "toy.json"
    assert json.loads(path.read_text()) == result
    text = tables.results_page(folder)
    assert text.startswith("<!-- Generated by `python benchmarks/tables.py`")
    assert "| labels | mIoU (n=2) | S < 32² (n=2) | M < 96² (n=0) | L ≥ 96² (n=0) |" in text
    assert "| filled box | 0.750 | 0.750 | – | – |" in text
    assert "| MAL (student) | 1.000 | 1.000 | – | – |" in text
    assert "MAL clears every yardstick" in text
    assert "| human masks | 40.0 | 60.0 | 20.0 | 38.0 | 100 % |" in text
    assert "| MAL labels | 30.0 | 60.0 | 20.0 | 38.0 | 75.0 % |" in text
    assert "gained +1.5 AP" in text
    assert "one seed (3)" in text
    assert "train_mal 61 s" in text
    assert "strip" not in text


def test_table_of_weak_results(result):
    """Under-trained, without history, MAL worse than a yardstick, a metric missing."""
    human = {"iteration": 9, "segm/AP": 12.0, "history": [[9, 12.0]]}
    result["arms"] = {"mal": {**human, "segm/AP": None}, "human": human}
    result["retention"] = results.retention({**human, "segm/AP": 11.0}, human)
    result["labels"]["mal"]["small"] = 0.7
    text = tables.experiment_table(result)
    assert "| MAL labels | – | – | – | – | under-trained |" in text
    assert "Under-trained: below 25 AP" in text
    assert "was not measured" in text
    assert "does not clear every yardstick (small: filled box 0.750, MAL 0.700)" in text
    assert not re.search(r"\bnan\b|None", text)


def test_yardsticks_alone(result):
    result["arms"], result["retention"] = {}, results.retention(None, None)
    del result["labels"]["mal"]
    text = tables.experiment_table(result)
    assert "filled box" in text
    assert "Mask R-CNN" not in text


def test_label_quality_without_detectors(experiment):
    """The plan of coco_dev: no runs of Mask R-CNN, and no config of one."""
    result = results.collect(experiment, {}, LABELERS, ())
    assert result["configs"].keys() == {"mal"}
    text = tables.experiment_table(result)
    assert "MAL clears every yardstick" in text
    assert "Mask R-CNN" not in text


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, None),
        ({"seconds": {"a": 10.0}}, "- about 1 minute\n"),
        ({"seconds": {"a": 100.0, "b": 90.0}}, "- about 3 minutes\n"),
        ({"note": "It holds."}, "| 1 |\n\nIt holds.\n\n- `python"),
    ],
)
def test_what_a_measurement_may_add(extra, expected):
    made = results.measurement("m", "What it is.", ["a", "b"], [["x", "1"]], {})
    text = tables.measurement_table(made | extra)
    assert (expected is None) or expected in text
    assert ("minute" in text) == ("seconds" in extra)


def test_unknown_kinds_are_refused(tmp_path):
    write_json(tmp_path / "x.json", {"kind": "other"})
    with pytest.raises(DataError, match=r"x.json: unknown kind 'other'"):
        tables.results_page(tmp_path)


def test_page_without_results(tmp_path):
    assert "No result has been recorded yet" in tables.results_page(tmp_path)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (str(ROOT / "benchmarks/x.py"), "benchmarks/x.py"),
        ("benchmarks/x.py", "benchmarks/x.py"),
        ("/data/sets/dsb/a.json", "$MASKSMITH_DATA/dsb/a.json"),
        ("--data=/data/sets/dsb", "--data=$MASKSMITH_DATA/dsb"),
        ("/home/someone/pictures", "pictures"),
        ("--name", "--name"),
    ],
)
def test_commands_name_no_folder_of_this_machine(monkeypatch, argument, expected):
    monkeypatch.setenv("MASKSMITH_DATA", "/data/sets")
    assert results.portable_path(argument) == expected


def test_the_committed_page_is_up_to_date():
    if not results.RESULTS.is_dir():
        assert not tables.PAGE.exists(), "docs/results.md stands without docs/results/*.json"
        return
    assert tables.PAGE.read_text(encoding="utf-8") == tables.results_page(), (
        "run python benchmarks/tables.py"
    )
    for path in tables.TEXTS:
        text = path.read_text(encoding="utf-8")
        assert text == tables.filled(text), f"{path.name}: run python benchmarks/tables.py"
