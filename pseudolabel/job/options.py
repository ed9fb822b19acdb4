"""How a job is run: options of the command, and which part of a job a task of a cluster has."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pseudolabel.errors import DataError
from pseudolabel.store import output_paths

# (number of the task, number of tasks, number of the first); SLURM arrays may start anywhere.
ENVIRONMENTS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("RANK", "WORLD_SIZE", ""),
)


@dataclass(frozen=True)
class JobOptions:
    """How a job is run; no label depends on it, but for `seed` and `allow_links`.

    Attributes:
        images: folder of the images.
        output: the label JSON.
        workers: local processes.
        shard: (i, n): label only every n-th shard from the i-th, in claiming order, and do not
            merge unless all the others are done.
        shard_boxes: boxes per shard; None takes the default for the input.
        seed: of the generators of Python, numpy and torch.
        allow_links: links below the image folder may lead out of it.
        restart: throw an unfinished job away.
        keep_job: leave the folder of the job behind.
        command: the command line, for the manifest.
        start_method: how worker processes start, as in `multiprocessing`.
    """

    images: Path
    output: Path
    workers: int = 1
    shard: tuple[int, int] | None = None
    shard_boxes: int | None = None
    seed: int = 0
    allow_links: bool = False
    restart: bool = False
    keep_job: bool = False
    command: str = ""
    start_method: str = "spawn"

    def check(self) -> None:
        """Refuses numbers that make no sense, and outputs that cannot be replaced by a file.

        Raises:
            DataError: naming the option or the output.
        """
        for name, value in (("workers", self.workers), ("shard-boxes", self.shard_boxes)):
            if value is not None and value < 1:
                raise DataError(f"--{name}", f"{value} is none", "give 1 or more")
        if self.restart and self.shard is not None:
            raise DataError("--restart", "each task would undo the others", "remove the job first")
        for path in output_paths(self.output):
            if path.is_dir():
                raise DataError(path, "the output is a folder", "name a file in it")
        for path in (*output_paths(self.output), self.job):
            if path.is_symlink():
                problem = "is a link; the job would replace it, not what it leads to"
                raise DataError(path, problem, "remove it, or name the place that it leads to")

    @property
    def job(self) -> Path:
        """The folder of the job, beside the output."""
        return self.output.with_name(f"{self.output.name}.job")


def parse_share(text: str, environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Reads `--shard`.

    Args:
        text: "i/n" with 0 <= i < n; "env" reads a SLURM array task or a torchrun rank; "" is all.
        environment: variables.

    Raises:
        DataError: it is none of these, or the variables are not set.
    """
    if not text:
        return None
    share = _from_environment(environment) if text == "env" else tuple(text.split("/"))
    try:
        i, n = map(int, share)
    except (TypeError, ValueError):
        i, n = 1, 0
    if not 0 <= i < n:
        raise DataError("--shard", f"{text!r} is no share I/N with 0 <= I < N", "give 0/8, or env")
    return i, n


def _from_environment(environment: Mapping[str, str]) -> tuple[str | int, ...]:
    for number, count, first in ENVIRONMENTS:
        if number in environment:
            start = environment.get(first, "0") if first else "0"
            try:
                return int(environment[number]) - int(start), environment.get(count, "")
            except ValueError:
                return ()
    raise DataError(
        "--shard env",
        "neither SLURM_ARRAY_TASK_ID nor RANK is set",
        "start it as a SLURM array or by torchrun, or give I/N",
    )
