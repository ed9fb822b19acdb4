"""Run upstream Detectron2's own tests against the `detectron2` that is installed.

    python detectron2_lite/conformance/run.py --upstream DIR

DIR is a checkout of upstream. Its tests stay there: they run through a link from a folder that
holds no `detectron2`, so that the installed build is tested and never the checkout's. The exit
status is 0 if every test of `core_tests.txt` that is not marked SEED passes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import record

HERE = Path(__file__).resolve().parent
CORE_TESTS = HERE / "core_tests.txt"
TIMEOUT_S = 1800


@dataclass(frozen=True)
class CoreTest:
    """A line of core_tests.txt: pytest's node id and the marks behind `#`."""

    node_id: str
    marks: frozenset[str] = frozenset()

    @property
    def file(self) -> str:
        return self.node_id.split("::")[0]

    @property
    def seeded(self) -> bool:
        return "SEED" in self.marks


@dataclass(frozen=True)
class Score:
    """Passed of all, and (node id, reason) of those that did not pass."""

    passed: int
    total: int
    failing: tuple[tuple[str, str], ...]


def read_core_tests(path: Path = CORE_TESTS) -> list[CoreTest]:
    """Read the list of tests; blank lines and lines that start with # are skipped."""
    tests = []
    for line in path.read_text(encoding="utf-8").splitlines():
        node_id, _, marks = line.partition("#")
        if node_id.strip():
            tests.append(CoreTest(node_id.strip(), frozenset(marks.split())))
    return tests


def score(tests: list[CoreTest], outcomes: dict[str, dict[str, str]]) -> Score:
    """Count passes. A test without an outcome takes the reason of its module, if it has one."""
    failing = []
    for test in tests:
        found = outcomes.get(test.node_id) or outcomes.get(test.file)
        if found is None:
            failing.append((test.node_id, "did not run: no such test in the checkout"))
        elif found["outcome"] != "passed":
            failing.append((test.node_id, found["reason"]))
    return Score(len(tests) - len(failing), len(tests), tuple(failing))


def build_stand_in(root: Path, data: Path) -> None:
    """Lay out `coco_2017_val_100` below `root` from the validation images of `data`.

    Args:
        root: becomes DETECTRON2_DATASETS.
        data: folder with `annotations/instances_val.json` and `images/`.

    Raises:
        SystemExit: the folder is not there, or its annotations lack some of COCO's 80 classes.
    """
    source = data / "annotations" / "instances_val.json"
    if not source.is_file():
        raise SystemExit(f"{source}: not found; set MASKSMITH_DATA or --data to a COCO subset")
    count = len(json.loads(source.read_text(encoding="utf-8"))["categories"])
    if count != 80:
        raise SystemExit(f"{source}: has {count} categories; the tests expect COCO's 80")
    annotations = root / "coco" / "annotations"
    annotations.mkdir(parents=True)
    (annotations / "instances_val2017_100.json").symlink_to(source.resolve())
    (root / "coco" / "val2017").symlink_to((data / "images").resolve())


def run_tests(
    python: str, upstream: Path, data: Path, tests: list[CoreTest], log: Path | None = None
) -> dict:
    """Run pytest in a process of its own; `log` takes its whole output.

    Returns:
        What the plugin recorded: provider, version, stubs, outcomes by node id.

    Raises:
        SystemExit: pytest ended without a record.
    """
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch:
        root = Path(scratch)
        (root / "tests").symlink_to(upstream / "tests")
        (root / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        build_stand_in(root / "datasets", data)
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DETECTRON2_DATASETS": str(root / "datasets"),
            "OMP_WAIT_POLICY": "PASSIVE",
            "MPLBACKEND": "agg",
            "CONFORMANCE_CHECKOUT": str(upstream),
            "CONFORMANCE_TESTS": json.dumps([test.node_id for test in tests]),
            "CONFORMANCE_OUTPUT": str(root / "outcomes.json"),
        }
        command = [python, "-m", "pytest", "-c", "pytest.ini", "-p", "checkout_plugin"]
        command += ["-p", "no:cacheprovider", "-q", "--tb=short", "--continue-on-collection-errors"]
        done = subprocess.run(
            command + sorted({test.file for test in tests}),
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        output = done.stdout + done.stderr
        if log is not None:
            log.write_text(output, encoding="utf-8")
        if not (root / "outcomes.json").is_file():
            raise SystemExit(f"pytest ended without results:\n{output[-3000:]}")
        return json.loads((root / "outcomes.json").read_text(encoding="utf-8"))


def main(arguments: list[str] | None = None) -> int:
    data = os.environ.get("MASKSMITH_DATA", "")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True, help="checkout of upstream")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the build")
    parser.add_argument("--data", type=Path, default=Path(data, "coco_dev"), help="COCO subset")
    parser.add_argument("--log", type=Path, help="write pytest's output to this file")
    parser.add_argument("--record", action="store_true", help="write docs/conformance.*")
    args = parser.parse_args(arguments)
    if not (args.upstream / "tests").is_dir():
        parser.error(f"--upstream {args.upstream}: no checkout of Detectron2 with a tests folder")

    tests = read_core_tests()
    upstream = args.upstream.resolve()
    # Absolute, as the tests run elsewhere; not resolved, or a venv's python would leave its venv.
    python = os.path.abspath(shutil.which(args.python) or args.python)
    result = run_tests(python, upstream, args.data, tests, args.log)
    core = score([test for test in tests if not test.seeded], result["outcomes"])
    seeded = score([test for test in tests if test.seeded], result["outcomes"])
    lines = [
        f"detectron2 {result['version']} (provider: {result['provider']})",
        f"passed {core.passed} of {core.total}",
        f"seeded: passed {seeded.passed} of {seeded.total}",
        *(f"FAILED {node_id}: {reason}" for node_id, reason in core.failing + seeded.failing),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if args.record:
        record.write_tests(upstream, python, result, core, seeded)
    return 0 if core.passed == core.total else 1


if __name__ == "__main__":
    sys.exit(main())
