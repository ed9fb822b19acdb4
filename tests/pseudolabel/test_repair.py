"""Repairs: sound afterwards, every record accounted for, nothing guessed."""

import copy
import json
from collections import Counter

import pytest
from hypothesis import given, settings

from pseudolabel.defects import ERROR, FILE
from pseudolabel.masks import decode_segmentation
from pseudolabel.repair import UnrepairableError, repair_labels
from pseudolabel.validation import LISTS, check_images, check_labels
from tests.pseudolabel.label_files import (
    HEIGHT,
    NAN,
    SQUARE,
    TABLE,
    WIDTH,
    annotation,
    change,
    damaged,
    image,
    repeat,
    runs,
    sound,
)


def repaired(*damages):
    data = sound()
    for damage in damages:
        damage(data)
    before = copy.deepcopy(data)
    result = repair_labels(data)
    assert repr(data) == repr(before)  # NaN is not equal to itself
    return result


def errors(data):
    return [defect for defect in check_labels(data) if defect.severity == ERROR]


def check_accounts(data, result):
    """Each record of the input is in the output, or has one line that drops it."""
    dropped = Counter(step.place for step in result.steps if step.action == "dropped")
    assert set(dropped.values()) <= {1}
    for kind in LISTS:
        lost = sum(1 for place in dropped if place[0] == kind)
        assert result.counts[kind] == {
            "in": len(data[kind]),
            "out": len(result.data[kind]),
            "dropped": lost,
        }
        assert len(data[kind]) == len(result.data[kind]) + lost
        kept = [e for i, e in enumerate(data[kind]) if (kind, i) not in dropped]
        changed = {step.place for step in result.steps if step.action == "changed"}
        positions = [i for i in range(len(data[kind])) if (kind, i) not in dropped]
        for position, before, after in zip(positions, kept, result.data[kind], strict=True):
            assert repr(before) == repr(after) or (kind, position) in changed


def test_a_sound_file_stays_as_it_is():
    result = repaired()
    assert result.data == sound()
    assert result.steps == []


@pytest.mark.parametrize(
    "damage", [row[2] for row in TABLE], ids=[f"{n}-{row[0]}" for n, row in enumerate(TABLE)]
)
def test_each_defect_of_the_table(damage):
    data = sound()
    damage(data)
    if not all(isinstance(data.get(kind), list) for kind in LISTS):
        with pytest.raises(UnrepairableError, match="has no list"):
            repair_labels(data)
        return
    result = repair_labels(data)
    assert errors(result.data) == []
    check_accounts(data, result)
    assert result.steps


@settings(max_examples=150, deadline=None)
@given(damaged)
def test_any_damage(data):
    result = repair_labels(data)
    assert errors(result.data) == []
    check_accounts(data, result)
    json.dumps(result.data, allow_nan=False)


@pytest.mark.parametrize("data", [None, [], {"images": []}])
def test_what_is_no_instances_file_cannot_be_repaired(data):
    with pytest.raises(UnrepairableError):
        repair_labels(data)


def lines(result):
    return [str(step) for step in result.steps]


@pytest.mark.parametrize(
    ("damage", "line", "expected"),
    [
        # Partly outside: the box ends at the border. (Its area then differs from the stated one.)
        (
            annotation(bbox=[30, 5, 15, 10], segmentation=..., area=150),
            "changed annotation 12: clipped bbox [30, 5, 15, 10] -> [30.0, 5.0, 10.0, 10.0]",
            {"bbox": [30.0, 5.0, 10.0, 10.0]},
        ),
        (annotation(iscrowd=True), "changed annotation 12: iscrowd True -> 1", {"iscrowd": 1}),
        (annotation(iscrowd="0"), "changed annotation 12: iscrowd '0' -> 0", {"iscrowd": 0}),
        (
            annotation(area=400),
            "changed annotation 12: area is 400, the mask has about 100; set to 100, that of its "
            "mask",
            {"area": 100},
        ),
        (
            annotation(area=-1, segmentation=...),
            "changed annotation 12: area is -1; set to 100, that of its box",
            {"area": 100},
        ),
        (
            annotation(segmentation=[[5, 5, 15, 15], SQUARE]),
            "changed annotation 12: removed 1 of 2 rings, with less than three points",
            {"segmentation": [SQUARE]},
        ),
        (annotation(iscrowd=1.0), "changed annotation 12: iscrowd 1.0 -> 1", {"iscrowd": 1}),
        (annotation(iscrowd=None), "changed annotation 12: iscrowd null -> 0", {"iscrowd": 0}),
        (annotation(weight="0.5"), "changed annotation 12: weight '0.5' -> 0.5", {"weight": 0.5}),
        (
            annotation(segmentation=runs(0, 1200.0), bbox=[0, 0, 40, 30], area=1200),
            "changed annotation 12: numbers of the run-length code written as whole ones",
            {"segmentation": runs(0, 1200)},
        ),
        (
            annotation(id=12.0),
            "changed annotation at position 0: id 12.0 -> 12",
            {"id": 12},
        ),
        (
            annotation(category_id=3.0),
            "changed annotation 12: category_id 3.0 -> 3",
            {"category_id": 3},
        ),
        (
            annotation(image_id="5"),
            "changed annotation 12: image_id '5' -> 5",
            {"image_id": 5},
        ),
    ],
)
def test_what_is_mended(damage, line, expected):
    result = repaired(damage)
    assert line in lines(result)
    first = result.data["annotations"][0]
    assert {key: first[key] for key in expected} == expected
    assert result.counts["annotations"]["dropped"] == 0


@pytest.mark.parametrize("kind", ["images", "annotations"])
@pytest.mark.parametrize(
    "value", [-1, NAN, None, True, [1], "-1", "NaN", "Infinity", "true", "[1]", "", "1" * 400]
)
def test_a_weight_that_is_none_leaves_the_default_and_says_so(kind, value):
    damage = (image if kind == "images" else annotation)(weight=value)
    result = repaired(damage)
    assert "weight" not in result.data[kind][0]
    (line,) = lines(result)
    assert line.endswith(", no number >= 0; removed, so that it weighs 1")
    assert result.counts[kind]["dropped"] == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (annotation(bbox=[20, 5, -10, 10]), "bbox is [20, 5, -10, 10] on a 40x30 image"),
        (annotation(bbox=[NAN, 5, 10, 10]), "bbox is [nan, 5, 10, 10] on a 40x30 image"),
        (annotation(segmentation=[SQUARE[:-1]]), "a polygon needs at least three"),
        (annotation(segmentation=runs(7)), "run-length code is malformed"),
        (annotation(iscrowd=2), "iscrowd is 2, neither 0 nor 1"),
        (annotation(image_id=8), "unknown image_id 8"),
        (annotation(image_id="8"), "image_id is '8', text"),
    ],
)
def test_what_nothing_tells_is_dropped(damage, reason):
    (step,) = repaired(damage).steps
    assert (step.action, step.record, step.place) == (
        "dropped",
        "annotation 12",
        ("annotations", 0),
    )
    assert step.reason.startswith(reason)


def all_texts(data):
    for kind in LISTS:
        for entry in data[kind]:
            entry["id"] = str(entry["id"])
    for entry in data["annotations"]:
        entry |= {"image_id": str(entry["image_id"]), "category_id": str(entry["category_id"])}
    data["images"][0]["neg_category_ids"] = ["9"]


def all_floats(data):
    for kind in LISTS:
        for entry in data[kind]:
            entry["id"] = float(entry["id"])
    for entry in data["images"]:
        entry |= {"height": float(HEIGHT), "width": float(WIDTH)}
    for entry in data["annotations"]:
        entry |= {"image_id": float(entry["image_id"]), "category_id": float(entry["category_id"])}
        entry["iscrowd"] = float(entry["iscrowd"])
    data["images"][0]["neg_category_ids"] = [9.0]


def test_numbers_with_a_decimal_point_become_whole_ones():
    """As a table with a missing value, or JavaScript, writes all of them."""
    expected = sound()
    expected["images"][0]["neg_category_ids"] = [9]
    result = repaired(all_floats)
    # As text, in which 1 and 1.0 differ.
    assert json.dumps(result.data) == json.dumps(expected)
    given = sound()
    all_floats(given)
    check_accounts(given, result)


@pytest.mark.parametrize("number", [5.5, 2.0**53, 1e300, -0.5])
def test_only_an_exact_whole_number_is_taken(number):
    result = repaired(image(id=number))
    assert [entry["id"] for entry in result.data["images"]] == [6]


def test_ids_in_quotes_become_numbers_with_all_that_refers_to_them():
    expected = sound()
    expected["images"][0]["neg_category_ids"] = [9]
    assert repaired(all_texts).data == expected


@pytest.mark.parametrize("text", ["05", " 5", "5.0", "five", "", "٥", "9" * 5000])
def test_only_a_plain_number_is_read_out_of_quotes(text):
    """The image goes, and with it its annotations, each by name."""
    result = repaired(image(id=text))
    assert [entry["id"] for entry in result.data["images"]] == [6]
    assert result.data["annotations"] == []


def test_an_ambiguous_id_in_quotes_is_not_read():
    """Is "5" image 5, or another one? Its annotation goes; those of 5 stay."""
    result = repaired(
        lambda data: data["images"].append({**data["images"][1], "id": "5", "file_name": "x"}),
        annotation(image_id="5"),
    )
    assert [entry["id"] for entry in result.data["images"]] == [5, 6]
    assert [entry["id"] for entry in result.data["annotations"]] == [13, 14, 15]


def test_copies_go_and_contradictions_go_with_what_refers_to_them():
    copies = repaired(*map(repeat, LISTS))
    assert copies.data == sound()
    assert "dropped image 5: an exact copy of another image 5" in lines(copies)
    contradiction = repaired(
        repeat("images"), image(height=29), change("annotations", 3, image_id=6)
    )
    assert [entry["id"] for entry in contradiction.data["images"]] == [6]
    assert [entry["id"] for entry in contradiction.data["annotations"]] == [15]
    assert "dropped annotation 12: its image 5 was dropped" in lines(contradiction)


def test_two_annotations_of_one_id_both_stay():
    result = repaired(change("annotations", 1, id=12))
    assert [entry["id"] for entry in result.data["annotations"]] == [12, 16, 14, 15]
    assert lines(result) == ["changed annotation 12: id 12 occurs twice; given the id 16"]


def test_an_image_that_cannot_be_read_goes_with_its_annotations(tmp_path):
    data = sound()
    data["annotations"][3]["image_id"] = 6
    defects = check_images(data, tmp_path)
    result = repair_labels(data, [d for d in defects if d.record == "image 5"])
    assert [entry["id"] for entry in result.data["annotations"]] == [15]
    assert lines(result)[0] == "dropped image 5: '5.png' does not exist"
    check_accounts(data, result)


def test_an_image_behind_a_link_stays(tmp_path):
    """Whether links are allowed is the caller's decision, not a fault of the records."""
    (tmp_path / "images").mkdir()
    for name in ("5.png", "6.png"):
        (tmp_path / name).touch()
        (tmp_path / "images" / name).symlink_to(tmp_path / name)
    defects = check_images(sound(), tmp_path / "images")
    result = repair_labels(sound(), defects)
    assert result.data == sound()
    assert [(step.action, step.record) for step in result.steps] == [
        ("left", "image 5"),
        ("left", "image 6"),
    ]


def test_what_is_left_is_said():
    result = repaired(annotation(bbox=[15, 15, 10, 10]))
    (step,) = result.steps
    assert (step.action, step.record) == ("left", "annotation 12")


def test_the_head_of_the_file():
    result = repaired(lambda data: data.update(info=NAN))
    assert (result.steps[0].action, result.steps[0].record) == ("changed", FILE)
    assert "info" not in result.data


def test_masks_draw_as_before():
    before = sound()["annotations"]
    after = repaired(annotation(area=...)).data["annotations"]
    for one, other in zip(before[:3], after[:3], strict=True):
        pair = [decode_segmentation(a["segmentation"], HEIGHT, WIDTH) for a in (one, other)]
        assert (pair[0] == pair[1]).all()
