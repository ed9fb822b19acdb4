"""The labelling job: plan, inputs of all kinds, merge of many parts, shares, dry run."""

import gzip
import json
import os
import shutil
from collections import Counter

import pytest

from pseudolabel.errors import DataError
from pseudolabel.job import buckets, merge
from pseudolabel.job.dry_run import calibrate, describe_cost
from pseudolabel.job.inputs import JobInput
from pseudolabel.job.merge import add_counts
from pseudolabel.job.options import JobOptions
from pseudolabel.job.plan import Plan, default_shard_boxes, load_plan
from pseudolabel.job.ray_adapter import label_with_ray
from pseudolabel.job.receipt import read_receipt
from pseudolabel.job.run import merge_once, prepare, run_job
from pseudolabel.job.shard import label_shard, read_input
from pseudolabel.store import BoxFile
from tests.pseudolabel.job.made import (
    Blocks,
    Counting,
    assert_all_accounted_for,
    label,
    outputs,
    write_job,
)


@pytest.fixture
def folder(tmp_path):
    write_job(tmp_path)
    return tmp_path


@pytest.fixture
def kept(folder):
    """(folder of a job that is done, its plan)."""
    label(folder, keep_job=True)
    job = folder / "out/labels.json.job"
    return job, load_plan(job)


def test_plan_cuts_sorted_images_into_shards(kept, folder):
    job, plan = kept
    data = json.loads((folder / "boxes.json").read_text())
    boxes = Counter(a["image_id"] for a in data["annotations"])
    shards = [list(read_input(row, job)) for row in plan.rows]
    ids = [image.image["id"] for shard in shards for image in shard]
    assert ids == sorted(image["id"] for image in data["images"])
    for row, shard in zip(plan.rows, shards):
        assert row.annotations == sum(boxes[image.image["id"]] for image in shard)
        assert row.weight >= 4 or row is plan.rows[-1]
        assert all([a["id"] for a in i.boxes] == sorted(a["id"] for a in i.boxes) for i in shard)
    weights = [row.weight for row in plan.claiming_order()]
    assert weights == sorted(weights, reverse=True)
    assert plan.annotations == 60


def test_plan_is_a_function_of_the_input_alone(kept, folder, monkeypatch):
    """Byte for byte, and however many buckets sort the annotations."""
    job, plan = kept
    files = [path.read_bytes() for path in sorted(job.rglob("*")) if path.parent.name == "input"]
    shutil.rmtree(folder / "out")
    monkeypatch.setattr(buckets, "IMAGES", 2)
    monkeypatch.setattr(buckets, "HELD", 100)
    label(folder, keep_job=True)
    assert load_plan(job) == plan
    again = [path.read_bytes() for path in sorted(job.rglob("*")) if path.parent.name == "input"]
    assert again == files
    assert not [path for path in job.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("boxes", "size"),
    [(10, 250), (16_000, 500), (480_000, 15_000), (10**8, 15_000)],
)
def test_shard_size_follows_the_size_of_the_input(boxes, size):
    class Source:
        annotations_in, image_ids = boxes, range(5)

    assert default_shard_boxes(Source()) == size


def test_masks_of_the_input_are_not_carried_along(folder):
    data = json.loads((folder / "boxes.json").read_text())
    for annotation in data["annotations"]:
        region = {"size": [30, 40], "counts": [30, 10, 1160]}
        annotation["segmentation"] = region if annotation["iscrowd"] else [[1] * 6]
    (folder / "boxes.json").write_text(json.dumps(data))
    label(folder, keep_job=True)
    job = folder / "out/labels.json.job"
    images = [image for row in load_plan(job).rows for image in read_input(row, job)]
    assert {str(a["segmentation"]) for image in images for a in image.boxes} == {"None"}
    assert all(a["segmentation"] for image in images for a in image.crowds)


def test_a_shard_labelled_twice_is_labelled_once(kept, folder):
    job, plan = kept
    row, labeler = plan.rows[1], Counting()
    receipt = read_receipt(row, job)
    assert label_shard(row, labeler, job, folder) == receipt
    assert labeler.boxes == 0
    row.receipt_path(job).unlink()
    part = row.part_path(job).read_bytes()
    again = label_shard(row, labeler, job, folder)
    assert row.part_path(job).read_bytes() == part
    assert {**vars(again), "run": 0} == {**vars(receipt), "run": 0}


def test_a_labeler_that_is_not_the_one_of_the_plan_is_refused(kept, folder):
    job, plan = kept
    plan.rows[0].receipt_path(job).unlink()
    with pytest.raises(DataError, match="not the one of the plan"):
        label_shard(plan.rows[0], Counting("b"), job, folder)


def test_receipt_tells_hashes_counts_and_where_it_ran(kept):
    job, plan = kept
    receipt = read_receipt(plan.rows[0], job)
    counts = receipt.counts
    assert receipt.annotations_in == counts["annotations_out"] + counts["annotations_rejected"]
    assert (receipt.run["device"], receipt.run["dtype"]) == ("cpu", "float32")
    assert receipt.run["seconds"] >= 0
    assert receipt.run["host"]


def test_merge_names_the_shards_that_are_missing(kept, folder):
    job, plan = kept
    before = outputs(folder)
    for row in plan.rows[2:4]:
        row.receipt_path(job).unlink()
    with pytest.raises(DataError, match=r"2 of \d+ shards with \d+ boxes .*000002, 000003"):
        merge.merge(plan, job, folder / "out/labels.json")
    assert outputs(folder) == before


def test_merge_refuses_a_part_that_its_receipt_does_not_know(kept, folder):
    job, plan = kept
    path = plan.rows[2].part_path(job)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match=r"000002\.jsonl\.gz.*not the file of its receipt"):
        merge.merge(plan, job, folder / "out/labels.json")


@pytest.mark.parametrize(("fan_in", "shard_boxes"), [(2, 1), (3, 4), (64, 1)])
def test_merge_of_many_parts_in_several_rounds(fan_in, shard_boxes, folder, monkeypatch):
    label(folder)
    expected = outputs(folder)
    monkeypatch.setattr(merge, "FAN_IN", fan_in)
    label(folder, shard_boxes=shard_boxes)
    assert outputs(folder) == expected


def test_merge_refuses_an_id_that_comes_twice(kept, folder, monkeypatch):
    job, plan = kept
    twice = Plan(plan.identity, [*plan.rows, plan.rows[-1]], plan.head_sha256)
    with pytest.raises(DataError, match="comes twice"):
        merge.merge(twice, job, folder / "out/labels.json")


def test_two_merges_at_once_do_not_meet(kept, folder, monkeypatch):
    """The lease of one that was suspended for minutes is void; then it wakes up."""
    job, plan = kept
    before, real, other = outputs(folder), merge._manifest, folder / "other/labels.json"

    def manifest(*arguments):
        monkeypatch.setattr(merge, "_manifest", real)
        merge.merge(plan, job, other)
        return real(*arguments)

    monkeypatch.setattr(merge, "_manifest", manifest)
    merge.merge(plan, job, folder / "out/labels.json")
    assert outputs(folder) == before
    assert other.read_bytes() == before["labels.json"]
    assert not list(job.glob(".merge*"))


def test_counts_of_shards_add_up():
    parts = [{"n": 1, "by": {"b": 1}}, {"n": 2, "by": {"a": 5, "b": 1}}, {"n": 0, "by": {}}]
    assert add_counts(parts) == {"n": 3, "by": {"a": 5, "b": 2}}


def test_manifest_tells_the_run(folder):
    manifest = label(folder, workers=2)
    job = manifest["job"]
    assert (job["mode"], job["shard_boxes"], job["devices"]) == ("boxes", 4, ["cpu"])
    assert job["hosts"]
    assert manifest["counts"]["images"].keys() <= {"labelled", "empty", "rejected"}
    assert sum(manifest["counts"]["images"].values()) == job["images"] == 12
    assert json.loads((folder / "out/labels.manifest.json").read_text()) == manifest


def test_a_worker_that_fails_names_the_remedy(folder):
    class Failing(Counting):
        def label(self, image, boxes):
            os._exit(7)

    given = JobInput(folder, folder / "boxes.json")
    options = JobOptions(folder, folder / "out/labels.json", workers=2, start_method="fork")
    with pytest.raises(DataError, match=r"every worker failed \(status 7"):
        run_job(given, Counting(), Failing, options)
    label(folder, shard_boxes=None)
    assert_all_accounted_for(folder)


def results(folder):
    data = json.loads((folder / "boxes.json").read_text())
    rows = [
        {"image_id": a["image_id"], "category_id": 7, "bbox": a["bbox"], "score": 0.25 + k / 100}
        for k, a in enumerate(data["annotations"])
    ]
    (folder / "results.json").write_text(json.dumps(rows))
    return rows


def test_results_of_a_detector_get_ids_in_the_order_of_the_file(folder):
    rows = results(folder)
    manifest = label(folder, "results.json", images_json="boxes.json")
    labels = json.loads((folder / "out/labels.json").read_text())
    assert labels["info"] == {"year": 2026}
    assert [c["id"] for c in labels["categories"]] == [7]
    rejects = (folder / "out/labels.rejects.jsonl").read_text().splitlines()
    ids = {a["id"] for a in labels["annotations"]} | {json.loads(r)["id"] for r in rejects}
    assert ids == set(range(1, 61))
    for annotation in labels["annotations"]:
        given = rows[annotation["id"] - 1]
        assert given.items() <= annotation.items()
        assert annotation["iscrowd"] == 0
    assert manifest["images_json"] == "boxes.json"
    assert len(manifest["images_json_sha256"]) == 64


@pytest.mark.parametrize(
    ("change", "images_json", "problem"),
    [
        ({}, None, "results without images.*--images-json"),
        ({"image_id": 99999}, "boxes.json", "annotation 1.*unknown image_id 99999"),
        ({"category_id": 8}, "boxes.json", "annotation 1.*unknown category_id 8"),
        ({"score": 1.5}, "boxes.json", None),  # tolerated, as in a label file
        ({"bbox": [1, 2]}, "boxes.json", None),  # a reject of its own
    ],
)
def test_results_that_cannot_be_used(change, images_json, problem, folder):
    rows = results(folder)
    (folder / "results.json").write_text(json.dumps([{**rows[0], **change}, *rows[1:]]))
    if problem is None:
        assert label(folder, "results.json", images_json=images_json)["annotations_in"] == 60
        return
    with pytest.raises(DataError, match=problem):
        label(folder, "results.json", images_json=images_json)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_of_images_and_a_labeler_that_finds_its_boxes(workers, folder, tmp_path_factory):
    options = {"labeler": Blocks(), "output": tmp_path_factory.mktemp("out") / "labels.json"}
    manifest = label(folder, None, build=Blocks, workers=workers, **options)
    labels = json.loads(options["output"].read_text())
    assert [a["id"] for a in labels["annotations"]] == list(
        range(1, len(labels["annotations"]) + 1)
    )
    assert labels["categories"] == Blocks.categories
    by_image = Counter(a["image_id"] for a in labels["annotations"])
    for image in labels["images"]:
        assert (image["height"], image["width"]) == (30, 40)
        assert image["status"] == ("labelled" if by_image[image["id"]] else "empty")
    names = [image["file_name"] for image in labels["images"]]
    assert names == sorted(names)
    # 12 images, one of which is not there and one cut off.
    assert manifest["counts"]["images"]["rejected"] == 1
    assert sum(manifest["counts"]["images"].values()) == manifest["job"]["images"] == 11
    reject = json.loads(options["output"].with_suffix(".rejects.jsonl").read_text())
    assert (reject["id"], reject["reason"]) == (None, "image_unreadable")
    BoxFile(options["output"])


def test_images_of_a_json_without_boxes(folder):
    manifest = label(folder, None, Blocks(), images_json="boxes.json")
    labels = json.loads((folder / "out/labels.json").read_text())
    assert len(labels["images"]) == manifest["job"]["images"] == 12
    assert labels["categories"] == [{"id": 7, "name": "thing"}, *Blocks.categories]
    assert {a["category_id"] for a in labels["annotations"]} == {1}
    BoxFile(folder / "out/labels.json")
    assert [image["id"] for image in labels["images"]] == sorted(i["id"] for i in labels["images"])


def test_a_category_that_means_two_things(folder):
    data = json.loads((folder / "boxes.json").read_text())
    data["categories"] = [{"id": 1, "name": "dark"}]
    data["annotations"] = []
    (folder / "boxes.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="category 1 is 'dark', of the labeler 'bright'"):
        label(folder, None, Blocks(), images_json="boxes.json")


def test_a_folder_without_images(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        label(tmp_path, None, Blocks())
    with pytest.raises(DataError, match="is no folder"):
        JobInput(tmp_path / "x").open()


def test_dry_run_scales_what_it_measures(folder):
    source = BoxFile(folder / "boxes.json")
    cost = calibrate(source, Counting(), folder, 0, boxes=30)
    assert 0 < cost.sample_images <= 12
    cost.seconds = {"decode": 36.0, "network": 72.0, "write": 9.0}
    cost.images, cost.boxes, cost.sample_images, cost.sample_boxes = 100, 500, 10, 50
    assert cost.hours(2) == {"decode": 0.2, "network": 0.4, "write": 0.05}
    text = describe_cost(cost, source, None, 2)
    assert "100 images, 500 boxes" in text
    assert "0.33 core-hours (decode 31 %, network 62 %, write 8 %); bottleneck: network" in text
    text = describe_cost(cost, source, None, 1, scale_to=5000)
    assert "EXTRAPOLATED to 5,000 from 500: 1,000 images, 5,000 boxes" in text
    assert "3.25 core-hours" in text


def test_dry_run_of_boxes_that_are_none(folder):
    """The labeler is not taken for one that finds them."""
    data = json.loads((folder / "boxes.json").read_text())
    (folder / "boxes.json").write_text(json.dumps({**data, "annotations": []}))
    source = BoxFile(folder / "boxes.json")
    cost = calibrate(source, Counting(), folder, 0)
    assert (cost.boxes, cost.sample_boxes) == (0, 0)
    assert "plan: 12 images, 0 boxes, about 1 shards" in describe_cost(cost, source, None, 1)
    assert label(folder)["counts"]["annotations_out"] == 0


def test_dry_run_of_images_that_are_not_there(folder):
    (folder / "none").mkdir()
    with pytest.raises(DataError, match=r"none of .* images was labelled"):
        calibrate(BoxFile(folder / "boxes.json"), Counting(), folder / "none", 0)


def test_ray_gives_the_same_bytes(folder):
    pytest.importorskip("ray", reason="ray is not installed (pip install 'masksmith[ray]')")
    import ray

    label(folder)
    expected = outputs(folder)
    options = JobOptions(folder, folder / "out/labels.json", shard_boxes=4)
    prepare(JobInput(folder, folder / "boxes.json"), Counting(), options)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert label_with_ray(options.job, folder, Counting, workers=2) == 60
    finally:
        ray.shutdown()
    merge_once(load_plan(options.job), options)
    assert outputs(folder) == expected
