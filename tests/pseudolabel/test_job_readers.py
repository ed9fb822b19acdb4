"""What a labelling job writes, every reader of labels takes: report, export, review, queue."""

import json

import pytest

from pseudolabel.errors import DataError
from pseudolabel.export import FORMATS, export_labels
from pseudolabel.files import file_hash
from pseudolabel.report.label_file import LabelFile
from pseudolabel.report.queue import write_queue
from pseudolabel.review import Rules, review_labels
from pseudolabel.review_files import write_review
from pseudolabel.store import read_labels
from tests.pseudolabel.job.made import Blocks, label, write_job
from tests.pseudolabel.report_files import edit_json

# What the input says of an image, which the job does not label or does not care about.
ODD = {
    "a name that leaves the folder": {"file_name": "../x.png"},
    "a size that no reader takes": {"width": 10**6, "height": 10**6},
    "an unknown category in an LVIS list": {"neg_category_ids": [99]},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_readers_take_what_a_job_lets_through(tmp_path, odd):
    write_job(tmp_path)
    edit_json(tmp_path / "boxes.json", lambda d: d["images"][5].update(odd))
    counts = label(tmp_path)["counts"]
    path = tmp_path / "out/labels.json"
    labels = LabelFile(path)
    assert labels.account().fits
    write_queue(labels, 3, tmp_path / "queue.json")
    assert len(read_labels(tmp_path / "queue.json")["annotations"]) == 3
    for form in FORMATS:
        report = export_labels(path, form, tmp_path / form)
        assert report.annotations == counts["annotations_out"]
    for corrected in (path, tmp_path / "label-tool"):
        edit_json(corrected, lambda d: None)
        assert review_labels(path, corrected).counts()["unchanged"] == counts["annotations_out"]


def test_an_image_that_has_a_record_must_be_sound(tmp_path):
    write_job(tmp_path)
    label(tmp_path)
    path = tmp_path / "out/labels.json"

    def spoil(data):
        key = data["annotations"][0]["image_id"]
        image = next(image for image in data["images"] if image["id"] == key)
        image.update(file_name="../x.png", status="rejected")

    edit_json(path, spoil)
    with pytest.raises(DataError, match="not a path below"):
        read_labels(path)


def test_a_review_where_images_are_rejected_and_not_boxes(tmp_path):
    write_job(tmp_path)
    label(tmp_path, boxes=None, labeler=Blocks(), build=Blocks)
    path = tmp_path / "out/labels.json"
    rows = [json.loads(line) for line in path.with_suffix(".rejects.jsonl").open()]
    assert [row["id"] for row in rows] == [None]
    assert review_labels(path, path).counts()["unchanged"] == 9


def test_a_second_review_knows_the_accounts_of_the_first(tmp_path):
    """The merged file keeps rejects and labeler; an id of a reject is not given away."""
    write_job(tmp_path)
    first, second = tmp_path / "out/labels.json", tmp_path / "out/merged.json"
    # The box of no height; its id becomes the highest.
    edit_json(tmp_path / "boxes.json", lambda d: d["annotations"][6].update(id=1000))
    label(tmp_path)
    data = json.loads(first.read_text())
    object_ = next(a for a in data["annotations"] if not a["iscrowd"])
    gone = next(a for a in data["annotations"] if a is not object_)
    data["annotations"] = [a for a in data["annotations"] if a is not gone]
    data["annotations"] += [{**object_, "id": 10**6}, {**object_, "id": 10**6 + 1}]
    (tmp_path / "corrected.json").write_text(json.dumps(data))
    review = review_labels(first, tmp_path / "corrected.json", Rules(deletions=True))
    assert [c.id for c in review.changes if c.kind == "added"] == [10**6 + 2, 10**6 + 3]
    write_review(review, second, first, tmp_path / "corrected.json")
    labels = LabelFile(second)
    assert labels.account().fits
    assert labels.account().stated == LabelFile(first).account().stated + 1
    assert [same for _, same in labels.hashes().values()] == [True, True]
    assert labels.manifest["labeler"] == LabelFile(first).manifest["labeler"]
    assert labels.manifest["review"]["labels_sha256"] == file_hash(first)
    # A second round, in which a tool takes an id of the rejects for its own.
    data = json.loads(second.read_text())
    data["annotations"].append({**object_, "id": 1000})
    (tmp_path / "corrected.json").write_text(json.dumps(data))
    review = review_labels(second, tmp_path / "corrected.json")
    assert [c.id for c in review.changes if c.kind == "added"] == [10**6 + 4]


def test_ids_end_at_64_bits(tmp_path):
    write_job(tmp_path)
    label(tmp_path)
    path = tmp_path / "out/labels.json"
    data = json.loads(path.read_text())
    object_ = next(a for a in data["annotations"] if not a["iscrowd"])
    for key, fits in ((2**63 - 2, True), (2**63 - 1, False)):
        more = [{**object_, "id": key}]
        path.write_text(json.dumps({**data, "annotations": data["annotations"] + more}))
        more.append({**object_, "id": 1 + max(a["id"] for a in data["annotations"])})
        corrected = tmp_path / "corrected.json"
        corrected.write_text(json.dumps({**data, "annotations": data["annotations"] + more}))
        if fits:
            assert review_labels(path, corrected).changes[-1].id == 2**63 - 1
        else:
            with pytest.raises(DataError, match=r"labels\.json: no id is left above"):
                review_labels(path, corrected)


@pytest.mark.parametrize("name", ["merged.rejects.jsonl", "merged.manifest.json"])
def test_companions_that_exist_stay(tmp_path, name):
    write_job(tmp_path)
    label(tmp_path)
    path = tmp_path / "out/labels.json"
    (tmp_path / name).write_text("of something else")
    with pytest.raises(DataError, match=f"{name}: the output exists"):
        write_review(review_labels(path, path), tmp_path / "merged.json", path, path)
    assert (tmp_path / name).read_text() == "of something else"
    assert not (tmp_path / "merged.json").exists()
