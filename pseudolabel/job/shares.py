"""Which part of a job a task of a cluster has."""

from collections.abc import Mapping

from pseudolabel.errors import DataError

# (number of the task, number of tasks, number of the first); SLURM arrays may start anywhere.
ENVIRONMENTS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("RANK", "WORLD_SIZE", ""),
)


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
