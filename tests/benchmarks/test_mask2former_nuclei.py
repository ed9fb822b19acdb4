"""The search for a setting of Mask2Former on nuclei: its split, its commands and its table."""

import json

import mask2former_nuclei as subject
import pytest
import tables

from pseudolabel.errors import DataError
from pseudolabel.files import read_json, write_json


@pytest.fixture
def output(tmp_path):
    images = [{"id": k, "file_name": f"{k}.png", "width": 8, "height": 8} for k in range(10)]
    boxes = [
        {"id": k, "image_id": k % 10, "category_id": 1, "bbox": [1, 1, 4, 4]} for k in range(30)
    ]
    whole = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "nucleus"}]}
    write_json(tmp_path / "train.json", whole)
    subject.split(tmp_path / "train.json", tmp_path / "fit.json", tmp_path / "held.json")
    return tmp_path


def test_what_is_tested_on_is_not_trained_on(output):
    fit, held = (read_json(output / f"{name}.json") for name in ("fit", "held"))
    ids = [{image["id"] for image in part["images"]} for part in (fit, held)]
    assert (len(ids[0]), len(ids[1])) == (8, 2)
    assert ids[0] | ids[1] == set(range(10))
    for part, of_part in zip((fit, held), ids):
        assert {a["image_id"] for a in part["annotations"]} == of_part
        assert len(part["annotations"]) == 3 * len(of_part)


def test_a_setting_is_its_overrides(output):
    for name, (_, options) in subject.SETTINGS.items():
        stage = subject.training(name, output, output, output / "train.json", seed=3)
        assert stage.command[-len(options) :] == options
        assert stage.command[stage.command.index("SEED") + 1] == "3"
        assert str(stage.max_iter) in options


def metrics(run, ap, dice):
    run.mkdir()
    lines = [
        {"iteration": 9, "segm/AP": 90.0},  # an evaluation on the way
        {"iteration": 19, "loss_dice": dice, "loss_dice_0": 4.5},
        {"iteration": 19, "segm/AP": ap, "segm/AP50": 2 * ap, "segm/AP75": ap / 2},
        {"iteration": 19, "segm/APl": float("nan")},  # nothing is large
    ]
    (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("aps", "verdict"),
    [
        ((0.4, 24.9), "Under-trained"),
        ((0.4, 25.0), "A retention row can be made"),
    ],
)
def test_the_table_says_whether_retention_can_be_told(aps, verdict, output):
    for name, ap in zip(subject.SETTINGS, aps):
        metrics(output / name, ap, dice=1.25)
    made = subject.result(output, list(subject.SETTINGS), seed=0)
    assert [row[2:] for row in made["rows"]] == [
        [f"{ap:.2f}", f"{2 * ap:.2f}", f"{ap / 2:.2f}", "4.50 to 1.25"] for ap in aps
    ]
    assert verdict in tables.measurement_table(made)
    assert "segm/APl" not in made["raw"]["as_is"]  # nan is no JSON


def test_a_run_that_was_not_evaluated_is_named(output):
    (output / "as_is").mkdir()
    (output / "as_is/metrics.json").write_text(json.dumps({"iteration": 5}) + "\n")
    with pytest.raises(DataError, match="holds no evaluation"):
        subject.result(output, ["as_is"], seed=0)
