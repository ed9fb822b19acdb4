"""A job that is begun again: what it goes on with, what it refuses, and what is done already."""

import json
import re
import shutil

import pytest

from pseudolabel.errors import DataError
from pseudolabel.files import file_hash
from pseudolabel.job import identity, receipt
from tests.pseudolabel.job.made import Counting, label, outputs, write_job


@pytest.fixture
def folder(tmp_path):
    write_job(tmp_path)
    return tmp_path


@pytest.fixture
def undisturbed(folder):
    """The bytes that one process writes without any fault."""
    label(folder)
    result = outputs(folder)
    shutil.rmtree(folder / "out")
    return result


def other_input(folder):
    path = folder / "boxes.json"
    path.write_text(path.read_text().replace("2026", "2027"))


@pytest.mark.parametrize(
    ("change", "options", "named"),
    [
        (None, {"labeler": Counting("b" * 64)}, r"labeler.weights_sha256 was .aaa.*, is .bbb"),
        (None, {"seed": 1}, "seed was 0, is 1"),
        (None, {"shard_boxes": 5}, "shard_boxes was 4, is 5"),
        (other_input, {}, "input_sha256 was "),
    ],
)
def test_resume_with_another_command_is_refused_by_name(change, options, named, folder):
    label(folder, shard=(0, 2))
    if change:
        change(folder)
    with pytest.raises(DataError, match=rf"{named}.*--restart") as error:
        label(folder, **options)
    assert str(error.value).count(" was ") == 1
    assert label(folder, **options, restart=True)["annotations_in"] == 60


def test_resume_with_another_image_folder_is_refused(folder, tmp_path_factory):
    label(folder, shard=(0, 2))
    other = tmp_path_factory.mktemp("other")
    with pytest.raises(DataError, match=r"1[01] of 12 image files .*now missing.*--restart"):
        label(folder, images=other)
    for path in folder.glob("*.png"):
        shutil.copy(path, other)
    assert label(folder, images=other)["annotations_in"] == 60


VERSIONS = {"Pillow": "11.0", "python": "3.9.1", "opencv": None, "numpy": "1.0", "torch": "2.0"}


@pytest.mark.parametrize("name", VERSIONS)
def test_resume_with_another_library_is_refused_by_name(name, folder, monkeypatch):
    real = identity.versions()
    monkeypatch.setattr(identity, "versions", lambda: {**real, name: VERSIONS[name]})
    label(folder, shard=(0, 2))
    monkeypatch.undo()
    then = VERSIONS[name] or "absent"
    named = f"begun with {name} {then}, this is {real[name]}"
    with pytest.raises(DataError, match=f"{re.escape(named)}.*--restart"):
        label(folder)


def test_resume_with_changed_code_is_refused_by_name(folder, monkeypatch):
    label(folder, shard=(0, 2))
    for name in ("pseudolabel", "mal", "detectron2", Counting.__module__):
        real = identity.code_hashes(Counting())
        assert len(real[name]) == 64
        monkeypatch.setattr(identity, "code_hashes", lambda _, n=name, r=real: {**r, n: "0" * 64})
        with pytest.raises(DataError, match=f"command: the code of {name} has changed since"):
            label(folder)
        monkeypatch.undo()


def test_hash_of_a_package_follows_its_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"masksmith_made_{k}" for k in range(4)]
    for name, file, text in zip(names, "aaba", ["1", "1", "1", "2"]):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "inner" / f"{file}.py").write_text(text)
    first, same, renamed, other = map(identity.package_hash, names)
    assert first == same
    assert len({first, renamed, other}) == 3


@pytest.mark.parametrize("options", [{}, {"shard": (0, 2)}, {"shard": (1, 2)}, {"workers": 2}])
def test_a_finished_command_given_again_does_nothing(options, folder, undisturbed, caplog):
    label(folder)
    files = {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    again = Counting()
    with caplog.at_level("INFO"):
        assert label(folder, labeler=again, **options)["annotations_in"] == 60
    assert "finished: " in caplog.text
    assert again.boxes == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()} == files


@pytest.mark.parametrize(
    "options", [{"restart": True}, {"seed": 3}, {"labeler": Counting("b" * 64)}]
)
def test_a_finished_job_is_done_again_where_it_is_another(options, folder):
    label(folder)
    again = options.setdefault("labeler", Counting())
    again.boxes = 0
    label(folder, **options)
    assert again.boxes > 40


@pytest.mark.parametrize("keep", [False, True])
def test_labels_that_were_corrected_by_hand_are_not_replaced(keep, folder):
    """Also where the folder of the job has been kept, from which they would be merged again."""
    label(folder, keep_job=keep)
    path = folder / "out/labels.json"
    path.write_text(path.read_text().replace("2026", "2027"))
    with pytest.raises(DataError, match=r"labels.json: has been changed since.*--restart"):
        label(folder)
    assert "2027" in path.read_text()
    label(folder, restart=True, keep_job=keep)
    assert "2026" in path.read_text()
    path.unlink()
    label(folder)
    assert "2026" in path.read_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("versions", 5),
        ("code", ["pseudolabel"]),
        ("labeler", "ellipse"),
        ("seed", {"seed": 0}),
        ("image_files", 5),
        ("image_files", [5, None]),
        ("image_files", [{"file_name": ["a"], "coco_url": 3}]),
        (None, None),  # nested too deep
    ],
)
def test_a_manifest_that_says_nothing_is_none(key, value, folder, undisturbed):
    label(folder)
    path = folder / "out/labels.manifest.json"
    manifest = json.loads(path.read_text())
    manifest["job"]["identity"][key] = value
    path.write_text(json.dumps(manifest) if key else '{"job":' + "[" * 100_000)
    again = Counting()
    label(folder, labeler=again)
    assert again.boxes > 40
    assert outputs(folder) == undisturbed
    assert json.loads(path.read_text())["job"]["identity"]["seed"] == 0


def test_two_outputs_that_would_share_rejects_and_manifest(folder, undisturbed):
    label(folder)
    before = (folder / "out/labels.manifest.json").read_bytes()
    for restart in (False, True):
        with pytest.raises(DataError, match=r"labels\.manifest\.json: belongs to labels\.json"):
            label(folder, output=folder / "out/labels.txt", restart=restart)
    assert outputs(folder) == undisturbed
    assert (folder / "out/labels.manifest.json").read_bytes() == before
    (folder / "out/labels.json").unlink()
    label(folder, output=folder / "out/labels.txt")
    assert (folder / "out/labels.txt").read_bytes() == undisturbed["labels.json"]


@pytest.mark.parametrize("names", [["plan.json"], ["plan.json", "notes.txt"], ["head.json", "a"]])
@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(names, restart, folder):
    """It has the name of the job's, and a plan of its own perhaps."""
    job = folder / "out/labels.json.job"
    job.mkdir(parents=True)
    for name in names:
        (job / name).write_text("{}")
    with pytest.raises(DataError, match="is no folder of a labelling job") as error:
        label(folder, restart=restart)
    assert "--restart" not in str(error.value)
    assert sorted(path.name for path in job.iterdir()) == sorted(names)


def test_a_task_reads_the_parts_of_its_own_shards_only(folder, undisturbed, monkeypatch):
    """All of them once, at the merge."""
    label(folder, shard=(0, 3))
    label(folder, shard=(1, 3))
    read = []
    monkeypatch.setattr(receipt, "file_hash", lambda path: read.append(path) or file_hash(path))
    assert label(folder, shard=(1, 3)) is None
    shards = len(list((folder / "out/labels.json.job/input").iterdir()))
    assert 0 < len(read) <= -(-shards // 3)
    read.clear()
    label(folder, shard=(2, 3))
    assert len(read) == shards
    assert outputs(folder) == undisturbed


def test_a_part_of_another_task_that_was_damaged_is_labelled_again(folder, undisturbed):
    """Its size tells nothing: the last task finds out at the merge; repeated, its own does it."""
    label(folder, shard=(0, 2))
    path = max((folder / "out/labels.json.job/parts").iterdir())
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match=f"{path.name}: is .*not the file of its receipt.*all its"):
        label(folder, shard=(1, 2))
    assert label(folder, shard=(1, 2)) is None
    again = Counting()
    assert label(folder, shard=(0, 2), labeler=again) is not None
    assert 0 < again.boxes < 15
    assert outputs(folder) == undisturbed
