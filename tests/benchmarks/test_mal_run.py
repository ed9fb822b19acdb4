"""An earlier training of MAL is used only if it is the one that the experiment would have run."""

import json

import mal_run
import pytest
import yaml

from pseudolabel.errors import DataError
from pseudolabel.files import write_json


def boxes(x=0, **extra):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [x, 0, 4, 4], "area": 16}
    return {"images": [{"id": 1}], "annotations": [annotation | extra], "categories": []}


@pytest.fixture
def world(tmp_path):
    """A config, a train JSON with a mask, and a run on the boxes of it."""
    mask = [[0, 0, 4, 0, 4, 4]]
    write_json(tmp_path / "train.json", boxes(segmentation=mask, iscrowd=0, area=8))
    write_json(tmp_path / "boxes.json", boxes(iscrowd=0))
    write_json(tmp_path / "other.json", boxes(x=1, iscrowd=0))
    write_json(tmp_path / "masks.json", boxes(segmentation=mask, iscrowd=0))
    (tmp_path / "mal.yaml").write_text("SOLVER: {MAX_ITER: 200}\nMODEL: {MAL: {CROP_SIZE: 64}}\n")
    return tmp_path


def make_run(folder, finished=True, json_file="boxes.json", **changes):
    cfg = {
        "SOLVER": {"MAX_ITER": changes.get("steps", 200), "CHECKPOINT_PERIOD": 50},
        "MODEL": {"MAL": {"CROP_SIZE": 64}, "DEVICE": "cuda", "SOME_OTHER_METHOD": {"KEY": 1}},
        "SEED": changes.get("seed", 0),
        "OUTPUT_DIR": "elsewhere",
        "DATASETS": {
            "REGISTER": [{"name": "mine", "json": json_file, "image_root": "images"}],
            "TRAIN": ["mine"],
        },
    }
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(cfg))
    if finished:
        (run / "model_final.pth").touch()
    return run


def require(world, run):
    mal_run.require_run(run, world / "mal.yaml", world / "train.json", 0, world)


def test_the_same_training_elsewhere_is_accepted(world):
    """Another place, device and checkpoint period, a relative path, keys of another method."""
    require(world, make_run(world))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finished": False}, r"model_final\.pth: is not there"),
        ({"steps": 100}, r"1 keys differ from mal\.yaml: SOLVER\.MAX_ITER is 100, not 200"),
        ({"seed": 1}, "SEED is 1, not 0"),
        ({"json_file": "other.json"}, r"saw other boxes than those of train\.json"),
        ({"json_file": "masks.json"}, "trained on a file with masks"),
        ({"json_file": "gone.json"}, "it is gone"),
    ],
)
def test_another_training_is_refused(change, message, world):
    with pytest.raises(DataError, match=message):
        require(world, make_run(world, **change))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([(19, 0.5), (39, 1.0), (40, None)], 30.0),  # an evaluation has no step time
        ([(19, 0.5), (39, 9.0), (39, 1.0)], 30.0),  # resumed: the later line counts
        ([], 0.0),
        (None, 0.0),  # no metrics at all
    ],
)
def test_seconds_of_a_run(lines, expected, tmp_path):
    if lines is not None:
        rows = [{"iteration": i} | ({"time": t} if t else {}) for i, t in lines]
        (tmp_path / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert mal_run.run_seconds(tmp_path) == expected
