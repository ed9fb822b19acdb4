"""The evaluation loop."""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_every_n_seconds
from torch import nn

__all__ = [
    "DatasetEvaluator",
    "DatasetEvaluators",
    "gather_on_main",
    "inference_context",
    "inference_on_dataset",
    "write_into",
]

logger = logging.getLogger(__name__)


class DatasetEvaluator:
    """Collects inputs and outputs of a model, and scores them at the end."""

    # Subclasses of the evaluators below move predictions there.
    _cpu_device = torch.device("cpu")

    def reset(self) -> None:
        """Forget everything; called before an evaluation."""

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Take in one batch: the model's inputs and, in the same order, its outputs."""

    def evaluate(self) -> Mapping[str, Any] | None:
        """Score what was processed: ``{task: {metric: number}}``, None on ranks that do not."""


def gather_on_main(items: list[Any], distributed: bool) -> list[Any] | None:
    """The items of all ranks in the order of the ranks; None on other ranks than 0.

    Args:
        distributed: False keeps to the items of this rank, whichever it is.
    """
    if not distributed:
        return items
    comm.synchronize()
    parts = comm.gather(items, dst=0)
    comm.synchronize()
    return list(itertools.chain(*parts)) if comm.is_main_process() else None


def write_into(folder: str, name: str, content: Any) -> None:
    """Write one of an evaluator's files: JSON, or torch's format for names in ".pth"."""
    PathManager.mkdirs(folder)
    target = os.path.join(folder, name)
    logger.info("Writing %s", target)
    mode, save = ("wb", torch.save) if name.endswith(".pth") else ("w", json.dump)
    with PathManager.open(target, mode) as stream:
        save(content, stream)


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one; their results are joined."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        for member in self._evaluators:
            member.reset()

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        for member in self._evaluators:
            member.process(inputs, outputs)

    def evaluate(self) -> OrderedDict:
        """The joined results.

        Raises:
            AssertionError: when two evaluators report the same key.
        """
        joined: OrderedDict[str, Any] = OrderedDict()
        for member in self._evaluators:
            results = member.evaluate()
            if not is_main_process() or results is None:
                continue
            for key, value in results.items():
                assert key not in joined, f"Two evaluators report the same key '{key}'"
                joined[key] = value
        return joined


class _Stopwatch:
    """Seconds spent waiting for data, in the model and in the evaluator, after a warm-up."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.warmup = min(5, total - 1)
        self.reset()

    def reset(self) -> None:
        self.start = time.perf_counter()
        self.spent = dict.fromkeys(("data", "inference", "eval"), 0.0)

    def report(self, done: int) -> None:
        timed = done - self.warmup
        if timed <= 0:
            return
        average = (time.perf_counter() - self.start) / timed
        parts = ", ".join(f"{k} {v / timed:.4f}" for k, v in self.spent.items())
        left = datetime.timedelta(seconds=int(average * (self.total - done)))
        log_every_n_seconds(
            logging.INFO,
            f"Inference done {done}/{self.total}; s/iter: {parts}, total {average:.4f}; ETA {left}",
            n=5,
            name=__name__,
        )


def inference_on_dataset(
    model: nn.Module | Callable[[Any], Any],
    data_loader: Iterable,
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], Any]] | None = None,
) -> Mapping[str, Any]:
    """Run a model over a loader, and evaluate.

    The model (if it is a module) is put into eval mode meanwhile; gradients are off.

    Args:
        data_loader: has a length; its elements are the model's inputs.
        evaluator: one, several (their results are joined), or None, to only run the model.
        callbacks: functions called at "start", "before_inference", "after_inference", "end".

    Returns:
        the evaluator's results; {} if it has none (as on ranks other than 0).
    """
    total = len(data_loader)
    logger.info("Inference on %d batches per process, %d processes", total, get_world_size())
    if evaluator is None:
        evaluator = DatasetEvaluators([])
    elif isinstance(evaluator, (list, tuple)):
        evaluator = DatasetEvaluators(evaluator)
    call = _caller(callbacks or {})
    evaluator.reset()
    watch = _Stopwatch(total)
    # The device works on while Python goes on: wait for it, or its time counts as the evaluator's.
    finish = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    mode = inference_context(model) if isinstance(model, nn.Module) else nullcontext()
    with mode, torch.no_grad():
        call("start")
        before = time.perf_counter()
        for index, inputs in enumerate(data_loader):
            fetched = time.perf_counter()
            if index == watch.warmup:
                watch.reset()
                before = fetched
            call("before_inference")
            outputs = model(inputs)
            finish()
            call("after_inference")
            inferred = time.perf_counter()
            watch.spent["data"] += fetched - before
            watch.spent["inference"] += inferred - fetched
            evaluator.process(inputs, outputs)
            watch.spent["eval"] += time.perf_counter() - inferred
            watch.report(index + 1)
            before = time.perf_counter()
        call("end")
    logger.info("Inference took %.1f s after warm-up", time.perf_counter() - watch.start)
    results = evaluator.evaluate()
    return {} if results is None else results


def _caller(callbacks: Mapping[str, Callable[[], Any]]) -> Callable[[str], None]:
    return lambda event: callbacks.get(event, _nothing)()


def _nothing() -> None:
    pass


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode inside, and in its old mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
