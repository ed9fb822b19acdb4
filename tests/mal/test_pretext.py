"""The self-supervised warm-up: exercises are what they claim, weights survive the round trip."""

import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mal.crops import BORDERS
from mal.encoder_weights import load_encoder_weights
from mal.labeler import load_config
from mal.mask_auto_labeler import MaskAutoLabeler
from mal.network import build_network
from mal.pasted_blobs import MIN_PIXELS, make_exercise, random_blob
from mal.pretext import ExerciseMapper, MaskPretrainer
from pseudolabel.errors import DataError
from pseudolabel.trainer import Trainer
from tests.tiny import tiny_config, write_coco

ROOT = Path(__file__).parent.parent.parent


def images(count, height=60, width=80):
    return [
        np.random.default_rng(i).integers(0, 255, (height, width, 3), np.uint8)
        for i in range(count)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_exercise_box_is_tight_and_the_mask_is_where_the_image_changed(seed):
    base = np.full((60, 80, 3), 127, np.uint8)
    bright = [np.full((50, 50, 3), 255, np.uint8)]
    image, mask, box = make_exercise(np.random.default_rng(seed), base, bright)
    assert image.shape == base.shape
    assert mask.sum() >= MIN_PIXELS
    rows, columns = np.nonzero(mask)
    assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    changed = np.abs(image.astype(int) - 127).max(-1) > 20
    assert changed[mask].mean() > 0.95


def test_same_seed_same_exercise():
    base, *sources = images(3)
    first, second = (make_exercise(np.random.default_rng(4), base, sources) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)


def test_blobs_differ_and_leave_background():
    rng = np.random.default_rng(0)
    shares = [random_blob(rng, 40).mean() for _ in range(60)]
    assert np.std(shares) > 0.05
    assert 0.05 < np.mean(shares) < 0.7


def test_mapper_can_be_sent_to_a_spawned_loader_process(tmp_path):
    write_coco(tmp_path)
    names = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    mapper = ExerciseMapper(file_names=names, crop_size=32, margin=1.2, gated=True, cache=2)
    record = {"file_name": names[0]}
    np.random.seed(3)
    expected = mapper(record)
    copy = pickle.loads(pickle.dumps(mapper))
    np.random.seed(3)
    assert torch.equal(copy(record)["student_view"], expected["student_view"])


@pytest.mark.parametrize(
    ("option", "value", "needed"), [("CROPS_PER_IMAGE", 4, 1), ("DECODER.NUM_CLASSES", 2, 0)]
)
def test_keys_that_an_exercise_cannot_obey_are_refused(option, value, needed, tmp_path):
    opts = [f"MODEL.MAL.{option}", value]
    cfg = tiny_config("mal/sample_pretext", write_coco(tmp_path), tmp_path / "out", opts)
    message = rf"MODEL\.MAL\.{option}: is {value}, .* Remedy: set it to {needed}"
    with pytest.raises(DataError, match=message):
        MaskPretrainer(cfg)


def test_the_border_of_the_config_is_that_of_the_exercises(tmp_path):
    json_file = write_coco(tmp_path)
    names = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    views = {}
    for border in BORDERS:
        opts = ["MODEL.MAL.BORDER", border, "MODEL.MAL.MARGIN", 4.0]
        cfg = tiny_config("mal/sample_pretext", json_file, tmp_path / border, opts)
        mapper = ExerciseMapper(cfg, names)
        np.random.seed(5)
        views[border] = [mapper({"file_name": name})["student_view"] for name in names]
    for first, second in itertools.combinations(BORDERS, 2):
        assert any(not torch.equal(*pair) for pair in zip(views[first], views[second]))


def test_image_too_small_for_any_blob_is_an_error():
    tiny = np.zeros((5, 5, 3), np.uint8)
    with pytest.raises(RuntimeError, match="no visible blob"):
        make_exercise(np.random.default_rng(0), tiny, [tiny])


def test_warm_up_reads_no_annotation_and_its_export_starts_mal(tmp_path):
    """Trains on a JSON without any usable annotation, exports, and loads the result into MAL."""
    json_file = write_coco(tmp_path, masks=False)
    opts = ["SOLVER.MAX_ITER", 3]
    cfg = tiny_config("mal/sample_pretext", json_file, tmp_path / "out", opts)
    cfg.DATASETS.TEST = ()
    (tmp_path / "out").mkdir()
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    (tmp_path / "out/config.yaml").write_text(cfg.dump())
    command = [sys.executable, str(ROOT / "tools/export_weights.py")]
    command += ["--config-file", str(tmp_path / "out/config.yaml")]
    command += ["--weights", str(tmp_path / "out/model_final.pth")]
    command += ["--output", str(tmp_path / "net.safetensors")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    cfg = tiny_config("mal/sample", json_file, tmp_path / "mal")
    cfg.MODEL.MAL.ENCODER.WEIGHTS = str(tmp_path / "net.safetensors")
    model = MaskAutoLabeler(cfg)
    expected = trainer.model.student.state_dict()
    for network in (model.student, model.teacher):
        for name, value in network.encoder.state_dict().items():
            assert torch.allclose(value, expected[f"encoder.{name}"], rtol=1e-3, atol=1e-6), name


def test_the_shipped_start_fits_its_config_and_stays_small(monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = load_config("configs/mal/sample.yaml", [])
    path = ROOT / "configs/mal/weights/sample_encoder.safetensors"
    encoder = build_network(cfg).encoder
    load_encoder_weights(encoder, path)
    assert path.stat().st_size <= 10e6
    assert all(torch.isfinite(value).all() for value in encoder.state_dict().values())
