"""The labelling job: every box in is one accounted-for record out."""

import hashlib
import json
import os

import numpy as np
import pytest
from PIL import Image

import pseudolabel.yardsticks  # noqa: F401  (registers the labelers)
from pseudolabel.errors import DataError
from pseudolabel.job.inputs import JobInput
from pseudolabel.job.options import JobOptions
from pseudolabel.job.plan import FOLDERS
from pseudolabel.job.run import run_job
from pseudolabel.labeler import LABELERS
from pseudolabel.masks import decode_segmentation
from pseudolabel.store import BoxFile
from pseudolabel.validation import read_checked

WIDTH, HEIGHT = 40, 30
IMAGE = {"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT, "status": "labelled"}


def box(key, bbox, image=1, **more):
    return {"id": key, "image_id": image, "category_id": 7, "bbox": bbox, **more}


def write_boxes(folder, annotations, images=(1,), **more):
    """A boxes JSON with its images; image k is `k.png`."""
    for key in images:
        pixels = np.random.default_rng(key).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{key}.png")
    entries = [{"id": k, "file_name": f"{k}.png", "width": WIDTH, "height": HEIGHT} for k in images]
    data = {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "thing"}],
        **more,
    }
    (folder / "boxes.json").write_text(json.dumps(data))
    return folder / "boxes.json"


def run(folder, path, name="ellipse"):
    labeler = LABELERS.get(name)()
    options = JobOptions(images=folder, output=folder / "labels.json")
    manifest = run_job(JobInput(folder, path), labeler, LABELERS.get(name), options)
    rejects = (folder / "labels.rejects.jsonl").read_text().splitlines()
    labels = json.loads((folder / "labels.json").read_text())
    return labels, [json.loads(line) for line in rejects], manifest


@pytest.mark.parametrize("name", ["filled_box", "ellipse", "grabcut"])
def test_one_record_per_box_with_everything_copied(name, tmp_path):
    annotations = [
        box(9, [4.5, 3.25, 20, 18], note="kept", score=0.7),
        box(3, [0, 0, 40, 30]),  # the whole image
        box(5, [30, 20, 25, 25]),  # leaves the image
        box(4, [7, 7, 1.5, 9]),  # too thin to show a shape
    ]
    path = write_boxes(tmp_path, annotations, info={"year": 2026})
    labels, rejects, manifest = run(tmp_path, path, name)
    assert [a["id"] for a in labels["annotations"]] == [3, 4, 5, 9]
    assert rejects == []
    given = {a["id"]: a for a in annotations}
    for label in labels["annotations"]:
        assert given[label["id"]].items() <= label.items()
        mask = decode_segmentation(label["segmentation"], HEIGHT, WIDTH)
        assert mask.sum() == label["area"] > 0
        assert 0 <= label["quality"] <= 1
        assert label["iscrowd"] == 0
    assert labels["annotations"][1]["mask_source"] == "filled_tiny"
    assert "score" not in labels["annotations"][0]
    assert labels["info"] == {"year": 2026}
    assert labels["images"][0]["status"] == "labelled"
    assert manifest["annotations_in"] == 4
    assert manifest["counts"]["annotations_out"] == 4
    assert manifest["labeler"]["name"] == name


def test_crowds_keep_their_region_and_never_get_a_model_mask(tmp_path):
    runs = {"size": [HEIGHT, WIDTH], "counts": [30, 10, HEIGHT * WIDTH - 40]}
    annotations = [
        box(1, [0, 0, 9, 9], iscrowd=1, segmentation=runs),  # own region, uncompressed RLE
        box(2, [5, 5, 10, 10], iscrowd=1),  # no region: the box
    ]
    labels, _, _ = run(tmp_path, write_boxes(tmp_path, annotations))
    first, second = labels["annotations"]
    assert (first["area"], first["mask_source"], first["iscrowd"]) == (10, "input", 1)
    assert (second["area"], second["mask_source"], second["iscrowd"]) == (100, "filled_tiny", 1)


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([1, 1, 0, 5], "box_degenerate"),  # no width
        ([1, 1, 5, -2], "box_degenerate"),  # negative height
        ([50, 1, 5, 5], "box_outside"),  # right of the image
        ([-9, 1, 5, 5], "box_outside"),  # left of it
        ([1, 1, 5], "box_malformed"),  # three numbers
        ([1, 1, "5", 5], "box_malformed"),  # text
        (None, "box_malformed"),  # missing
        ([1, 1, True, 5], "box_malformed"),  # no number
        ([float("nan"), 1, 5, 5], "box_malformed"),  # Python reads and writes it
        ([1, 1, float("inf"), 5], "box_malformed"),
        ([1, 1, 10**400, 5], "box_malformed"),  # an integer that is no float
        ([1e308, 1, 1e308, 5], "box_malformed"),  # its far corner is infinite
    ],
)
def test_bad_box_is_rejected_alone(bbox, reason, tmp_path):
    path = write_boxes(tmp_path, [box(1, bbox), box(2, [3, 3, 9, 9])])
    labels, rejects, manifest = run(tmp_path, path)
    assert [a["id"] for a in labels["annotations"]] == [2]
    assert [(r["id"], r["reason"]) for r in rejects] == [(1, reason)]
    assert manifest["counts"]["rejects"] == {reason: 1}
    # A box that JSON can hold is repeated as it is; the others as text.
    quoted = bbox if reason != "box_malformed" or bbox is None else repr(bbox)[:200]
    assert rejects[0]["bbox"] == quoted


REGION = {"size": [HEIGHT, WIDTH], "counts": [30, 10, HEIGHT * WIDTH - 40]}


@pytest.mark.parametrize(
    ("crowd", "detail"),
    [
        ({"segmentation": [[1, 1, 5, 5]]}, "three finite x, y pairs"),  # a polygon of 4 numbers
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, "is for a"),  # of another size
        ({"segmentation": {"size": None, "counts": [81]}}, "malformed"),  # of no size
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [10**12]}}, "malformed"),
        ({"segmentation": [[float("nan")] * 6]}, "three finite x, y pairs"),
        ({"segmentation": {**REGION, "counts": [HEIGHT * WIDTH]}}, "has no pixel"),
        ({"bbox": None}, "box_malformed"),
        ({"bbox": [float("nan"), 1, 5, 5], "segmentation": REGION}, "box_malformed"),
        ({"bbox": [90, 1, 5, 5]}, "box_outside"),  # would be an empty mask
    ],
)
def test_bad_crowd_is_rejected_alone(crowd, detail, tmp_path):
    bad = {**box(1, [1, 1, 5, 5], iscrowd=1), **crowd}
    path = write_boxes(tmp_path, [bad, box(2, [3, 3, 9, 9])])
    labels, rejects, _ = run(tmp_path, path)
    assert [a["id"] for a in labels["annotations"]] == [2]
    assert [(r["id"], r["reason"]) for r in rejects] == [(1, "crowd_malformed")]
    assert detail in rejects[0]["detail"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:60]),  # truncated
        lambda path: path.write_bytes(b""),  # 0 bytes
        lambda path: path.unlink(),  # missing
        lambda path: Image.new("RGB", (8, 8)).save(path),  # another size than the JSON's
    ],
)
def test_corrupt_image_is_a_named_reject(damage, tmp_path):
    annotations = [box(1, [3, 3, 9, 9]), box(2, [3, 3, 9, 9], image=2), box(3, [1, 1, 5, 5])]
    path = write_boxes(tmp_path, annotations, images=(1, 2))
    damage(tmp_path / "1.png")
    labels, rejects, _ = run(tmp_path, path)
    assert [a["id"] for a in labels["annotations"]] == [2]
    assert [(r["id"], r["reason"]) for r in rejects] == [(1, "image_unreadable")] + [
        (3, "image_unreadable")
    ]
    assert all("1.png" in r["detail"] and "Remedy" in r["detail"] for r in rejects)
    assert [i["status"] for i in labels["images"]] == ["rejected", "labelled"]


def test_image_without_boxes_is_empty(tmp_path):
    labels, _, _ = run(tmp_path, write_boxes(tmp_path, [box(1, [3, 3, 9, 9])], images=(1, 2)))
    assert [i["status"] for i in labels["images"]] == ["labelled", "empty"]


@pytest.mark.parametrize("more", [{}, {"iscrowd": 1}])
def test_image_whose_boxes_are_all_rejected_is_not_empty(more, tmp_path):
    labels, _, _ = run(tmp_path, write_boxes(tmp_path, [box(1, [90, 3, 9, 9], **more)]))
    assert [i["status"] for i in labels["images"]] == ["rejected"]


def test_agreement_of_another_labeler_goes(tmp_path):
    path = write_boxes(tmp_path, [box(1, [3, 3, 9, 9], agreement=0.9, quality=0.1)])
    label = run(tmp_path, path)[0]["annotations"][0]
    assert "agreement" not in label
    assert label["quality"] != 0.1


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([box(1, [1, 1, 5, 5]), box(1, [2, 2, 5, 5])], "annotation 1.*occurs twice"),
        ([box("1", [1, 1, 5, 5])], "position 0.*id is '1', text"),  # id as text
        ([box(1, [1, 1, 5, 5], image=8)], "annotation 1.*unknown image_id 8"),
        ([{**box(1, [1, 1, 5, 5]), "category_id": 2}], "annotation 1.*unknown category_id 2"),
        ([box(1, [1, 1, 5, 5], image=[1])], r"annotation 1.*unknown image_id \[1\]"),  # a list
        ([{**box(1, [1, 1, 5, 5]), "category_id": {}}], "annotation 1.*unknown category_id {}"),
        ([7], "annotation at position 0.*is 7, no JSON object"),  # no object
        ([box(1, [1, 1, 5, 5], area=float("nan"))], "annotation 1.*'area' holds NaN"),
        ([box(1, [1, 1, 5, 5], x={"y": [float("inf")]})], "annotation 1.*'x' holds NaN"),
    ],
)
def test_malformed_file_is_refused_with_the_id(annotations, message, tmp_path):
    with pytest.raises(DataError, match=message):
        BoxFile(write_boxes(tmp_path, annotations))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": None}, "image 1.*has no height"),
        ({"height": 0}, "image 1.*height is 0"),
        ({"width": 40.5}, "image 1.*width is 40.5"),
        ({"file_name": None}, "image 1.*neither a file_name nor a coco_url"),
        ({"file_name": None, "coco_url": "http://x.org/"}, "image 1.*neither a file_name nor"),
        ({"file_name": 5}, "image 1.*file_name is 5, no name"),
        ({"id": "1"}, "image at position 0.*id is '1', text"),
        ({"blur": float("nan")}, "image 1.*'blur' holds NaN"),
    ],
)
def test_malformed_image_entry_is_refused_with_the_id(change, message, tmp_path):
    path = write_boxes(tmp_path, [box(1, [1, 1, 5, 5])])
    data = json.loads(path.read_text())
    data["images"][0] |= change
    data["images"][0] = {k: v for k, v in data["images"][0].items() if v is not None}
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=rf"boxes\.json.*{message}.*Remedy"):
        BoxFile(path)


def test_not_a_number_in_the_head_of_the_file(tmp_path):
    path = write_boxes(tmp_path, [box(1, [1, 1, 5, 5])], info={"year": float("nan")})
    with pytest.raises(DataError, match="'info' holds NaN"):
        BoxFile(path)


def test_lvis_names_its_images_by_url(tmp_path):
    path = write_boxes(tmp_path, [box(1, [1, 1, 5, 5])])
    data = json.loads(path.read_text())
    del data["images"][0]["file_name"]
    data["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/1.png"
    path.write_text(json.dumps(data))
    labels, rejects, _ = run(tmp_path, path)
    assert len(labels["annotations"]) == 1
    assert rejects == []
    assert labels["images"][0]["file_name"] == "1.png"


@pytest.mark.parametrize(("change", "rejected"), [(str.upper, 0), (lambda _: "0" * 64, 1)])
def test_an_image_with_a_stated_hash_must_have_it(tmp_path, change, rejected):
    path = write_boxes(tmp_path, [box(1, [1, 1, 5, 5])])
    data = json.loads(path.read_text())
    image = data["images"][0]
    digest = hashlib.sha256((tmp_path / image["file_name"]).read_bytes()).hexdigest()
    image["sha256"] = change(digest)
    path.write_text(json.dumps(data))
    _, rejects, _ = run(tmp_path, path)
    assert len(rejects) == rejected


def test_manifest_is_last_and_proves_labels_and_rejects(tmp_path, monkeypatch):
    order, replace = [], os.replace

    def spy(source, target):
        order.append(os.path.basename(target))
        replace(source, target)

    path = write_boxes(tmp_path, [box(1, [1, 1, 5, 5]), box(2, None)])
    monkeypatch.setattr(os, "replace", spy)
    _, _, manifest = run(tmp_path, path)
    order = [name for name in order if name.startswith("labels")]
    assert order == ["labels.rejects.jsonl", "labels.json", "labels.manifest.json"]
    for key, name in (("output", "labels.json"), ("rejects", "labels.rejects.jsonl")):
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert manifest[f"{key}_sha256"] == digest
    assert json.loads((tmp_path / "labels.manifest.json").read_text()) == manifest
    assert "detectron2" in manifest["versions"]


def test_a_package_that_is_not_installed_has_no_version(tmp_path, monkeypatch):
    """Upstream Detectron2 may be on the path without being installed."""
    monkeypatch.setattr("pseudolabel.store.VERSIONED", ("masksmith-no-such-distribution",))
    manifest = run(tmp_path, write_boxes(tmp_path, []))[2]
    assert manifest["versions"] == {"masksmith-no-such-distribution": None}


def test_nothing_is_written_when_the_accounts_do_not_add_up(tmp_path, monkeypatch):
    path = write_boxes(tmp_path, [box(1, [1, 1, 5, 5]), box(2, [1, 1, 5, 5])])
    forgets_boxes = "pseudolabel.job.shard.label_image"
    monkeypatch.setattr(forgets_boxes, lambda *_, **__: _[-1].images.append(IMAGE))
    with pytest.raises(DataError, match=r"\[1, 2\] not accounted for"):
        run(tmp_path, path)
    assert not (tmp_path / "labels.json").exists()


@pytest.mark.parametrize(("allow_links", "status"), [(False, "rejected"), (True, "labelled")])
def test_links_out_of_the_image_folder(allow_links, status, tmp_path_factory):
    folder, elsewhere = tmp_path_factory.mktemp("job"), tmp_path_factory.mktemp("elsewhere")
    path = write_boxes(folder, [box(1, [1, 1, 5, 5])])
    (image,) = folder.glob("*.png")
    image.rename(elsewhere / image.name)
    image.symlink_to(elsewhere / image.name)
    options = JobOptions(folder, folder / "labels.json", allow_links=allow_links)
    run_job(JobInput(folder, path), LABELERS.get("ellipse")(), LABELERS.get("ellipse"), options)
    labels = json.loads((folder / "labels.json").read_text())
    assert [entry["status"] for entry in labels["images"]] == [status]
    rejects = (folder / "labels.rejects.jsonl").read_text()
    assert ("--allow-links" in rejects) == (not allow_links)


def test_a_foreign_folder_is_never_removed(tmp_path):
    path = write_boxes(tmp_path, [box(1, [1, 1, 5, 5])])
    (tmp_path / "labels.json.job").mkdir()
    (tmp_path / "labels.json.job/thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"no folder of a labelling job \(thesis.txt\)"):
        run(tmp_path, path)
    assert (tmp_path / "labels.json.job/thesis.txt").read_text() == "precious"


def test_restart_looks_at_the_input_before_it_throws_a_job_away(tmp_path):
    path = write_boxes(tmp_path, [box(1, [1, 1, 5, 5])])
    job = tmp_path / "labels.json.job"
    for name in FOLDERS:
        (job / name).mkdir(parents=True)
    (job / "plan.json").write_text("{}")
    options = JobOptions(tmp_path, tmp_path / "labels.json", restart=True)
    typo = JobInput(tmp_path, path.with_name("typo.json"))
    with pytest.raises(DataError, match=r"typo.json: the file does not exist"):
        run_job(typo, LABELERS.get("ellipse")(), LABELERS.get("ellipse"), options)
    assert (job / "plan.json").exists()


# What a labeler could live with, and no loader.
@pytest.mark.parametrize(
    "strange",
    [
        {"iscrowd": None},  # taken as 0
        {"score": 87.5},  # somebody else's unit
        {"bbox": [-200, 2, 400, 4]},  # rejected
    ],
)
def test_what_is_written_can_be_loaded(strange, tmp_path):
    path = write_boxes(tmp_path, [{**box(1, [1, 1, 5, 5]), **strange}, box(2, [2, 2, 6, 6])])
    run(tmp_path, path)
    assert len(read_checked(tmp_path / "labels.json")["annotations"]) in (1, 2)


def test_two_runs_give_the_same_bytes(tmp_path):
    path = write_boxes(tmp_path, [box(k, [k, k, 12, 9]) for k in range(1, 6)])
    run(tmp_path, path, "grabcut")
    first = (tmp_path / "labels.json").read_bytes()
    run(tmp_path, path, "grabcut")
    assert (tmp_path / "labels.json").read_bytes() == first
