"""tools/label.py: what it refuses, and that it then changes nothing."""

import json
import signal
import subprocess
import sys

import pytest

from pseudolabel.errors import DataError
from pseudolabel.store import output_paths
from tests.tiny import write_coco
from tests.tools.commands import ROOT, SMALL_DISK, load_command


@pytest.fixture
def folder(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "bad.yaml").write_text("MODEL: {MAL: {NO_SUCH_KEY: 1}}")
    (tmp_path / "broken.yaml").write_text("{")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "good.yaml").write_text("VERSION: 2")
    return tmp_path


def run(folder, *arguments, output="labels.json", start=()):
    command = [sys.executable, *start, str(ROOT / "tools/label.py"), "--images", "."]
    command += ["--boxes", "instances.json", "--output", output, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def state(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_refused(done, message):
    assert done.returncode == 1, done.stdout
    # Libraries may warn beside it (upstream's Detectron2 does, on a current torch).
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if "ERROR" in line or "Remedy" in line]
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert "Remedy" in lines[0]


def test_labels_with_rejects_and_manifest(folder):
    done = run(folder, "--labeler", "ellipse")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads((folder / "labels.json").read_text())["annotations"]) == 8
    manifest = json.loads((folder / "labels.manifest.json").read_text())
    assert manifest["command"].endswith("--output labels.json --labeler ellipse")
    assert (folder / "labels.rejects.jsonl").read_text() == ""


MAL = ("--labeler", "mal", "--weights", "x.pth", "--config-file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labeler", "elipse"), "unknown name 'elipse'"),
        (("--labeler", "ellipse", "--weights", "x.pth"), "has no options, got x.pth"),
        (("--labeler", "ellipse", "--config-file", "good.yaml"), "has no options, got good.yaml"),
        (("--labeler", "ellipse", "SEED", "3"), "has no options, got .'SEED', '3'"),
        ((*MAL, "absent.yaml"), "absent.yaml.* does not exist"),
        ((*MAL, "bad.yaml"), "bad.yaml.*NO_SUCH_KEY"),
        ((*MAL, "broken.yaml"), "broken.yaml"),  # no YAML
        ((*MAL, "empty.yaml"), "empty.yaml"),
        ((*MAL, "good.yaml", "MODEL.MAL.NO_SUCH_KEY", "1"), "options.*NO_SUCH_KEY"),
        ((*MAL, "good.yaml", "SEED"), "options.*odd length"),
        ((*MAL, "good.yaml", "MODEL", "1"), "options.*config key: MODEL"),  # a whole section
        ((*MAL, "good.yaml", "MODEL.MAL.ENCODER.STEM", "zz"), "good.yaml.*stem must be one of"),
    ],
)
def test_one_clear_error_for_bad_options(arguments, message, folder, monkeypatch):
    monkeypatch.chdir(folder)
    command = load_command("label")
    given = ["--boxes", "instances.json", "--images", ".", "--output", "labels.json", *arguments]
    with pytest.raises(DataError, match=message) as error:
        command.build_labeler(command.parse_args(given))
    assert len(str(error.value)) < 500


def test_a_bad_config_ends_the_command_in_one_line(folder):
    before = state(folder)
    assert_refused(run(folder, *MAL, "bad.yaml"), "NO_SUCH_KEY")
    assert state(folder) == before


def test_the_input_is_never_replaced(folder):
    before = state(folder)
    output = f"../{folder.name}/instances.json"
    assert_refused(run(folder, "--labeler", "ellipse", output=output), "would replace the input")
    assert state(folder) == before


def test_manifest_and_rejects_are_outputs_too():
    names = [path.name for path in output_paths("x/labels.json")]
    assert names == ["labels.json", "labels.rejects.jsonl", "labels.manifest.json"]


# The input of a shard does not fit; the labels do not.
@pytest.mark.parametrize("limit", [100, 1300])
def test_full_disk_changes_none_of_the_three_files_and_costs_no_work(limit, folder):
    for path in output_paths(folder / "labels.json"):
        path.write_text("old")
    before = state(folder)
    done = run(folder, "--labeler", "ellipse", start=("-c", SMALL_DISK.format(limit)))
    assert_refused(done, "File too large")
    assert state(folder) == before
    if limit == 1300:
        return
    assert run(folder, "--labeler", "ellipse").returncode == 0
    assert len(json.loads((folder / "labels.json").read_text())["annotations"]) == 8
    assert not (folder / "labels.json.job").exists()


def test_wrong_image_folder_does_not_pass_for_success(folder):
    (folder / "empty").mkdir()
    done = run(folder, "--labeler", "ellipse", "--images", "empty")
    assert_refused(done, "every image was rejected")
    rejects = (folder / "labels.rejects.jsonl").read_text().splitlines()
    assert len(rejects) == 8
    assert all("does not exist" in line for line in rejects)


def test_several_processes_give_the_bytes_of_one(folder):
    """By the command line, with workers that build their own labeler."""
    assert run(folder, "--labeler", "ellipse").returncode == 0
    before = state(folder)["labels.json"]
    done = run(folder, "--labeler", "ellipse", "--workers", "2", "--shard-boxes", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert state(folder)["labels.json"] == before


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand_it_says_how_to_go_on(name, folder):
    start = (
        "-c",
        "import os, runpy, signal, sys, pseudolabel.job.run as run; sys.argv = sys.argv[1:]; "
        f"run.merge = lambda *_: os.kill(os.getpid(), {int(name)}); "
        "runpy.run_path(sys.argv[0], run_name='__main__')",
    )
    done = run(folder, "--labeler", "ellipse", start=start)
    assert done.returncode == 130, done.stdout + done.stderr
    assert "Repeat the same command" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not (folder / "labels.json").exists()
    assert (folder / "labels.json.job/receipts/000000.json").is_file()
    done = run(folder, "--labeler", "ellipse")
    assert (done.returncode, "going on, 1 of 1 shards" in done.stdout) == (0, True)


def test_dry_run_prints_the_cost_and_writes_nothing(folder):
    before = state(folder)
    done = run(folder, "--labeler", "ellipse", "--dry-run", "--scale-to", "100000000")
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("EXTRAPOLATED to 100,000,000 from 8", "core-hours", "bottleneck", "disk: labels"):
        assert words in done.stdout
    assert state(folder) == before
    assert not (folder / "labels.json.job").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "0"), "--workers: 0 is none"),
        (("--shard", "2/2"), "'2/2' is no share"),
        (("--shard", "env"), "neither SLURM_ARRAY_TASK_ID nor RANK"),
        (("--shard", "0/2", "--restart"), "each task would undo the others"),
        (("--images-json", "instances.json"), "has images of its own"),
        (("--boxes", ""), "needs boxes and finds none itself"),
    ],
)
def test_options_that_cannot_be_meant(arguments, message, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = state(folder)
    command = load_command("label")
    given = ["--boxes", "instances.json", "--images", ".", "--output", "labels.json"]
    with pytest.raises(DataError, match=message):
        command.run(command.parse_args([*given, "--labeler", "ellipse", *arguments]))
    assert state(folder) == before
    assert not (folder / "labels.json.job").exists()


def test_a_cost_is_not_scaled_to_less_than_a_box(folder):
    done = run(folder, "--labeler", "ellipse", "--dry-run", "--scale-to", "-5")
    assert_refused(done, "--scale-to: -5")
