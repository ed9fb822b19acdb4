"""Statistics, queue and curves of the report, against naive twins."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudolabel.report.label_file import LabelFile, true_ious
from pseudolabel.report.queue import FILLED, choose, suspicion, write_queue
from pseudolabel.report.statistics import (
    GOOD_IOU,
    THRESHOLDS,
    quality_sweep,
    rank_correlation,
    reliability,
)
from pseudolabel.report.training import _thin, read_run, smoothed, training_section
from pseudolabel.validation import check_labels
from tests.pseudolabel.report_files import (
    edit_json,
    naive_rank_correlation,
    problem_of,
    write_labels,
)

UNIT = st.floats(0, 1).map(lambda value: round(value, 3))
PAIRS = st.lists(st.tuples(UNIT, UNIT), min_size=2, max_size=40)


@settings(deadline=None)
@given(PAIRS)
def test_rank_correlation(pairs):
    a, b = np.array(pairs).T
    found = rank_correlation(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(naive_rank_correlation(a, b), abs=1e-9)


@settings(deadline=None)
@given(PAIRS)
def test_reliability(pairs):
    quality, ious = np.array(pairs).T
    found = reliability(quality, ious, quality)
    groups = {}
    for q, iou in pairs:
        groups.setdefault(min(9, int(q * 10)), []).append((q, iou))
    error = sum(
        abs(sum(q for q, _ in group) - sum(i for _, i in group)) for group in groups.values()
    )
    assert found.error == pytest.approx(error / len(pairs), abs=1e-9)
    assert [n for n, _, _ in found.bins] == [len(groups[key]) for key in sorted(groups)]
    assert found.excess == pytest.approx(sum(q - i for q, i in pairs) / len(pairs), abs=1e-9)


@settings(deadline=None)
@given(PAIRS)
def test_sweep(pairs):
    rows, best = quality_sweep(*np.array(pairs).T)
    scores = []
    for row, threshold in zip(rows, THRESHOLDS, strict=True):
        kept = [iou for q, iou in pairs if q >= threshold]
        good = sum(iou >= GOOD_IOU for _, iou in pairs)
        hits = sum(iou >= GOOD_IOU for iou in kept)
        scores.append(2 * hits / (len(kept) + good) if kept or good else 0)
        assert row.kept == len(kept)
        assert row.share == pytest.approx(len(kept) / len(pairs))
        assert row.agreement == pytest.approx(scores[-1])
        if kept:
            assert row.iou == pytest.approx(sum(kept) / len(kept))
    assert best == scores.index(max(scores))


class FakeLabels:
    """What `choose` reads."""

    def __init__(self, classes, images):
        self.ids = np.arange(100, 100 + len(classes))
        self.categories, self.image_ids = np.array(classes), np.array(images)


ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.sampled_from((0.1, 0.3, 0.5, 0.9, np.nan))),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(ROWS, st.integers(0, 35))
def test_choose_takes_the_best_of_those_left(rows, number):
    classes, images, values = zip(*rows)
    chosen = choose(FakeLabels(classes, images), np.array(values), number)
    left = {row for row, value in enumerate(values) if value == value}
    assert len(chosen) == len(set(chosen)) == min(number, len(left))
    for place, row in enumerate(chosen):
        taken = chosen[:place]
        worth = {
            other: values[other]
            * 0.5 ** sum(images[other] == images[t] for t in taken)
            * 0.8 ** sum(classes[other] == classes[t] for t in taken)
            for other in left
        }
        # Equal but for rounding is equal.
        assert worth[row] == pytest.approx(max(worth.values()))
        left.remove(row)


@pytest.fixture
def folder(tmp_path):
    write_labels(tmp_path)
    return tmp_path


# What a record states; its suspicion; the reason.
SUSPICIONS = [
    ({"quality": 0.8}, 0.2, "low quality"),
    ({"quality": 0.8, "agreement": 0.3}, 0.7, "student and teacher disagree"),
    ({"quality": 0.8, "mask_source": "filled_empty"}, 1.0, "filled_empty"),
    ({"quality": 0.8, "mask_source": "filled_tiny"}, 0.5, "filled_tiny"),
    ({"quality": 0.1, "mask_source": "filled_tiny"}, 0.9, "low quality"),
    ({}, 0.5, "no quality stated"),
]


@pytest.mark.parametrize(("keys", "value", "reason"), SUSPICIONS)
def test_suspicion(folder, keys, value, reason):
    def change(data):
        first = data["annotations"][0]
        del first["quality"]
        first.update(keys)

    edit_json(folder / "labels.json", change)
    values, reasons = suspicion(LabelFile(folder / "labels.json"))
    assert values[0] == pytest.approx(value)
    assert reasons[0] == reason
    assert np.isnan(values[-1])  # the crowd


def test_queue_is_traceable_and_sound(folder):
    labels = LabelFile(folder / "labels.json")
    rows = write_queue(labels, 3, folder / "queue.json")
    queue = json.loads((folder / "queue.json").read_text())
    assert check_labels(queue) == []
    originals = {a["id"]: a for a in labels.annotations}
    for annotation in queue["annotations"]:
        rank, _ = annotation.pop("queue_rank"), annotation.pop("queue_reason")
        assert annotation == originals[annotation["id"]]
        assert labels.ids[rows[rank - 1]] == annotation["id"]
    assert {i["id"] for i in queue["images"]} == {a["image_id"] for a in queue["annotations"]}
    assert queue["categories"] == labels.data["categories"]
    with open(folder / "queue.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["id"]) for row in table] == labels.ids[rows].tolist()
    assert [row["rank"] for row in table] == ["1", "2", "3"]


def test_queue_spreads_over_images(folder):
    # 10 and 11 are the worst, but share image 1: halved, 11 comes after 20 and 30.
    rows = write_queue(LabelFile(folder / "labels.json"), 3, folder / "queue.json")
    assert LabelFile(folder / "labels.json").ids[rows].tolist()[0] == 10
    queue = json.loads((folder / "queue.json").read_text())
    assert len({a["image_id"] for a in queue["annotations"]}) == 3


def test_queue_asks_for_more_than_there_is(folder):
    rows = write_queue(LabelFile(folder / "labels.json"), 99, folder / "queue.json")
    assert len(rows) == 6


def test_queue_holds_no_spreadsheet_formula(folder):
    edit_json(folder / "labels.json", lambda d: d["categories"][0].update(name="=1+1"))
    write_queue(LabelFile(folder / "labels.json"), 6, folder / "queue.csv.json")
    table = list(csv.reader((folder / "queue.csv.csv").open(newline="")))
    cells = [cell for row in table for cell in row]
    assert "'=1+1" in cells
    assert not any(cell.startswith("=") for cell in cells)


def test_filled_sources_are_those_of_the_label_file():
    assert set(FILLED) == {"filled_empty", "filled_tiny"}


def test_true_ious(folder):
    labels = LabelFile(folder / "labels.json")
    same, truth = true_ious(labels, folder / "human.json")
    assert np.isnan(same[labels.crowd]).all()
    # An inscribed ellipse on a disc: the digital disc itself, or nearly.
    assert (same[~labels.crowd] > 0.85).all()
    assert truth.annotations.keys() >= set(labels.ids.tolist())


def run_of(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    return read_run(tmp_path / "metrics.json")


def test_a_resumed_run_counts_once(tmp_path):
    rows = [(1, 5.0), (2, 4.0), (3, 3.0), (2, 8.0), (3, 7.0)]
    run = run_of(tmp_path, "".join(f'{{"iteration": {i}, "loss": {v}}}\n' for i, v in rows))
    assert run.curves == {"loss": [(1, 5.0), (2, 8.0), (3, 7.0)]}


def test_values_that_are_not_finite_and_a_cut_line(tmp_path):
    run = run_of(tmp_path, '{"iteration": 1, "loss": NaN, "b": 2, "c": true}\n{"iterat')
    assert (run.curves, run.skipped, run.cut) == ({"b": [(1, 2.0)]}, 1, True)


def test_values_that_no_axis_can_hold(tmp_path):
    rows = '{"iteration": 1, "loss": 1e308}\n{"iteration": 2, "loss": -1e308, "b": 1}\n'
    run = run_of(tmp_path, rows)
    assert (run.curves, run.skipped) == ({"b": [(2, 1.0)]}, 2)
    training_section([tmp_path / "metrics.json"])


def test_a_lone_broken_line_is_no_run(tmp_path):
    assert "line 1" in problem_of(lambda: run_of(tmp_path, '{"iterat'))


def test_smoothing_follows_its_recursion():
    values = np.random.default_rng(0).random(200)
    found = [value for _, value in smoothed(list(enumerate(values)))]
    mean = values[0]
    for number, value in enumerate(values, 1):
        weight = max(0.1, 1 / number)
        mean = (1 - weight) * mean + weight * value
        assert found[number - 1] == pytest.approx(mean)
    short = [(1, 3.0), (2, 9.0)]
    assert smoothed(short) == short


@settings(deadline=None)
@given(st.integers(1, 5000))
def test_thinned_curves_keep_their_ends(length):
    points = [(i, i) for i in range(length)]
    thin = _thin(points)
    assert len(thin) <= 302
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    assert thin == sorted(set(thin))
