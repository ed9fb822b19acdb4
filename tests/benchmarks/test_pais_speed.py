"""The speed benchmark of PAIS: what both sides are given, never how fast they are."""

import pais_speed
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from pseudolabel.errors import DataError
from tests.pais.tiny_run import PYRAMID, tiny_config, write_split

# Random weights are sure of nothing.
FLOORS = [
    *("MODEL.PAIS.SCORE_FLOOR", 0.0, "MODEL.PAIS.RPN_SCORE_FLOOR", 0.0),
    *("MODEL.PAIS.ROI_SCORE_FLOOR", 0.0),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that ended where it began."""
    folder = tmp_path_factory.mktemp("start")
    files = write_split(tmp_path_factory.mktemp("data"))
    opts = [*PYRAMID, *FLOORS, "MODEL.PAIS.ENABLED", False, "SOLVER.IMS_PER_BATCH", 4]
    cfg = tiny_config(files, folder, *opts)
    torch.manual_seed(0)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    return folder


@pytest.fixture(scope="module")
def iteration(run):
    return pais_speed.Iteration(pais_speed.read_run(run), 2)


def test_turns_alternate_and_the_first_does_not_count():
    """A clock that each call moves by its own number of seconds."""
    now, calls = [0.0], []

    def work(name, seconds):
        def call(turn):
            calls.append((name, turn))
            now[0] += seconds[turn]

        return call

    first, second = work("a", [50.0, 2.0, 3.0, 8.0, 4.0]), work("b", [9.0, 2.0, 2.0, 2.0, 2.0])
    times = pais_speed.take_turns(first, second, repeats=4, clock=lambda: now[0])
    assert "".join(name for name, _ in calls) == "baabbaabba"
    assert [turn for _, turn in calls] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (times.first, times.second) == ([2, 3, 8, 4], [2, 2, 2, 2])
    # Of 1, 1.5, 2 and 4.
    assert times.quartiles == (1.375, 1.75, 2.5)


def test_both_sides_see_the_same_student_images_and_objects(iteration):
    for batch, truth in zip(iteration.batches, iteration.truths, strict=True):
        assert [sample["labelled"] for sample in batch] == [True, True, False, False]
        for sample, known in zip(batch, truth, strict=True):
            seen = sample if sample["labelled"] else sample["strong"]
            assert known["image"] is seen["image"]
            assert known["labelled"]
            assert known["instances"].image_size == tuple(seen["image"].shape[1:])
    assert iteration.objects["images unlabelled"] == 2
    assert iteration.objects["objects unlabelled"] > 0
    # Two discs in each image.
    assert iteration.objects["objects labelled"] == pytest.approx(2)


def test_turns_leave_the_networks_as_they_were(iteration):
    """Or later turns would have other pseudo-labels than the ground truth of the other side."""
    # A state_dict before the first step has no teacher.
    before = {name: value.clone() for name, value in iteration.model.named_parameters()}
    assert any(name.startswith("teacher.") for name in before)
    with EventStorage():
        for side in pais_speed.SIDES:
            iteration.side(side, 3)
    # The turn of PAIS alone updates the teacher.
    assert int(iteration.model.steps) == 1
    for name, value in iteration.model.named_parameters():
        assert torch.equal(value, before[name]), name
    gradients = [p.grad for p in iteration.model.parameters() if p.requires_grad]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_loading_is_measured_on_labelled_files(run):
    times = pais_speed.loading_times(pais_speed.read_run(run), batches=2, repeats=2)
    assert len(times.first) == len(times.second) == 2
    assert min(times.first + times.second) > 0


@pytest.mark.parametrize(
    ("name", "replaced", "problem"),
    [
        ("model_final.pth", None, "does not exist"),
        ("config.yaml", None, "does not exist"),
        ("config.yaml", ("SemiSupervisedRCNN", "GeneralizedRCNN"), "is a run of GeneralizedRCNN"),
    ],
)
def test_other_folders_are_refused(run, tmp_path, name, replaced, problem):
    for path in (run / "config.yaml", run / "model_final.pth"):
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
        elif replaced:
            (tmp_path / path.name).write_text(path.read_text().replace(*replaced))
    with pytest.raises(DataError, match=problem):
        pais_speed.read_run(tmp_path)


def test_rows_of_the_table():
    found = {
        "run": "output/start",
        "objects": {
            "images labelled": 1.5,
            "images unlabelled": 2.5,
            "objects labelled": 9.0,
            "objects unlabelled": 17.5,
        },
        "step": {"first": [2.0, 2.0, 2.0], "second": [2.0, 1.6, 2.5]},
        "loading": {"first": [0.03] * 3, "second": [0.06] * 3},
        "peak_mb": {"PAIS": (500.0, 1100.0), "apart": (480.0, 1000.0)},
    }
    record = pais_speed.to_record([found], repeats=3)
    assert record["rows"] == [
        ["CPU ms of an iteration", "1.5 + 2.5", "2000", "2000", "1.000", "0.900 to 1.125"],
        ["peak MB", "1.5 + 2.5", "1100", "1000", "1.100", "–"],
        ["CPU ms to load a batch", "1.5 + 2.5", "30", "60", "0.500", "0.500 to 0.500"],
    ]
    assert len(record["header"]) == len(record["rows"][0])
    assert "output/start; pseudo-labels per image: 17.5" in record["text"]
    assert record["raw"]["runs"] == [found]
