"""tools/label.py: what it refuses, and that it then changes nothing."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mal.data  # noqa: F401  (registers its pipeline)
from mal.mask_auto_labeler import MaskAutoLabeler
from pseudolabel.errors import DataError
from pseudolabel.store import output_paths
from tests.pseudolabel.job.made import FOREIGN
from tests.tiny import tiny_config, write_coco
from tests.tools.commands import ROOT, load_command


@pytest.fixture
def folder(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "bad.yaml").write_text("MODEL: {MAL: {NO_SUCH_KEY: 1}}")
    (tmp_path / "broken.yaml").write_text("{")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "good.yaml").write_text("VERSION: 2")
    return tmp_path


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """The bytes of the labels of an undisturbed run, whatever the folder."""
    place = tmp_path_factory.mktemp("undisturbed")
    write_coco(place)
    assert run(place, "--labeler", "ellipse").returncode == 0
    return (place / "labels.json").read_bytes()


def run(folder, *arguments, output="labels.json", start=()):
    command = [sys.executable, *start, str(ROOT / "tools/label.py"), "--images", "."]
    command += ["--boxes", "instances.json", "--output", output, *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, start_new_session=True
    )


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
        ((*MAL, "good.yaml", "MODEL.MAL.ENCODER.STEM", "zz"), "ENCODER: stem must be one of"),
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


# Where the disk is full: name -> (module, function in whose calls nothing can be written).
STAGES = {
    "plan": ("run", "make_plan"),
    "part": ("shard", "write_part"),
    "receipt": ("shard", "write_receipt"),
    "labels": ("run", "merge"),
    "manifest": ("merge", "_manifest"),
}
FULL = """
import importlib, resource, runpy, sys
module, name = importlib.import_module("pseudolabel.job.{0}"), "{1}"
real = getattr(module, name)
def on_a_full_disk(*arguments, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
    return real(*arguments, **options)
setattr(module, name, on_a_full_disk)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("stage", STAGES)
def test_full_disk_changes_none_of_the_three_files_and_costs_no_work(stage, folder, labels):
    """A limit on the size of files, from the named stage on, stands in for a full disk."""
    for path in output_paths(folder / "labels.json"):
        path.write_text("old")
    before = state(folder)
    start = ("-c", FULL.format(*STAGES[stage]))
    assert_refused(run(folder, "--labeler", "ellipse", start=start), "File too large")
    assert state(folder) == before
    done = run(folder, "--labeler", "ellipse")
    assert done.returncode == 0, done.stdout
    assert ("going on, 1 of 1 shards" in done.stdout) == (stage in ("labels", "manifest"))
    assert state(folder)["labels.json"] == labels
    assert not (folder / "labels.json.job").exists()


def test_a_disk_that_is_really_full(folder, labels):
    """A file system of 64 kB, where one can be mounted."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        rest = disk / "rest"
        rest.write_bytes(bytes(48 << 10))
        assert_refused(run(folder, "--labeler", "ellipse", output="disk/a.json"), "No space left")
        rest.unlink()
        assert run(folder, "--labeler", "ellipse", output="disk/a.json").returncode == 0
        assert (disk / "a.json").read_bytes() == labels
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_output_folder_that_cannot_be_written(folder):
    """Not even by root, who may write into any other folder."""
    if not Path("/sys/kernel").is_dir():
        pytest.skip("no /sys here")
    before = state(folder)
    done = run(folder, "--labeler", "ellipse", output="/sys/kernel/labels.json")
    assert_refused(done, "/sys/kernel/labels.json")
    assert state(folder) == before


def test_wrong_image_folder_does_not_pass_for_success(folder):
    """Nor does the command when it is given again; the job shows what happened."""
    (folder / "empty").mkdir()
    for _ in range(2):
        done = run(folder, "--labeler", "ellipse", "--images", "empty")
        assert_refused(done, "every image was rejected")
        assert (folder / "labels.json.job/plan.json").is_file()
    rejects = (folder / "labels.rejects.jsonl").read_text().splitlines()
    assert len(rejects) == 8
    assert all("does not exist" in line for line in rejects)
    assert_refused(run(folder, "--labeler", "ellipse"), "4 of 4 image files")
    assert run(folder, "--labeler", "ellipse", "--restart").returncode == 0
    assert not (folder / "labels.json.job").exists()


def test_given_again_it_says_that_it_has_finished(folder):
    assert run(folder, "--labeler", "ellipse").returncode == 0
    before = state(folder)
    for more in ((), ("--shard", "1/2")):
        done = run(folder, "--labeler", "ellipse", *more)
        assert done.returncode == 0
        assert "finished: labels.json is complete" in done.stdout
        assert state(folder) == before


def test_several_processes_give_the_bytes_of_one(folder):
    """By the command line, with workers that build their own labeler."""
    assert run(folder, "--labeler", "ellipse").returncode == 0
    before = state(folder)["labels.json"]
    done = run(folder, "--labeler", "ellipse", "--workers", "2", "--shard-boxes", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert state(folder)["labels.json"] == before


def test_several_processes_give_the_bytes_of_one_with_a_network(folder, monkeypatch):
    """A tiny MAL, whose sums could depend on threads, batches and shards."""
    cfg = tiny_config("mal/sample", folder / "instances.json", folder / "mal")
    torch.manual_seed(0)
    torch.save({"model": MaskAutoLabeler(cfg).state_dict()}, folder / "x.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    monkeypatch.chdir(folder)
    command = load_command("label")
    given = ["--boxes", "instances.json", "--images", ".", "--output", "one.json"]
    assert command.run(command.parse_args([*given, *MAL, "config.yaml"])) == 0
    several = ("--workers", "2", "--shard-boxes", "2")
    done = run(folder, *several, *MAL, "config.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert state(folder)["labels.json"] == state(folder)["one.json"]
    manifest = json.loads((folder / "labels.manifest.json").read_text())
    assert manifest["job"]["shards"] == 4
    assert manifest["counts"]["mask_source"] == {"model": 8}


# Where a signal comes: in the merge, in an import, in the building of a labeler, and between the
# first and the second worker, as a terminal sends it: to all processes of the command.
AT_MERGE = "import pseudolabel.job.run as run; run.merge = lambda *_: kill()"
AT_IMPORT = """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "{0}":
            kill()
sys.meta_path.insert(0, Finder())
"""
AT_BUILD = "import pseudolabel.yardsticks as y; y.Yardstick.__init__ = lambda *_: kill()"
AT_CHILD = """
import multiprocessing.process, time
real = multiprocessing.process.BaseProcess.start
def start(process):
    real(process)
    time.sleep({0})
    os.killpg(0, number)
multiprocessing.process.BaseProcess.start = start
"""
STOP = """
import os, runpy, signal, sys
number = {0}
# The tests themselves may run in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
def kill():
    os.kill(os.getpid(), number)
{1}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("number", "where", "begun"),
    [
        (signal.SIGINT, AT_MERGE, True),
        (signal.SIGTERM, AT_MERGE, True),
        (signal.SIGINT, AT_IMPORT.format("numpy"), False),
        (signal.SIGTERM, AT_IMPORT.format("pseudolabel.job.shard"), False),
        (signal.SIGINT, AT_IMPORT.format("pseudolabel.yardsticks"), False),
        (signal.SIGINT, AT_BUILD, False),
        (signal.SIGINT, AT_CHILD.format(0), None),  # its Python is starting
        (signal.SIGINT, AT_CHILD.format(0.3), None),  # its imports
        (signal.SIGTERM, AT_CHILD.format(0.3), None),
    ],
)
def test_stopped_by_hand_it_says_how_to_go_on(number, where, begun, folder, labels):
    command = STOP.format(int(number), where)
    several = ("--workers", "2", "--shard-boxes", "2") if begun is None else ()
    done = run(folder, "--labeler", "ellipse", *several, start=("-c", command))
    assert done.returncode == 130, done.stdout + done.stderr
    assert done.stdout.count("Repeat the same command") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (folder / "labels.json").exists()
    if begun is not None:
        assert (folder / "labels.json.job/receipts/000000.json").is_file() == begun
    done = run(folder, "--labeler", "ellipse", *several)
    assert done.returncode == 0
    assert ("going on, 1 of 1 shards" in done.stdout) == bool(begun)
    assert state(folder)["labels.json"] == labels


@pytest.fixture
def module(folder, monkeypatch):
    """A module of someone else, where Python finds it."""
    place = folder / "elsewhere"
    place.mkdir()
    (place / "made_labelers.py").write_text(FOREIGN)
    monkeypatch.setenv("PYTHONPATH", str(place), prepend=os.pathsep)
    return place


def test_a_labeler_from_a_module_of_someone_else(folder, module):
    """With processes that import it again; its code is part of what a job depends on."""
    arguments = ("--labeler", "made_labelers:Middle", "--boxes", "", "--shard-boxes", "2")
    done = run(folder, *arguments, "--workers", "2", "--keep-job")
    assert done.returncode == 0, done.stdout + done.stderr
    labels = json.loads((folder / "labels.json").read_text())
    assert len(labels["annotations"]) == len(labels["images"]) == 4
    (module / "made_labelers.py").write_text(FOREIGN.replace("w / 4", "w / 5"))
    assert_refused(run(folder, *arguments), "the code of made_labelers has changed")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": x}])
@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_checkpoint_that_would_run_code_is_refused(save, wrap, folder, monkeypatch):
    monkeypatch.chdir(folder)
    marker, weights = folder / "it_ran", folder / "x.pth"
    save(wrap(Malicious(marker)), weights)
    command = load_command("label")
    given = ["--boxes", "instances.json", "--images", ".", "--output", "labels.json"]
    config = str(ROOT / "configs/mal/sample.yaml")
    args = command.parse_args([*given, "--labeler", "mal", "--weights", "x.pth"])
    args.config_file, args.opts = config, ["MODEL.MAL.ENCODER.DEPTH", "1"]
    before = state(folder)
    with pytest.raises(DataError, match=r"x\.pth: not a safe checkpoint"):
        command.run(args)
    assert not marker.exists()
    assert state(folder) == before


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
