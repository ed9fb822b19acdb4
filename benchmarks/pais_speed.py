#!/usr/bin/env python3
"""Time and memory of an iteration of PAIS over those of its two halves.

    python benchmarks/pais_speed.py output/pais_nuclei/10_fold1/start [--record]

The folder is that of a supervised run, whose weights make pseudo-labels as a training has them;
random ones would make far too many. `benchmarks/pais_nuclei.py` leaves this one behind, and any run
of a config of configs/pais with MODEL.PAIS.ENABLED False will do.

Above: PAIS on labelled and unlabelled images, the teacher's update included. Below: what nobody can
do without. That is one supervised step on the same student images, with the pseudo-labels as their
ground truth, and the teacher's inference on the weak views, which ends with a map of 28 x 28 for
each detection: pasting them into the image counts against PAIS. Both have the same network and
optimizer, one thread and CPU time, and take turns batch by batch. The learning rate is 0, so that
the weights, those of a supervised run, stay what they were, and with them the pseudo-labels. Peak
memory is that of a process of its own for each side.

Loading is measured apart: a batch of PAIS, with two views of each unlabelled image, over as many
labelled images.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from commands import finish_measurement
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from job_memory import peak_mb
from results import config_facts, measurement, portable_path

from masksmith import new_config, register_methods
from pais.mapper import LabelledMapper, UnlabelledMapper
from pais.pipeline import SemiSupervisedPipeline, labelled_records
from pais.pseudo_labels import WeakViews, keep_above
from pseudolabel.errors import DataError
from pseudolabel.loader import isolated_rng
from pseudolabel.registration import register_datasets
from pseudolabel.trainer import Trainer

SIDES = ("PAIS", "apart")
FIELDS = ("gt_boxes", "gt_classes", "gt_masks")
NAME = "pais_speed"


@dataclass(frozen=True)
class Times:
    """CPU seconds of both sides per turn, in the order in which they were measured."""

    first: list[float]
    second: list[float]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third one of first / second."""
        ratios = [a / b for a, b in zip(self.first, self.second)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high


def take_turns(
    first: Callable[[int], object],
    second: Callable[[int], object],
    repeats: int,
    clock: Callable[[], float] = time.process_time,
) -> Times:
    """Times both on the same input, then on the next one.

    Args:
        first, second: called with the number of the turn; a turn before them warms up.
        repeats: turns that count, 2 or more.
        clock: seconds.
    """

    def timed(work: Callable[[int], object], turn: int) -> float:
        begin = clock()
        work(turn)
        return clock() - begin

    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(repeats + 1):
        # Neither side always finds the caches as the other has left them.
        for later in (False, True) if turn % 2 else (True, False):
            seconds[later].append(timed(second if later else first, turn))
    return Times(seconds[False][1:], seconds[True][1:])


def read_run(folder: Path) -> CfgNode:
    """The config of a supervised run, as one of PAIS that starts from its weights.

    Raises:
        DataError: the folder has no finished run of PAIS's network.
    """
    weights = folder / "model_final.pth"
    for path in (folder / "config.yaml", weights):
        if not path.is_file():
            remedy = "give the OUTPUT_DIR of a run of a config of configs/pais"
            raise DataError(path, "does not exist", remedy)
    register_methods()
    cfg = new_config()
    cfg.merge_from_file(str(folder / "config.yaml"))
    if cfg.MODEL.META_ARCHITECTURE != "SemiSupervisedRCNN":
        remedy = "give a run of a config of configs/pais"
        raise DataError(folder, f"is a run of {cfg.MODEL.META_ARCHITECTURE}", remedy)
    cfg.MODEL.PAIS.ENABLED, cfg.MODEL.PAIS.BURN_IN_ITERS = True, 0
    cfg.MODEL.PAIS.EMA.START = "student"
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = str(weights), "cpu", 0
    register_datasets(cfg)
    return cfg


class Iteration:
    """Both sides on the first batches of a run.

    Args:
        cfg: of `read_run`.
        batches: number of them; their turns come round.
    """

    def __init__(self, cfg: CfgNode, batches: int):
        self.model = Trainer.build_model(cfg)
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.model.begin_training()
        self.model.train()
        self.optimizer = Trainer.build_optimizer(cfg, self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        loader = SemiSupervisedPipeline().train_loader(cfg)
        self.batches = list(islice(loader, batches))
        self.truths = [self._as_labelled(batch) for batch in self.batches]

    def side(self, name: str, turn: int) -> None:
        """One turn of one of `SIDES`."""
        batch, truth = (each[turn % len(self.batches)] for each in (self.batches, self.truths))
        if name == "PAIS":
            self._step(batch)
            self.model.update_teacher()
            return
        self._step(truth)
        with torch.no_grad():
            weak = [sample["weak"] for sample in batch if not sample["labelled"]]
            self.model.teacher.inference(weak, do_postprocess=False)

    @property
    def objects(self) -> dict[str, float]:
        """Labelled and unlabelled images of a batch, and objects of an image of each kind."""
        counts: dict[bool, list[int]] = {True: [], False: []}
        for batch, truth in zip(self.batches, self.truths):
            for sample, known in zip(batch, truth, strict=True):
                counts[sample["labelled"]].append(len(known["instances"]))
        return {
            f"{what} {kind}": number
            for kind, found in (("labelled", counts[True]), ("unlabelled", counts[False]))
            for what, number in (
                ("images", len(found) / len(self.batches)),
                ("objects", statistics.mean(found)),
            )
        }

    def _step(self, batch: list[dict]) -> None:
        # The same regions are drawn each time.
        torch.manual_seed(0)
        self.optimizer.zero_grad()
        sum(self.model(batch).values()).backward()
        self.optimizer.step()

    @torch.no_grad()
    def _as_labelled(self, batch: list[dict]) -> list[dict]:
        """The student's images, all with a ground truth."""
        known = [sample for sample in batch if sample["labelled"]]
        others = [sample for sample in batch if not sample["labelled"]]
        weak = WeakViews.look(self.model.teacher, others)
        sizes = [tuple(sample["strong"]["image"].shape[1:]) for sample in others]
        labels = weak.pseudo_labels(self.model.floors.initial, sizes)
        for sample, found in zip(others, labels):
            found = keep_above(found, "gt_scores", self.model.floors.roi)
            truth = Instances(found.image_size, **{name: found.get(name) for name in FIELDS})
            known.append({**sample["strong"], "instances": truth, "labelled": True})
        return known


def loading_times(cfg: CfgNode, batches: int, repeats: int) -> Times:
    """A batch of PAIS / one of labelled images alone; the same files for both."""
    count = SemiSupervisedPipeline().train_loader(cfg).batches.labelled_count
    mappers = LabelledMapper(cfg), UnlabelledMapper(cfg)
    # Labelled records can be read as either kind.
    records = labelled_records(cfg)
    size = cfg.SOLVER.IMS_PER_BATCH

    def load(turn: int, labelled: int) -> None:
        for place in range(size):
            record = records[(turn % batches * size + place) % len(records)]
            with isolated_rng(turn * size + place):
                mappers[place >= labelled](record)

    return take_turns(
        lambda turn: load(turn, count(turn % batches)), lambda turn: load(turn, size), repeats
    )


def measure_memory(folder: Path, side: str, batches: int, connection: Any) -> None:
    """Sends the peak memory of one side in MB before and after a turn with each batch."""
    torch.set_num_threads(1)
    with EventStorage():
        iteration = Iteration(read_run(folder), batches)
        before = peak_mb()
        for turn in range(batches):
            iteration.side(side, turn)
    connection.send((before, peak_mb()))


def peak_memory(folder: Path, batches: int) -> dict[str, tuple[float, float]]:
    """{side: (MB before its turns, MB after them)}, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for side in SIDES:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=measure_memory, args=(folder, side, batches, there))
        process.start()
        # A process that dies ends the wait below.
        there.close()
        peaks[side] = here.recv()
        process.join()
    return peaks


def measure(folder: Path, batches: int, repeats: int) -> dict[str, Any]:
    """All numbers of a run's network and data."""
    cfg = read_run(folder)
    iteration = Iteration(cfg, batches)
    with EventStorage():
        times = take_turns(*(partial(iteration.side, side) for side in SIDES), repeats)
    objects = iteration.objects
    del iteration
    return {
        "run": portable_path(str(folder)),
        "config": config_facts(folder / "config.yaml"),
        "objects": objects,
        "step": asdict(times),
        "loading": asdict(loading_times(cfg, batches, repeats)),
        "peak_mb": peak_memory(folder, batches),
    }


def to_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of a run: its step, its memory, its loading."""
    objects = found["objects"]
    images = f"{objects['images labelled']:.3g} + {objects['images unlabelled']:.3g}"

    def row(title: str, times: dict[str, list[float]]) -> list[str]:
        low, middle, high = Times(**times).quartiles
        sides = [f"{1000 * statistics.median(side):.0f}" for side in times.values()]
        return [title, images, *sides, f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]

    first, second = (found["peak_mb"][side][1] for side in SIDES)
    yield row("CPU ms of an iteration", found["step"])
    yield ["peak MB", images, f"{first:.0f}", f"{second:.0f}", f"{first / second:.3f}", "–"]
    yield row("CPU ms to load a batch", found["loading"])


def to_record(results: list[dict[str, Any]], repeats: int, name: str = NAME) -> dict[str, Any]:
    """The table of all runs."""
    labels = ", ".join(f"{found['objects']['objects unlabelled']:.3g}" for found in results)
    names = ", ".join(found["run"] for found in results)
    text = (
        "One iteration of PAIS over its halves apart: a supervised step on the same student images "
        "with the pseudo-labels as ground truth, and the teacher's inference on the weak views, "
        f"masks not pasted. Networks and data of {names}; pseudo-labels per image: {labels}. One "
        f"thread, CPU time, median and quartiles of {repeats} turns in one process; peak memory "
        "of a process for each side. "
        "Loading: a batch with two views of each unlabelled image over as many labelled images."
    )
    header = ["what", "labelled + unlabelled", "PAIS", "apart", "ratio", "quartiles"]
    rows = list(chain.from_iterable(map(to_rows, results)))
    return measurement(name, text, header, rows, {"repeats": repeats, "runs": results})


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="OUTPUT_DIRs of supervised runs")
    parser.add_argument("--repeats", type=int, default=20, help="turns (%(default)s)")
    parser.add_argument("--batches", type=int, default=5, help="of each run (%(default)s)")
    parser.add_argument("--record", metavar="NAME", nargs="?", const=NAME, help="in docs/results")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)

    def work() -> dict[str, Any]:
        results = [measure(folder, args.batches, args.repeats) for folder in args.runs]
        return to_record(results, args.repeats, args.record or NAME)

    return finish_measurement(work, args.record is not None)


if __name__ == "__main__":
    sys.exit(main())
