"""Runs an experiment as a list of subprocess stages: resumable, logged, with one overall ETA."""

import datetime
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.5
LINE_SECONDS = 10.0


@dataclass
class Stage:
    """One command of an experiment.

    Attributes:
        name: unique; names the log and the receipt.
        command: arguments after the Python interpreter.
        inputs: files whose content decides whether an earlier run still counts.
        outputs: files that must exist afterwards.
        seconds: expected duration on two idle cores, for the ETA.
        run_dir: folder with a `metrics.json` that tells the progress of a training run.
        max_iter: of that run.
    """

    name: str
    command: list[str]
    inputs: list[Path] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    seconds: float = 5.0
    run_dir: Path | None = None
    max_iter: int = 0

    def fingerprint(self) -> str:
        """Hash of the command and of its inputs."""
        digest = hashlib.sha256(json.dumps(self.command).encode())
        for path in self.inputs:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def keep_or_clear_run(self) -> None:
        """Empties `run_dir` unless it was begun by this very command on these very inputs.

        The commands resume; without this, a run on changed labels would resume the old one.
        """
        if self.run_dir is None:
            return
        mark = self.run_dir / "begun_by"
        if not mark.exists() or mark.read_text() != self.fingerprint():
            shutil.rmtree(self.run_dir, ignore_errors=True)
            self.run_dir.mkdir(parents=True)
            mark.write_text(self.fingerprint())

    def progress(self) -> float:
        """Share of a training run that is done, from its metrics file; 0 if unknown."""
        if self.run_dir is None or not self.max_iter:
            return 0.0
        try:
            line = (self.run_dir / "metrics.json").read_text().strip().rsplit("\n", 1)[-1]
            return min(1.0, json.loads(line)["iteration"] / self.max_iter)
        except (OSError, ValueError, KeyError):
            return 0.0


class StageError(RuntimeError):
    """A stage ended with an error; the message names its log."""


class Runner:
    """Runs groups of stages in order; the stages of a group run side by side.

    A stage whose receipt (command, input hashes) is unchanged and whose outputs exist is skipped,
    so an interrupted experiment goes on where it stopped.

    Args:
        output: folder of the experiment; logs and receipts go below it.
        groups: the plan.
    """

    def __init__(self, output: Path, groups: list[list[Stage]]):
        self.output, self.groups = output, groups
        self.seconds: dict[str, float] = {}
        self._pace = 1.0
        for folder in ("logs", "receipts"):
            (output / folder).mkdir(parents=True, exist_ok=True)

    def run(self) -> dict[str, float]:
        """Runs what is left to do. Returns the duration of every stage in seconds."""
        started = time.monotonic()
        expected = measured = 0.0
        for index, group in enumerate(self.groups):
            todo = [stage for stage in group if not self._is_done(stage)]
            if not todo:
                continue
            begin = time.monotonic()
            self._run_group(index, todo)
            expected += max(stage.seconds for stage in todo)
            measured += time.monotonic() - begin
            # Small early stages say little about the pace of the machine.
            if expected > 20:
                self._pace = measured / expected
        say(f"all stages done in {clock(time.monotonic() - started)}")
        return self.seconds

    def _run_group(self, index: int, stages: list[Stage]) -> None:
        begin = time.monotonic()
        jobs = {stage.name: self._start(stage) for stage in stages}
        later = sum(max(s.seconds for s in group) for group in self.groups[index + 1 :])
        label = f"[{index + 1}/{len(self.groups)}] {' + '.join(stage.name for stage in stages)}"
        last_line = 0.0
        try:
            while running := [stage for stage in stages if jobs[stage.name].poll() is None]:
                elapsed = time.monotonic() - begin
                if elapsed - last_line >= LINE_SECONDS:
                    last_line = elapsed
                    say(f"{label}: {self._state(running, elapsed, later)}")
                time.sleep(POLL_SECONDS)
        finally:
            # Ctrl-C or an error here must not leave training runs behind.
            for job in jobs.values():
                if job.poll() is None:
                    job.terminate()
                    job.wait()
        for stage in stages:
            self._finish(stage, jobs[stage.name].returncode, time.monotonic() - begin)
        say(f"{label}: done in {clock(time.monotonic() - begin)}")

    def _state(self, running: list[Stage], elapsed: float, later: float) -> str:
        """Share done and time left of the slowest stage, and time left in all."""
        estimates = [(self._left(stage, elapsed), stage.progress()) for stage in running]
        left, done = max(estimates)
        share = f"{100 * done:.0f} %, " if done else ""
        return f"{share}about {clock(left)} left here, {clock(left + later * self._pace)} in all"

    def _left(self, stage: Stage, elapsed: float) -> float:
        done = stage.progress()
        if done > 0.05:
            return elapsed * (1 - done) / done
        return max(stage.seconds * self._pace - elapsed, 1.0)

    def _start(self, stage: Stage) -> subprocess.Popen:
        stage.keep_or_clear_run()
        log = (self.output / "logs" / f"{stage.name}.log").open("w")
        environment = {
            **os.environ,
            # Sums depend on the number of threads; with one, a seed gives the same run anywhere.
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
        }
        return subprocess.Popen(
            [sys.executable, *stage.command],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def _finish(self, stage: Stage, code: int, seconds: float) -> None:
        log = self.output / "logs" / f"{stage.name}.log"
        missing = [path for path in stage.outputs if not path.exists()]
        if code or missing:
            tail = "\n".join(log.read_text().splitlines()[-15:])
            reason = f"exit code {code}" if code else f"did not write {missing[0]}"
            raise StageError(f"stage {stage.name} failed ({reason}); {log} ends with:\n{tail}")
        self.seconds[stage.name] = round(seconds, 1)
        receipt = {"fingerprint": stage.fingerprint(), "seconds": round(seconds, 1)}
        self._receipt(stage).write_text(json.dumps(receipt))

    def _is_done(self, stage: Stage) -> bool:
        try:
            receipt = json.loads(self._receipt(stage).read_text())
            done = receipt["fingerprint"] == stage.fingerprint()
        except (OSError, ValueError, KeyError):
            return False
        if not done or not all(path.exists() for path in stage.outputs):
            return False
        self.seconds[stage.name] = receipt["seconds"]
        return True

    def _receipt(self, stage: Stage) -> Path:
        return self.output / "receipts" / f"{stage.name}.json"


def say(text: str) -> None:
    """One line to the person who waits."""
    print(text, flush=True)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(datetime.timedelta(seconds=round(seconds)))
