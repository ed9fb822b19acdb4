"""Events and their writers, logging, communication, seeds, paths, pickling."""

import functools
import json
import logging
import multiprocessing
import os
import pickle
import random
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm, env, events, logger, memory
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)
from detectron2.utils.file_io import MODEL_SERVER, Detectron2Handler, PathManager
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper


def test_storage_contexts_nest() -> None:
    assert not has_event_storage()
    with pytest.raises(AssertionError, match="EventStorage"):
        get_event_storage()
    with EventStorage(5) as outer:
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
        assert outer.iter == outer.iteration == 5
    assert not has_event_storage()


def test_storage_scalars() -> None:
    with EventStorage(10) as storage:
        with storage.name_scope("roi_head/"):
            storage.put_scalar("fg", torch.tensor(3.0))
            with storage.name_scope("inner"):
                storage.put_scalar("bg", 1)
            storage.put_scalar("total", 4)
        storage.put_scalars(a=1, b=2, smoothing_hint=False, cur_iter=3)
    assert storage.latest() == {
        "roi_head/fg": (3.0, 10),
        "inner/bg": (1.0, 10),
        "roi_head/total": (4.0, 10),
        "a": (1.0, 3),
        "b": (2.0, 3),
    }
    assert storage.smoothing_hints()["a"] is False
    with pytest.raises(AssertionError, match="smoothing_hint"):
        storage.put_scalar("a", 5)
    with pytest.raises(KeyError, match="nothing"):
        storage.history("nothing")


def test_windows_count_iterations_not_samples() -> None:
    with EventStorage() as storage:
        for step in range(20):
            storage.put_scalar("each", step)
            if step % 5 == 4:
                storage.put_scalar("fifth", step)
            storage.put_scalar("raw", step, smoothing_hint=False)
            storage.step()
    # Last ten iterations: 10..19, of which 14 and 19 have a "fifth".
    assert [storage.count_samples(name, 10) for name in ("each", "fifth")] == [10, 2]
    smoothed = storage.latest_with_smoothing_hint(10)
    assert smoothed == {"each": (14.5, 19), "fifth": (16.5, 19), "raw": (19.0, 19)}


def test_json_writer(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(str(path), window_size=20)
        for step in range(60):
            if step % 17 == 0:  # another period than the writer's
                storage.put_scalar("rare", step, smoothing_hint=False)
            storage.put_scalar("loss", step, smoothing_hint=False)
            if step % 20 == 19:
                writer.write()
            storage.step()
        writer.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [17, 19, 34, 39, 51, 59]
    assert [row.get("rare") for row in rows] == [17, None, 34, None, 51, None]
    assert [row.get("loss") for row in rows] == [None, 19, None, 39, None, 59]


def test_json_writer_appends_and_smooths(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 0}\n')
    with EventStorage(1) as storage:
        writer = JSONWriter(str(path))
        for value in (1, 2, 30):
            storage.put_scalar("loss", value)
            storage.step()
        writer.write()
        writer.write()  # nothing new
        writer.close()
    assert len(path.read_text().splitlines()) == 2
    assert json.loads(path.read_text().splitlines()[1]) == {"iteration": 3, "loss": 2.0}


def test_tensorboard_writer(tmp_path: Path) -> None:
    writer = TensorboardXWriter(str(tmp_path / "none"))
    writer.close()
    assert not (tmp_path / "none").exists()
    pytest.importorskip("tensorboard")
    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path / "some"))
        storage.put_scalar("loss", 1.5)
        storage.put_image("picture", np.zeros((3, 4, 5), dtype=np.uint8))
        storage.put_histogram("weights", torch.arange(10.0), bins=4)
        assert storage._histograms[0]["bucket_counts"] == [3, 2, 2, 3]
        writer.write()
        writer.close()
        assert not storage._vis_data
        assert not storage._histograms
    assert len(os.listdir(tmp_path / "some")) == 1


def _printed(printer: CommonMetricPrinter, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    printer.write()
    return caplog.text


def test_printer(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO, logger="detectron2.utils.events")
    with EventStorage() as storage:
        timed, endless = CommonMetricPrinter(10), CommonMetricPrinter()
        for step in range(2):
            storage.put_scalars(time=60.0, data_time=0.5, loss_mask=step, accuracy=1.0)
            storage.put_scalar("[metric]norm", 7.0)
            storage.put_scalar("lr", 0.01, smoothing_hint=False)
            storage.step()
        line = _printed(timed, caplog)
        # At iteration 2 of 10, seven more of a minute each.
        for part in ("eta: 0:07:00", "iter: 2", "loss_mask: 0.5", "[metric]norm: 7", "lr: 0.01"):
            assert part in line
        assert "time: 60.0000" in line
        assert "data_time: 0.5000" in line
        assert "accuracy" not in line
        assert storage.latest()["eta_seconds"][0] == 420
        assert "eta" not in _printed(endless, caplog).replace("eta_seconds", "")
        storage.iter = 10
        assert _printed(timed, caplog) == ""


def test_setup_logger(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = "lite_logger_test"
    log = logger.setup_logger(str(tmp_path), name=name, abbrev_name="lt", color=False)
    assert logger.setup_logger(str(tmp_path), name=name, abbrev_name="lt", color=False) is log
    assert len(log.handlers) == 2
    logging.getLogger(name + ".sub").warning("careful")
    text = (tmp_path / "log.txt").read_text()
    assert "lt.sub WARNING: careful" in text
    assert text.count("careful") == 1
    assert "lt.sub WARNING: careful" in capsys.readouterr().out
    other = logger.setup_logger(str(tmp_path / "a" / "b.log"), 2, name=name + "2")
    other.info("from rank two")
    assert "from rank two" in (tmp_path / "a" / "b.log.rank2").read_text()
    assert capsys.readouterr().out == ""


def test_messages_that_do_not_repeat(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    clock = iter([0.0, 1.0, 2.5, 3.0])
    monkeypatch.setattr(logger.time, "monotonic", lambda: next(clock))
    for i in range(4):
        logger.log_first_n(logging.INFO, f"first {i}", 2, name="x")
        logger.log_first_n(logging.INFO, f"message {i % 2}", name="x", key="message")
        logger.log_every_n(logging.INFO, f"every {i}", 3, name="x")
        logger.log_every_n_seconds(logging.INFO, f"seconds {i}", 2, name="x")
    got = [record.getMessage() for record in caplog.records]
    assert [m for m in got if m.startswith("first")] == ["first 0", "first 1"]
    assert [m for m in got if m.startswith("message")] == ["message 0", "message 1"]
    assert [m for m in got if m.startswith("every")] == ["every 0", "every 3"]
    assert [m for m in got if m.startswith("seconds")] == ["seconds 0", "seconds 2"]
    logger.log_first_n(logging.INFO, "whose")
    assert caplog.records[-1].name == __name__
    with pytest.raises(ValueError, match="key"):
        logger.log_first_n(logging.INFO, "x", key="line")


def test_small_table() -> None:
    table = logger.create_small_table({"AP": 12.34567, "AP50": 20.0})
    assert "12.346" in table
    assert "AP50" in table


def test_comm_alone() -> None:
    assert (comm.get_rank(), comm.get_world_size(), comm.get_local_rank()) == (0, 1, 0)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather("x") == comm.gather("x") == ["x"]
    values = {"a": torch.tensor(2.0)}
    assert comm.reduce_dict(values) is values
    np.random.seed(4)
    first = comm.shared_random_seed()
    np.random.seed(4)
    assert comm.shared_random_seed() == first


def _synced_norm(rank: int) -> list[list[float]]:
    """Output, input gradient and running mean of a batch norm over ranks of 1 and 3 images."""
    x = torch.arange(24.0).reshape(4, 2, 3, 1).square()
    x = (x[:1], x[1:])[rank].clone().requires_grad_()
    norm = NaiveSyncBatchNorm(2, stats_mode="N")
    out = norm(x)
    (out * x.detach()).sum().backward()
    return [t.detach().flatten().tolist() for t in (out, x.grad, norm.running_mean)]


def _rank(rank: int, folder: str, results: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    comm.create_local_process_group(2)
    np.random.seed(rank)
    results.put(
        {
            "rank": comm.get_rank(),
            "local": (comm.get_local_rank(), comm.get_local_size()),
            "all": comm.all_gather({"rank": rank}),
            "gathered": comm.gather(rank * 10),
            "seed": comm.shared_random_seed(),
            "norm": _synced_norm(rank),
            "mean": {
                k: float(v)
                for k, v in comm.reduce_dict(
                    {"b": torch.tensor(1.0 + rank), "a": torch.tensor(3.0 * rank)}
                ).items()
            },
        }
    )
    comm.synchronize()
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_comm_of_two() -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        workers = [context.Process(target=_rank, args=(i, folder, results)) for i in (0, 1)]
        for worker in workers:
            worker.start()
        zero, one = sorted((results.get(timeout=120) for _ in workers), key=lambda r: r["rank"])
        for worker in workers:
            worker.join(timeout=60)
    assert zero["all"] == one["all"] == [{"rank": 0}, {"rank": 1}]
    assert (zero["gathered"], one["gathered"]) == ([0, 10], [])
    assert (zero["local"], one["local"]) == ((0, 2), (1, 2))
    assert zero["seed"] == one["seed"]
    assert zero["mean"] == {"a": 1.5, "b": 1.5}
    # Batch norm over the images of both ranks must equal one over the whole batch.
    x = torch.arange(24.0).reshape(4, 2, 3, 1).square().requires_grad_()
    norm = torch.nn.BatchNorm2d(2)
    out = norm(x)
    (out * x.detach()).sum().backward()
    for index, whole in enumerate((out, x.grad)):
        got = torch.tensor(zero["norm"][index] + one["norm"][index])
        torch.testing.assert_close(got, whole.detach().flatten(), atol=1e-3, rtol=1e-3)
    assert zero["norm"][2] == pytest.approx(norm.running_mean.tolist(), rel=1e-5)


def test_seeds() -> None:
    draws = []
    for seed in (11, 11, 12):
        env.seed_all_rng(seed)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[1], draws[2]))
    env.seed_all_rng(None)
    assert random.random() != draws[0][0]


def test_not_in_lite_names_upstream() -> None:
    with pytest.raises(NotImplementedError, match=r"rotated.*[Uu]pstream"):
        env.not_in_lite("rotated boxes")
    assert "0.6+lite" in collect_env_info()


def test_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    assert PathManager.get_local_path(str(tmp_path / "x.txt")) == str(tmp_path / "x.txt")
    asked = []
    monkeypatch.setattr(PathManager, "get_local_path", lambda p, **_: asked.append(p))
    Detectron2Handler()._get_local_path("detectron2://ImageNet/R-50.pkl")
    assert asked == [MODEL_SERVER + "ImageNet/R-50.pkl"]


def test_registry_and_locate() -> None:
    registry = Registry("THING")
    registry.register(dict)
    assert registry.get("dict") is dict
    with pytest.raises(KeyError, match="THING"):
        registry.get("list")
    assert locate("detectron2.utils.events.EventStorage") is events.EventStorage
    with pytest.raises(ImportError, match="nowhere"):
        locate("detectron2.nowhere")


def test_pickling_of_functions() -> None:
    factor = 3
    for wrapped, want in (
        (PicklableWrapper(lambda x, *, shift=1: len([x] * factor) + shift), 4),
        (PicklableWrapper(PicklableWrapper(len)), 2),
        (PicklableWrapper(functools.partial(max, 5)), 5),
    ):
        copy = pickle.loads(pickle.dumps(wrapped))
        assert copy("ab" if want != 5 else 2) == want
    assert PicklableWrapper("text").upper() == "TEXT"
    # Only plain functions can be taken apart.
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(PicklableWrapper(threading.Lock()))


def test_retry_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [True, True, False]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    @memory.retry_if_cuda_oom
    def work(x: torch.Tensor, *, scale: float) -> torch.Tensor:
        if failures.pop(0):
            raise torch.cuda.OutOfMemoryError("injected")
        return x * scale

    assert work(torch.ones(2), scale=3).tolist() == [3, 3]
    assert not failures
    failures.extend([True] * 3)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        work(torch.ones(2), scale=3)
