"""The way back: every record of the labels is accounted for, and nothing is invented."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pseudolabel.errors import DataError
from pseudolabel.export import export_labels
from pseudolabel.masks import decode_segmentation, encode_rle, mask_iou
from pseudolabel.review import Rules, review_labels
from pseudolabel.review_files import write_review
from pseudolabel.validation import read_checked

H, W = 9, 11


def block(y0, y1, x0, x1):
    mask = np.zeros((H, W), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def record(key, mask, image=1, category=3, **more):
    return {
        "id": key,
        "image_id": image,
        "category_id": category,
        "bbox": [0.0, 0.0, 8.0, 8.0],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": encode_rle(mask),
        "quality": 0.75,
        "agreement": 0.5,
        "score": 0.9,
        "mask_source": "model",
        "note": {"kept": [key]},
        **more,
    }


def make_labels(*records):
    images = [(1, "a.png", "labelled"), (2, "deep/b.png", "labelled"), (3, "c.png", "empty")]
    return {
        "info": {"from": "a test"},
        "images": [
            {"id": key, "file_name": name, "width": W, "height": H, "status": status}
            for key, name, status in images
        ],
        "annotations": list(records),
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    }


@pytest.fixture
def folder(tmp_path):
    """Labels 10, 11 (image 1) and 20 (image 2), and the same as a label tool has them."""
    rows = [
        record(10, block(1, 5, 1, 5)),
        record(11, block(0, 9, 8, 11)),
        record(20, block(2, 4, 2, 9), image=2, category=8),
    ]
    (tmp_path / "labels.json").write_text(json.dumps(make_labels(*rows)))
    export_labels(tmp_path / "labels.json", "label-tool", tmp_path / "tool.json")
    return tmp_path


def merge(folder, edit=lambda data: None, **rules):
    """The review after `edit` of the label tool's file."""
    data = json.loads((folder / "tool.json").read_text())
    edit(data)
    (folder / "corrected.json").write_text(json.dumps(data))
    return review_labels(folder / "labels.json", folder / "corrected.json", Rules(**rules))


def entry(data, key):
    return next(a for a in data["annotations"] if a["id"] == key)


def original(folder):
    return json.loads((folder / "labels.json").read_text())


def polygon(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def test_nothing_corrected_is_nothing_changed(folder):
    review = merge(folder)
    assert review.data == original(folder)
    assert review.counts() == {
        **{"unchanged": 3, "untouched": 0, "changed": 0},
        **{"deleted": 0, "added": 0},
    }
    assert review.lines() == [
        "3 annotations in: 3 unchanged, 0 untouched, 0 changed, 0 deleted, 0 added; 3 out"
    ]


def test_a_corrected_mask_loses_its_estimates(folder):
    """Nothing but the mask, its area and its source differs; IoU of 4x4 and 4x3 is .75."""
    review = merge(folder, lambda d: entry(d, 10).update(segmentation=polygon(1, 1, 4, 5)))
    expected = entry(original(folder), 10)
    del expected["quality"], expected["agreement"]
    expected.update(segmentation=encode_rle(block(1, 5, 1, 4)), area=12, mask_source="input")
    assert entry(review.data, 10) == expected
    assert review.lines()[:-1] == ["annotation 10: mask changed (IoU 0.750)"]
    assert [a["id"] for a in review.data["annotations"]] == [10, 11, 20]
    assert entry(review.data, 11) == entry(original(folder), 11)


def test_a_new_class_has_no_score(folder):
    review = merge(folder, lambda d: entry(d, 10).update(category_id=8))
    expected = entry(original(folder), 10)
    del expected["score"]
    assert entry(review.data, 10) == {**expected, "category_id": 8}
    assert str(review.changes[0]) == "annotation 10: class changed 'cat' -> 'dog'"


@pytest.mark.parametrize(
    ("box", "mask", "taken"),
    [
        # A correction; the mask was not.
        ([1.0, 1.0, 7.0, 7.0], None, True),
        # Rounded by the tool.
        ([0.0, 0.4, 8.0, 8.0], None, False),
        # The tool's own tight box of the same mask.
        ([1.0, 1.0, 4.0, 4.0], None, False),
        # With a new mask, its box.
        ([1.0, 1.0, 3.0, 4.0], polygon(1, 1, 4, 5), True),
        # Boxes alone were looked at.
        ([1.0, 1.0, 4.0, 4.0], [], True),
    ],
)
def test_boxes(folder, box, mask, taken):
    def edit(data):
        entry(data, 10)["bbox"] = box
        if mask is not None:
            entry(data, 10)["segmentation"] = mask

    review = merge(folder, edit)
    assert entry(review.data, 10)["bbox"] == (box if taken else [0.0, 0.0, 8.0, 8.0])
    assert ("box" in review.changes[0].details) is taken
    if not mask:
        assert entry(review.data, 10)["segmentation"] == encode_rle(block(1, 5, 1, 5))


def drop(*keys):
    def edit(data):
        data["annotations"] = [a for a in data["annotations"] if a["id"] not in keys]

    return edit


def test_absent_records_are_refused_deleted_or_untouched(folder):
    with pytest.raises(DataError, match=r"corrected\.json: lacks annotations 10, 20\. .*--partial"):
        merge(folder, drop(10, 20))
    review = merge(folder, drop(10, 20), deletions=True)
    assert [a["id"] for a in review.data["annotations"]] == [11]
    assert [i["status"] for i in review.data["images"]] == ["labelled", "empty", "empty"]
    assert review.lines()[:2] == ["annotation 10: deleted", "annotation 20: deleted"]
    review = merge(folder, drop(10, 20), partial=True)
    assert review.data == original(folder)
    assert review.counts()["untouched"] == 2
    # Of a queue of 10 and 11, the reviewer deleted 10; 20 was never shown.
    with pytest.raises(DataError, match="lacks annotations 10"):
        merge(folder, drop(10, 20), scope={10, 11})
    review = merge(folder, drop(10, 20), scope={10, 11}, deletions=True)
    assert [(c.id, c.kind) for c in review.changes] == [
        (10, "deleted"),
        (11, "unchanged"),
        (20, "untouched"),
    ]


def test_a_queue_of_other_labels(folder):
    with pytest.raises(DataError, match=r"labels\.json: lacks annotations \[12\] of the queue"):
        merge(folder, scope={10, 12}, deletions=True)


def test_many_absent_records_are_counted(folder):
    data = make_labels(*(record(k, block(1, 2, 1, 2)) for k in range(1, 9)))
    (folder / "labels.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"lacks annotations 1, 2, 3, 4, 5 and 3 more\."):
        merge(folder, drop(10, 11, 20))


def test_an_added_record_gets_an_id_of_its_own(folder):
    """Above all ids of the labels, of their rejects and of the corrected file."""
    rejects = [{"id": 70, "image_id": 2}, {"id": 71, "image_id": 1}]
    lines = "".join(json.dumps(row) + "\n" for row in rejects)
    (folder / "labels.rejects.jsonl").write_text(lines)
    new = record(70, block(0, 2, 0, 2), image=3, iscrowd=1)

    review = merge(folder, lambda d: d["annotations"].append(new))
    assert review.data["annotations"][-1] == {
        "id": 72,
        "image_id": 3,
        "category_id": 3,
        "bbox": [0.0, 0.0, 8.0, 8.0],
        "iscrowd": 0,
        "segmentation": encode_rle(block(0, 2, 0, 2)),
        "area": 4,
        "mask_source": "input",
    }
    assert review.lines()[0] == "annotation 72: added (was 70 in the corrected file)"
    assert review.data["images"][2]["status"] == "labelled"
    # An image that has lost its last record, but has a reject, is no background.
    review = merge(folder, drop(20), deletions=True)
    assert review.data["images"][1]["status"] == "rejected"


def test_crowd_flags_of_tools_are_not_believed_unless_asked(folder):
    def edit(data):
        entry(data, 10)["iscrowd"] = 1

    review = merge(folder, edit)
    assert review.data == original(folder)
    line = "annotation 10: unchanged (iscrowd stays 0, the corrected file has 1)"
    assert review.lines()[0] == line
    merged = entry(merge(folder, edit, crowds=True).data, 10)
    assert (merged["iscrowd"], merged["mask_source"]) == (1, "input")
    assert not {"quality", "agreement"} & set(merged)


def test_tools_that_round_outlines(folder):
    def edit(data):
        entry(data, 10)["segmentation"] = polygon(1, 1, 5, 4)

    assert merge(folder, edit, same_iou=0.75).data == original(folder)
    assert merge(folder, edit, same_iou=0.76).counts()["changed"] == 1


def rename_image(data):
    data["images"][0]["file_name"] = "other.png"


def swap_images(data):
    for image in data["images"]:
        image["id"] = 4 - image["id"]


def swap_classes(data):
    for category in data["categories"]:
        category["id"] = 11 - category["id"]


def new_class(data):
    data["categories"].append({"id": 9, "name": "cow"})
    entry(data, 10)["category_id"] = 9


def new_image(data):
    data["images"].append({"id": 4, "file_name": "d.png", "width": W, "height": H})


def add_bare(data):
    data["annotations"].append(record(30, block(0, 1, 0, 1), segmentation=[]))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rename_image, r"image 1\): is 'other.png', in the labels 'a.png'"),
        (swap_images, r"image 3\): is 'a.png', in the labels 'c.png'"),
        (lambda d: d["images"][0].update(width=8), "run-length|in the labels"),
        (lambda d: d["images"][2].update(height=8), r"image 3\): is \(11, 8\), in the labels"),
        (new_image, r"image 4\): is not in the labels"),
        (swap_classes, r"annotation 10\): has category 3, 'dog', which is 'cat' in the labels"),
        (new_class, r"annotation 10\): has category 9, 'cow', which is unknown"),
        (lambda d: entry(d, 10).update(image_id=2), r"annotation 10\): is on image 2, in the lab"),
        # Ids counted anew: no person moves a mask so far.
        (
            lambda d: entry(d, 10).update(segmentation=polygon(7, 7, 9, 9)),
            r"annotation 10\): shares no pixel",
        ),
        (
            lambda d: entry(d, 10).update(segmentation=polygon(-4, 1, -1, 5)),
            r"annotation 10\): its mask has no pixel",
        ),
        (add_bare, r"annotation 30\): is new and has no mask"),
        # What the reader of every file refuses.
        (lambda d: d["annotations"].append(entry(d, 10)), "id 10 occurs twice"),
        (lambda d: entry(d, 10).update(bbox=[1, 2, -3, 4]), r"annotation 10\): bbox is"),
        (lambda d: entry(d, 10).update(segmentation=[[1, 2, 3]]), r"annotation 10\): a polygon"),
        (lambda d: entry(d, 10).update(id="10"), "is '10', text"),
        (lambda d: d["images"][0].update(file_name="../a.png"), "not a path below"),
        (lambda d: d["images"][0].update(file_name="/etc/passwd"), "not a path below"),
        (lambda d: d.pop("images"), "has no list 'images'"),
    ],
)
def test_what_is_refused(folder, edit, message):
    with pytest.raises(DataError, match=message) as caught:
        merge(folder, edit)
    assert caught.value.file.endswith("corrected.json")


def test_unused_classes_of_a_tool_do_not_matter(folder):
    review = merge(folder, lambda d: d["categories"].append({"id": 1, "name": "background"}))
    assert review.data == original(folder)


@pytest.mark.parametrize("text", ["{", "[]\n", '{"id": 1}\n', '{"id": "1", "image_id": 1}\n'])
def test_broken_rejects(folder, text):
    (folder / "labels.rejects.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"labels\.rejects\.jsonl"):
        merge(folder)


def test_both_files_are_written_or_none(folder):
    """The diff names hashes, counts and every record."""
    review = merge(folder, lambda d: entry(d, 10).update(segmentation=polygon(1, 1, 4, 5)))
    inputs = (folder / "labels.json", folder / "corrected.json")
    diff = write_review(review, folder / "merged.json", *inputs)
    assert read_checked(folder / "merged.json") == review.data
    written = json.loads(diff.read_text())
    assert written["counts"]["changed"] == 1
    assert written["changes"] == [
        {"id": 10, "kind": "changed", "mask_iou": 0.75},
        {"id": 11, "kind": "unchanged"},
        {"id": 20, "kind": "unchanged"},
    ]
    assert len({written["labels_sha256"], written["corrected_sha256"]}) == 2
    for name in ("merged.json", "merged.review.json"):
        (folder / name).unlink()
        with pytest.raises(DataError, match="the output exists"):
            write_review(review, folder / "merged.json", *inputs)
        assert not (folder / name).exists()
        (folder / name).write_text("x")
    review.data["info"] = {"nan": float("nan")}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_review(review, folder / "other.json", *inputs)
    assert not [p.name for p in folder.iterdir() if "other" in p.name]


masks = arrays(bool, (H, W)).filter(lambda mask: mask.any())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(masks, min_size=1, max_size=3),
    st.dictionaries(st.integers(1, 3), masks),
    st.sets(st.integers(1, 3)),
    st.lists(masks, max_size=2),
    st.sampled_from(["coco-polygons", "label-tool"]),
)
def test_any_corrections(tmp_path_factory, given_masks, redrawn, deleted, added, form):
    """Export, correct at random, merge: the masks are the intended ones, all ids accounted for."""
    folder = tmp_path_factory.mktemp("loop")
    rows = [record(k, mask) for k, mask in enumerate(given_masks, 1)]
    (folder / "labels.json").write_text(json.dumps(make_labels(*rows)))
    export_labels(folder / "labels.json", form, folder / "tool.json")
    intended = dict(enumerate(given_masks, 1))
    redrawn = {
        k: mask for k, mask in redrawn.items() if k in intended and (mask & intended[k]).any()
    }

    def edit(data):
        for key, mask in redrawn.items():
            entry(data, key)["segmentation"] = encode_rle(mask)
        drop(*deleted)(data)
        for number, mask in enumerate(added):
            data["annotations"].append(record(50 + number, mask))

    review = merge(folder, edit, deletions=True)
    final = {k: m for k, m in {**intended, **redrawn}.items() if k not in deleted}
    first = max([*intended, *(50 + n for n in range(len(added)))]) + 1
    final |= dict(enumerate(added, first))
    assert [a["id"] for a in review.data["annotations"]] == sorted(final)
    for merged in review.data["annotations"]:
        mask = decode_segmentation(merged["segmentation"], H, W)
        np.testing.assert_array_equal(mask, final[merged["id"]])
        same = merged["id"] in intended and np.array_equal(mask, intended[merged["id"]])
        assert ("quality" in merged) is same
        assert merged["mask_source"] == ("model" if same else "input")
    assert [c.id for c in review.changes if c.kind != "added"] == sorted(intended)
    for change in review.changes:
        if "mask_iou" in change.details:
            expected = mask_iou(intended[change.id], redrawn[change.id])
            assert change.details["mask_iou"] == expected
