"""Rows are read from the configs, and the table from what the runs left behind."""

import json

import ablation
import pytest
from ablation_table import ablation_record
from tables import measurement_table

from pseudolabel.errors import DataError
from pseudolabel.files import write_json

SIZES = {"small": 0.5, "medium": 0.7, "large": None}


@pytest.fixture
def configs(tmp_path):
    """An ablation "toy" of three rows: one trains, one evaluates, one sees human masks."""
    folder = tmp_path / "ablations_toy"
    folder.mkdir()
    data = tmp_path / "train.json"
    write_json(data, {"images": [], "annotations": [], "categories": []})
    sets = [{"name": n, "json": str(data), "image_root": "images"} for n in ("t", "v")]
    base = {"SOLVER": {"MAX_ITER": 100, "WARMUP_ITERS": 10}, "OUTPUT_DIR": "output/base"}
    base["DATASETS"] = {"REGISTER": sets, "TRAIN": ["t"], "TEST": ["v"]}
    write_json(tmp_path / "base.yaml", base)
    rows = {
        "crf_off": {"MODEL": {"MAL": {"CRF_WEIGHT": 0.0}}},
        "threshold": {"MODEL": {"MAL": {"TEST": {"THRESHOLDS": [0.1, 0.1, 0.1]}}}},
        "ceiling": {"MODEL": {"MAL": {"SUPERVISION": "mask"}}, "TEST": {"EVAL_PERIOD": 75}},
    }
    for name, keys in rows.items():
        own = {"_BASE_": "../base.yaml", "OUTPUT_DIR": f"output/{name}", **keys}
        write_json(folder / f"{name}.yaml", own)
    return tmp_path


@pytest.fixture
def toy(configs):
    rows = ablation.find_rows("toy", configs=configs)
    return ablation.Ablation("toy", rows, [0, 1], configs / "out", opts=["SEED", "7"])


def _finish(toy, name, seed, teacher, student=0.4, history=()):
    row = next(row for row in toy.rows if row.name == name)
    path = toy.scores(row, seed)
    path.parent.mkdir(parents=True)
    tables = {"teacher": {"mIoU": teacher, **SIZES}, "student": {"mIoU": student, **SIZES}}
    write_json(path, tables)
    lines = [json.dumps({"iteration": step, "teacher/mIoU": iou}) for step, iou in history]
    (toy.run_dir(row, seed) / "metrics.json").write_text("\n".join(lines))


def test_rows_are_what_differs_from_the_base(toy):
    rows = {row.name: row for row in toy.rows}
    assert list(rows) == ["base", "ceiling", "crf_off", "threshold"]
    assert rows["crf_off"].changes == {"MODEL.MAL.CRF_WEIGHT": 0.0}
    # When to evaluate is no difference between two models.
    assert rows["ceiling"].changes == {"MODEL.MAL.SUPERVISION": "mask"}
    assert [name for name, row in rows.items() if row.is_evaluation] == ["threshold"]
    assert [name for name, row in rows.items() if row.needs_masks] == ["ceiling"]


def test_commands(toy):
    stages = {stage.name: stage for group in toy.plan() for stage in group}
    assert len(stages) == 1 + 2 * 4
    trained = stages["crf_off_seed1"].command
    assert "--resume" in trained
    assert trained[-2:] == ["SEED", "7"], "overrides come last"
    assert str(toy.boxes) in trained[trained.index("DATASETS.REGISTER") + 1]
    # The ceiling alone is trained on the file with masks.
    ceiling = stages["ceiling_seed0"].command
    assert str(toy.boxes) not in ceiling[ceiling.index("DATASETS.REGISTER") + 1]
    # An evaluation takes the base's weights of its own seed.
    tested = stages["threshold_seed1"].command
    assert "--eval-only" in tested
    assert str(toy.output / "base_seed1/model_final.pth") in tested


def test_evaluations_wait_for_the_trainings_they_need(configs):
    rows = ablation.find_rows("toy", configs=configs)
    groups = ablation.Ablation("toy", rows, [0], configs / "out", jobs=3).plan()
    names = [[stage.name for stage in group] for group in groups]
    assert names == [
        ["strip_train"],
        ["base_seed0", "ceiling_seed0", "crf_off_seed0"],
        ["threshold_seed0"],
    ]


def test_table_pairs_by_seed(toy):
    for seed, base, row in ((0, 0.50, 0.53), (1, 0.60, 0.61)):
        _finish(toy, "base", seed, base)
        _finish(toy, "crf_off", seed, row)
    _finish(toy, "ceiling", 0, 0.70, history=[(74, 0.69), (99, 0.70)])
    result = ablation_record(toy, "ablation_toy", {})
    cells = {row[0]: row for row in result["rows"]}
    assert cells["base"][2:4] == ["0.5500 ± 0.0707", ""]
    assert cells["crf_off"][2:4] == ["0.5700 ± 0.0566", "+0.0200 ± 0.0141"]
    assert cells["ceiling"][2:4] == ["0.7000", "+0.2000"], "one seed has no deviation"
    assert cells["threshold"][2:] == ["–", "–", "–", "–", "–", "–", "0"]
    assert result["raw"]["last_quarter_gain"] == {"ceiling": {0: pytest.approx(0.01)}}
    text = measurement_table(result)
    assert "seeds 0, 1" in text
    assert "gained +0.0100" in text
    assert "crf_off.yaml" in text


def test_what_cannot_be_done_is_said(configs, toy, capsys):
    with pytest.raises(DataError, match="no finished run of the base"):
        ablation_record(toy, "ablation_toy", {})
    with pytest.raises(DataError, match="use one of: toy"):
        ablation.find_rows("other", configs=configs)
    with pytest.raises(DataError, match="no row nothing"):
        ablation.chosen(toy.rows, ["nothing"])
    same = configs / "ablations_toy/same.yaml"
    write_json(same, {"_BASE_": "../base.yaml", "OUTPUT_DIR": "output/same"})
    with pytest.raises(DataError, match="changes nothing"):
        ablation.find_rows("toy", configs=configs)
    assert ablation.main(["nowhere", "--collect-only"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_rows_of_nuclei_are_those_of_the_issue():
    names = {row.name for row in ablation.find_rows("nuclei")}
    assert names >= {"base", "crf_off", "crf_at_test", "random_init", "ceiling", "margin_1.8"}
    assert {n for n in names if n.startswith("decoder_")} == {
        f"decoder_{name}" for name in ("fully_connected", "fully_convolutional", "query")
    }
    assert {f"threshold_{t}" for t in (0.1, 0.3, 0.7)} < names
