"""Real faults of the labelling job: kills, full disks, damaged files. No box is ever lost."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pseudolabel.errors import DataError
from pseudolabel.job.lease import acquire
from pseudolabel.job.plan import json_hash
from tests.pseudolabel.job.made import (
    Counting,
    Slow,
    assert_all_accounted_for,
    label,
    outputs,
    start,
    write_job,
)

ROOT = Path(__file__).resolve().parents[1]
KILLS = 50


@pytest.fixture
def folder(tmp_path):
    write_job(tmp_path)
    return tmp_path


@pytest.fixture
def undisturbed(folder):
    """The bytes that one process writes without any fault; rejects name the image's path."""
    label(folder)
    assert_all_accounted_for(folder)
    result = outputs(folder)
    shutil.rmtree(folder / "out")
    return result


def kill_group(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        # It has not made its group yet, or is done.
        process.kill()
    process.join()


@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_survive_kills_at_random_points(workers, folder, undisturbed):
    """Half of the kills fall anywhere in a whole run, half early in it, so that a job is resumed
    many times: in the plan, in shards, in the merge, in the clearing up."""
    rng, kills, within = random.Random(workers), 0, 0
    begin = time.monotonic()
    process = start(label, folder, workers=workers)
    process.join()
    whole = time.monotonic() - begin
    shutil.rmtree(folder / "out")
    while kills < KILLS // 2:
        process = start(label, folder, workers=workers)
        process.join(rng.uniform(0, whole * rng.choice([1.0, 0.4])))
        if process.is_alive():
            kill_group(process)
            kills += 1
            within += any((folder / "out/labels.json.job").glob("receipts/0*.json"))
            continue
        assert process.exitcode == 0
        assert outputs(folder) == undisturbed
        shutil.rmtree(folder / "out")
    assert within > KILLS // 10
    label(folder, workers=workers)
    assert outputs(folder) == undisturbed
    assert_all_accounted_for(folder)
    assert sorted(os.listdir(folder / "out")) == [
        *("labels.json", "labels.manifest.json", "labels.rejects.jsonl")
    ]


@pytest.mark.slow
def test_bytes_survive_kills_of_the_command(folder, undisturbed):
    """The real command with processes that are spawned, killed at 50 points of its run."""
    command = [sys.executable, str(ROOT / "tools/label.py"), "--labeler", "ellipse"]
    command += ["--boxes", "boxes.json", "--images", ".", "--output", "out/labels.json"]
    command += ["--shard-boxes", "4", "--workers", "2"]
    rng, kills = random.Random(0), 0
    while kills < KILLS:
        process = subprocess.Popen(
            command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL
        )
        try:
            assert process.wait(rng.uniform(0.3, 6)) == 0
            shutil.rmtree(folder / "out")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert subprocess.run(command, cwd=folder, check=False).returncode == 0
    assert outputs(folder)["labels.json"] == undisturbed["labels.json"]


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 2},
        {"workers": 5},
        {"shard_boxes": 1},  # other cuts
        {"shard_boxes": 10**6},  # one shard
        {"shard_boxes": None},
        {"seed": 7},
    ],
)
def test_bytes_do_not_depend_on_how_the_job_is_run(options, folder, undisturbed):
    label(folder, **options)
    assert outputs(folder) == undisturbed


def test_tasks_of_a_cluster_give_the_same_bytes(folder, undisturbed):
    """Three tasks one after the other; the last one finds everything done and merges."""
    assert label(folder, shard=(0, 3)) is None
    assert label(folder, shard=(2, 3)) is None
    assert not (folder / "out/labels.json").exists()
    assert label(folder, shard=(1, 3)) is not None
    assert outputs(folder) == undisturbed


def test_two_launchers_at_once(folder, undisturbed):
    launchers = [start(label, folder, workers=2) for _ in range(2)]
    for launcher in launchers:
        launcher.join()
    assert [launcher.exitcode for launcher in launchers] == [0, 0]
    assert outputs(folder) == undisturbed


def stoppable(folder, **options):
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        label(folder, labeler=Slow(), build=Slow, **options)
    except KeyboardInterrupt:
        os._exit(130)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_leaves_no_process_and_no_lease_to_wait_for(workers, folder, undisturbed):
    process = start(stoppable, folder, workers=workers)
    receipts = folder / "out/labels.json.job/receipts"
    deadline = time.monotonic() + 30
    while not list(receipts.glob("0*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    process.join()
    assert process.exitcode == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    # A signal that arrives while one is made or given up may leave it behind, void.
    left = [acquire(path) for path in (folder / "out/labels.json.job/leases").iterdir()]
    assert None not in left
    for lease in left:
        lease.release()
    again = Counting()
    label(folder, labeler=again)
    assert outputs(folder) == undisturbed
    # None where the stop came after the last shard.
    assert again.boxes < 50


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_receipt(path, sound=True, **values):
    """`sound`: with the hash of the changed receipt."""
    facts = {**json.loads(path.read_text()), **values}
    own = facts.pop("sha256")
    path.write_text(json.dumps({**facts, "sha256": json_hash(facts) if sound else own}))


def count_no_rejects(path):
    counts = {**json.loads(path.read_text())["counts"], "annotations_rejected": 0, "rejects": {}}
    change_receipt(path, sound=False, counts=counts)


@pytest.mark.parametrize(
    "damage",
    [
        lambda part, receipt: cut_in_half(part),  # a half-written part
        lambda part, receipt: part.unlink(),  # a receipt without a part
        lambda part, receipt: part.write_bytes(b""),
        lambda part, receipt: part.write_bytes(part.read_bytes()[:-1] + b"x"),  # one byte
        lambda part, receipt: receipt.unlink(),  # a part without a receipt
        lambda part, receipt: cut_in_half(receipt),
        lambda part, receipt: receipt.write_bytes(b""),
        lambda part, receipt: receipt.write_text("[]"),
        lambda part, receipt: receipt.write_text('{"shard": 1}'),
        lambda part, receipt: receipt.write_text('{"shard":' + "[" * 100_000),  # nested too deep
        lambda part, receipt: count_no_rejects(receipt),  # the part cannot tell
        lambda part, receipt: change_receipt(receipt, input_sha256="0" * 64),  # of another plan
        lambda part, receipt: change_receipt(receipt, annotations_in=1000),
        lambda part, receipt: change_receipt(receipt, ids_sha256="0" * 64),
        lambda part, receipt: change_receipt(receipt, counts={"images": 5}),
    ],
)
def test_a_damaged_shard_and_no_other_is_labelled_again(damage, folder, undisturbed):
    label(folder, keep_job=True)
    job = folder / "out/labels.json.job"
    damage(job / "parts/000002.jsonl.gz", job / "receipts/000002.json")
    again = Counting()
    manifest = label(folder, labeler=again, keep_job=True)
    assert outputs(folder) == undisturbed
    assert 0 < again.boxes < 15 < manifest["annotations_in"] == 60
    untouched = Counting()
    label(folder, labeler=untouched)
    assert untouched.boxes == 0


@pytest.mark.parametrize(
    ("name", "problem"),
    [("plan.json", "plan.json: is damaged"), ("head.json", "head.json: is damaged")],
)
@pytest.mark.parametrize("damage", [cut_in_half, lambda path: path.write_text('{"rows": []}')])
def test_a_damaged_plan_is_refused_and_restart_helps(name, problem, damage, folder, undisturbed):
    label(folder, keep_job=True)
    damage(folder / "out/labels.json.job" / name)
    with pytest.raises(DataError, match=rf"{problem}.*--restart"):
        label(folder)
    label(folder, restart=True)
    assert outputs(folder) == undisturbed


def test_a_damaged_input_of_a_shard_is_refused(folder):
    label(folder, keep_job=True)
    job = folder / "out/labels.json.job"
    (job / "receipts/000001.json").unlink()
    cut_in_half(job / "input/000001.jsonl.gz")
    with pytest.raises(DataError, match=r"000001\.jsonl\.gz.*not the file of the plan.*--restart"):
        label(folder)


def under_limit(folder, size, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    label(folder, **options)


@pytest.mark.parametrize("size", [150, 400, 1000, 4000, 9000])  # input, part, plan, labels
def test_full_disk_at_any_stage_costs_no_finished_shard(size, folder, undisturbed):
    process = start(under_limit, folder, size)
    process.join()
    assert process.exitcode == 3
    assert not (folder / "out/labels.json").exists()
    finished = len(list((folder / "out/labels.json.job/receipts").glob("0*.json")))
    again = Counting()
    label(folder, labeler=again)
    assert outputs(folder) == undisturbed
    assert finished == 0 or again.boxes < 50


def test_full_disk_at_the_merge_keeps_the_former_labels(folder, undisturbed):
    label(folder, keep_job=True)
    before = outputs(folder)
    process = start(under_limit, folder, 3000)
    process.join()
    assert process.exitcode == 3
    assert outputs(folder) == before


def test_output_folder_that_cannot_be_made(folder):
    """Stands in for a read-only folder, since root may write anywhere."""
    (folder / "out").write_text("a file")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        label(folder)
    assert (folder / "out").read_text() == "a file"


def test_substituted_and_escaping_images_are_rejects(folder):
    """An image that is not the one of the JSON's hash; a name that leaves the image folder."""
    outside = folder.parent / "outside.png"
    Image.new("RGB", (40, 30)).save(outside)
    data = json.loads((folder / "boxes.json").read_text())
    keys = [image["id"] for image in data["images"]]
    by_image = {k: [a["id"] for a in data["annotations"] if a["image_id"] == k] for k in keys}
    data["images"][4]["sha256"] = "0" * 64
    data["images"][5]["file_name"] = "../outside.png"
    (folder / "boxes.json").write_text(json.dumps(data))
    label(folder)
    assert_all_accounted_for(folder)
    lines = (folder / "out/labels.rejects.jsonl").read_text().splitlines()
    details = {row["id"]: row["detail"] for row in map(json.loads, lines)}
    assert by_image[keys[4]]
    assert by_image[keys[5]]
    assert all("not the file of the JSON's sha256" in details[key] for key in by_image[keys[4]])
    assert all("not a path below the image" in details[key] for key in by_image[keys[5]])
    assert all(details[key].startswith("boxes.json: ") for key in by_image[keys[5]])


def test_an_image_that_is_replaced_between_two_runs(folder):
    """Finished shards stay. One of the same size is not noticed and becomes a reject where it has
    not been labelled yet; another size among the files that the job has looked at is refused."""
    label(folder, shard=(0, 2))
    for path in folder.glob("*.png"):
        path.write_bytes(b"x" * path.stat().st_size)
    manifest = label(folder)
    assert_all_accounted_for(folder)
    assert 0 < manifest["counts"]["annotations_rejected"] < 60
    assert manifest["counts"]["annotations_out"] > 0
    label(folder, shard=(0, 2), seed=1)
    sorted(folder.glob("*.png"))[0].write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1 of 12 image files .* bytes, now 6 bytes.*--restart"):
        label(folder, seed=1)
