"""Checkpoints under real faults: SIGKILL while one is written, a full disk, a folder gone."""

import os
import random
import resource
import signal
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

import mal.data
import mal.mask_auto_labeler  # noqa: F401  (registers the meta-architecture)
from pseudolabel.checkpointer import AtomicCheckpointer
from pseudolabel.errors import DataError
from pseudolabel.loader import seed_everything
from pseudolabel.trainer import Trainer
from tests.tiny import tiny_config, write_coco

# Pytest's process holds no threads of torch, so its children may be forked: no imports again.
FORK = get_context("fork")
KILLS = 10


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def remnants(folder):
    return list(Path(folder).glob(".*.tmp"))


def kill_while_writing(process, folder, rng, longest):
    """Ends the process up to `longest` s after it has begun a file that was not there."""
    old, deadline = set(remnants(folder)), time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        if set(remnants(folder)) - old:
            time.sleep(rng.uniform(0, longest))
            break
        time.sleep(0.0005)
    assert process.is_alive()
    kill(process)


def wait_for(process, path, text):
    """Until the file has this content or a later one, while the process lives."""
    while process.is_alive() and not (path.exists() and path.read_text() >= text):
        time.sleep(0.001)


def load(path):
    return torch.load(path, weights_only=True)


def overwrite_for_ever(folder, start):
    model = torch.nn.Linear(1000, 1000)
    checkpointer = AtomicCheckpointer(model, str(folder))
    for round_ in range(start, 10**6):
        torch.nn.init.constant_(model.weight, round_)
        checkpointer.save("model_final", round=round_)


def test_a_kill_while_the_last_checkpoint_is_replaced_leaves_the_old_or_the_new_one(tmp_path):
    """Written in place, as fvcore does, such a file could not be read in 7 of 8 tries."""
    AtomicCheckpointer(torch.nn.Linear(1000, 1000), str(tmp_path)).save("model_final", round=0)
    rng, last, unfinished = random.Random(0), 0, 0
    for _ in range(KILLS):
        process = FORK.Process(target=overwrite_for_ever, args=(tmp_path, last + 1))
        process.start()
        kill_while_writing(process, tmp_path, rng, 0.02)
        content = load(tmp_path / "model_final.pth")
        assert content["round"] >= last
        last = content["round"]
        assert last == 0 or content["model"]["weight"].eq(last).all()
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
        unfinished += bool(list(tmp_path.glob(".model_final.pth.*.tmp")))
    assert unfinished > KILLS // 3  # the kills hit what they are meant to hit
    AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).save("model_final")
    assert not list(tmp_path.glob(".model_final.pth.*.tmp"))


def build(cfg, resume):
    seed_everything(cfg.SEED)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def go_on(cfg, expected_start):
    trainer = build(cfg, resume=True)
    assert trainer.start_iter == expected_start
    trainer.train()


def test_a_training_killed_in_its_checkpoints_goes_on_from_the_one_before(tmp_path):
    """To the same weights as a training that nothing happened to."""
    opts = ["SOLVER.MAX_ITER", 80, "SOLVER.CHECKPOINT_PERIOD", 1, "DATASETS.TEST", "()"]
    opts += ["MODEL.MAL.DECODER.HIDDEN_DIM", 64, "MODEL.MAL.DECODER.OUT_DIM", 64]
    opts += ["DATALOADER.NUM_WORKERS", 0]
    json_file = write_coco(tmp_path)
    whole = tiny_config("mal/sample", json_file, tmp_path / "whole", opts)
    whole.SOLVER.CHECKPOINT_PERIOD = 100
    build(whole, resume=False).train()

    out = tmp_path / "killed"
    cfg = tiny_config("mal/sample", json_file, out, opts)
    rng, start = random.Random(0), 0
    for _ in range(KILLS):
        process = FORK.Process(target=go_on, args=(cfg, start))
        process.start()
        # Not for the file: a kill between it and the pointer leaves the one before, rightly.
        wait_for(process, out / "last_checkpoint", f"model_{start:07d}.pth")
        kill_while_writing(process, out, rng, 0.01)
        last = out / (out / "last_checkpoint").read_text()
        assert load(last)["iteration"] >= start
        start = load(last)["iteration"] + 1
    assert KILLS <= start < 80
    cfg.SOLVER.CHECKPOINT_PERIOD = 100
    process = FORK.Process(target=go_on, args=(cfg, start))
    process.start()
    process.join()
    assert process.exitcode == 0
    expected = load(tmp_path / "whole/model_final.pth")["model"]
    result = load(out / "model_final.pth")["model"]
    assert all(torch.equal(result[name], value) for name, value in expected.items())


@contextmanager
def files_of_at_most(size):
    """Stands in for a full disk: writing beyond it fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 100_000])  # not a byte, the header, a part of the tensors
def test_a_full_disk_is_one_clear_line_and_the_checkpoint_before_is_whole(size, tmp_path):
    model = torch.nn.Linear(300, 300)
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    checkpointer.save("model_final", iteration=7)
    before = (tmp_path / "model_final.pth").read_bytes()
    for name in ("model_final", "model_0000008"):
        with files_of_at_most(size), pytest.raises(DataError) as error:
            checkpointer.save(name, iteration=8)
        assert str(error.value) == (
            f"{tmp_path}/{name}.pth: the checkpoint could not be written (File too large). Remedy: "
            "check disk space and rights; the checkpoint before is whole, --resume goes on from it."
        )
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final.pth"]
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")


def test_a_training_whose_disk_is_full_can_go_on_when_it_is_not(tmp_path):
    opts = ["SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", "()"]
    cfg = tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out", opts)
    trainer = build(cfg, resume=False)
    trainer.max_iter = 2
    trainer.train()
    with files_of_at_most(20_000), pytest.raises(DataError, match=r"model_0000003\.pth.*too large"):
        build(cfg, resume=True).train()
    assert build(cfg, resume=True).start_iter == 2


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match=r"out/model\.pth: the checkpoint could not be written \("):
        AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path / "out")).save("model")


def test_other_ranks_write_nothing(tmp_path):
    AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), save_to_disk=False).save("model")
    assert not os.listdir(tmp_path)
