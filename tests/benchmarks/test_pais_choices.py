"""The choices of PAIS: other images than the comparison's val, else the same experiment."""

import json

import pytest
from pais_arms import ARMS, START
from pais_choices import SHARES, Choices, choices_record, parse_args
from pais_nuclei import Experiment
from tables import measurement_table

from pseudolabel.files import write_json
from tests.benchmarks.test_pais_nuclei import OPTS, coco, expected_ap, finish, value

TRAIN = 56 + 14


@pytest.fixture
def job(tmp_path):
    """70 images with 110 nuclei each, as many images as there are of the real ones."""
    write_json(tmp_path / "data/annotations/instances_train.json", coco([110] * TRAIN))
    arms = [ARMS[name] for name in ("pais", "hard")]
    return Choices(tmp_path / "data", tmp_path / "out", arms=arms, opts=OPTS)


def ids(path):
    return {image["id"] for image in json.loads(path.read_text())["images"]}


def test_no_image_is_trained_and_evaluated_on(job):
    job.hold_out()
    assert len(ids(job.train)) == 56
    assert not ids(job.train) & ids(job.val)
    assert ids(job.train) | ids(job.val) == set(range(1, TRAIN + 1))


@pytest.mark.parametrize(("percent", "labelled"), [(5, 3), (10, 7)])  # of 70: 3.5 and 7
def test_as_many_images_are_labelled_as_in_the_comparison(job, percent, labelled):
    assert int(float(SHARES[percent]) / 100 * 56) == int(percent / 100 * TRAIN) == labelled


def test_a_run_is_that_of_the_comparison_on_other_data(job, tmp_path):
    theirs = Experiment(job.data, job.output, (5,), (0,), job.arms, opts=OPTS)
    for ours, other in zip(job.all_runs(), theirs.all_runs(), strict=True):
        assert ours == other
        assert job.config(ours) == theirs.config(other)
        sets = {"TRAIN": "fit.1@6-stratified.json", "TEST": "held.json"}
        assert {key: job.data_sets(ours)[key].name for key in sets} == sets
        assert "instances_val" not in " ".join(job.command(ours))
        assert value(job.command(ours), "SEED") == "0"


def test_the_first_stage_splits_what_is_not_held_out(job):
    job.hold_out()
    (splits, *_), *_ = job.plan()
    assert splits.command[1] == str(job.train)
    assert value(splits.command, "--percent") == "6"
    assert splits.outputs == list(job.split(5, 0))


def test_the_table_says_what_it_is(job):
    job.hold_out()
    # One image, of which 110 nuclei make the toy's numbers.
    write_json(job.val, coco([110]))
    for run in job.all_runs():
        way = [] if run.arm.name == START else [(25, 10.0), (50, 20.0)]
        finish(job, run, 60, 58, way)
    result = choices_record(job)
    page = measurement_table(result)
    assert "val is not read" in page
    assert "20% of the training images" in page
    assert f"| 5 % | hard | teacher | {expected_ap(60, 100):.1f} " in page


def test_by_default_all_arms_that_are_trained():
    assert set(parse_args([]).arms) == {name for name, arm in ARMS.items() if not arm.evaluates}
