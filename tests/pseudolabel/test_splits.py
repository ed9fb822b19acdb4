"""Splits: exact counts, the same everywhere, nested in a fold, spread out when stratified."""

import hashlib
import json
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudolabel.errors import DataError
from pseudolabel.splits import (
    CITYSCAPES,
    check_split,
    class_table,
    command_for,
    draw,
    draw_stratified,
    labelled_count,
    parts,
    read_ids,
    read_percent,
    split_name,
)


@pytest.mark.parametrize(
    ("images", "percent", "count"),
    [
        # COCO train2017 and Cityscapes train, as published
        *((118287, p, n) for p, n in (("1", 1182), ("2", 2365), ("5", 5914), ("10", 11828))),
        *((2975, p, n) for p, n in (("5", 148), ("10", 297), ("20", 595), ("30", 892))),
        (100, "29", 29),  # 0.29 * 100 is 28.999... in binary
        (1000, "0.1", 1),
        (70, "5", 3),
        (9, "10", 0),
    ],
)
def test_counts_are_rounded_down(images, percent, count):
    assert labelled_count(images, read_percent(percent)) == count


@given(st.integers(0, 200_000), st.integers(1, 9999))
def test_count_is_that_of_exact_fractions(images, hundredths):
    percent = Decimal(hundredths) / 100
    assert labelled_count(images, percent) == Fraction(hundredths, 10_000) * images // 1


@pytest.mark.parametrize("text", ["0", "100", "0.0", "-1", "nan", "1e1", "1/3", "", "10%", " 5"])
def test_what_is_no_percentage_is_refused(text):
    with pytest.raises(ValueError, match="is no percentage"):
        read_percent(text)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("instances_train2017", 1, Decimal("10")), "instances_train2017.1@10"),
        (("a", 5, Decimal("0.50")), "a.5@0.5"),
        (("a", 5, Decimal("10.0")), "a.5@10"),
        (("a.b", 0, Decimal("5"), True), "a.b.0@5-stratified"),
    ],
)
def test_names(arguments, name):
    assert split_name(*arguments) == name


def test_a_draw_is_the_order_of_the_hashes():
    def place(key):
        return hashlib.sha256(f"7 {key}".encode()).hexdigest()

    ids = list(range(100, 200))
    assert draw(reversed(ids), 12, fold=7) == sorted(sorted(ids, key=place)[:12])
    # Written down, so that a change of the generator does not pass unseen.
    assert draw(range(1, 21), 4, fold=1) == FIXED


FIXED = [1, 11, 16, 20]


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=60), st.integers(0, 9), st.data())
def test_smaller_draws_lie_in_larger_ones(ids, fold, data):
    small, large = sorted(data.draw(st.tuples(*[st.integers(0, len(ids))] * 2)))
    drawn = draw(ids, large, fold)
    assert len(drawn) == len(set(drawn)) == large
    assert set(draw(ids, small, fold)) <= set(drawn) <= ids


def test_every_image_is_as_likely_as_another():
    images = [{"id": key, "height": 4 + key % 3, "width": 5} for key in range(40)]
    instances = {key: key % 7 for key in range(40)}
    plain = Counter(key for fold in range(600) for key in draw(range(40), 8, fold))
    spread = Counter(
        key for fold in range(600) for key in draw_stratified(images, instances, 8, fold)
    )
    # 600 draws of 8 in 40: 120 +- 9.8 each.
    assert all(80 < plain[key] < 160 for key in range(40))
    assert all(80 < spread[key] < 160 for key in range(40))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=50),
    st.integers(0, 5),
    st.data(),
)
def test_a_stratified_draw_takes_its_share_of_every_run_of_the_sorted_images(content, fold, data):
    count = data.draw(st.integers(0, len(content)))
    images = [{"id": i, "height": side, "width": 2} for i, (side, _) in enumerate(content)]
    instances = {i: number for i, (_, number) in enumerate(content)}
    drawn = draw_stratified(images, instances, count, fold)
    assert len(set(drawn)) == len(drawn) == count
    # Below any (size, number of instances), the share of the drawn ones is that of all.
    for limit in set(content):
        below = sum(key <= limit for key in content)
        assert abs(sum(content[i] <= limit for i in drawn) - count * below / len(content)) < 2


def coco(images=6):
    return {
        "info": {"year": 2026},
        "licenses": [{"id": 1}],
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 4, "width": 5, "note": "kept"}
            for i in range(1, images + 1)
        ],
        "annotations": [
            {"id": 10, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2]},
            {"id": 11, "image_id": 1, "category_id": 8, "bbox": [0, 0, 2, 2], "iscrowd": 0},
            {"id": 12, "image_id": 4, "category_id": 8, "bbox": [0, 0, 2, 2]},
            {"id": 13, "image_id": 2, "category_id": 8, "bbox": [0, 0, 2, 2], "iscrowd": 1},
        ],
        "categories": [{"id": 8, "name": "b", "image_count": 2}, {"id": 3, "name": "a"}],
    }


def test_parts_share_the_images_and_the_unlabelled_one_has_no_annotation():
    data = coco()
    before = json.dumps(data)
    labelled, unlabelled = parts(data, [4, 1], {"fold": 1})
    assert json.dumps(data) == before
    assert [image["id"] for image in labelled["images"]] == [1, 4]
    assert [a["id"] for a in labelled["annotations"]] == [10, 11, 12]
    assert [image["id"] for image in unlabelled["images"]] == [2, 3, 5, 6]
    assert unlabelled["annotations"] == []
    for part in (labelled, unlabelled):
        assert part["info"] == {"year": 2026, "split": {"fold": 1}}
        assert part["licenses"] == data["licenses"]
        assert all(image["note"] == "kept" for image in part["images"])
        # The order stays; a count of the whole file would be wrong.
        assert part["categories"] == [{"id": 8, "name": "b"}, {"id": 3, "name": "a"}]


@pytest.mark.parametrize(
    ("labelled", "problem"),
    [
        ([], "labelled part would be empty"),
        ([1, 2, 3, 4, 5, 6], "unlabelled part would be empty"),
        ([3, 5], "would have no instance"),  # images without objects
        ([2], "would have no instance"),  # a crowd alone
    ],
)
def test_a_part_to_learn_nothing_from_is_refused(labelled, problem):
    with pytest.raises(DataError, match=f"x.json: .*{problem}"):
        check_split(coco(), "x.json", labelled)
    check_split(coco(), "x.json", [1])


def test_table_counts_instances_per_class():
    lines = [line.split() for line in class_table(coco(), {"1@50": [1, 2, 3]}).splitlines()]
    assert lines == [
        ["instances", "of", "all", "1@50"],
        ["a", "1", "1"],
        ["b", "2", "1"],
        ["all", "classes", "3", "2"],
        ["images", "6", "3"],
        ["images", "without", "instance", "4", "2"],
    ]


def test_ids_are_read_from_a_list(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("# mine\n5\n\n  3 # the third\n")
    assert read_ids(path, {3, 4, 5}) == [3, 5]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("3\nfour\n", r"\(line 2\): 'four' is no image id"),
        ("3\n4.0\n", r"\(line 2\): '4\.0' is no image id"),
        ("3\n4\n3\n", r"\(line 3\): image 3 occurs twice"),
        ("3\n7\n", r"\(line 2\): the JSON has no image 7"),
        ("# nothing\n", "lists no image"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_list_is_refused(text, problem, tmp_path):
    path = tmp_path / "ids.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=rf"ids\.txt.*{problem}"):
        read_ids(path, {3, 4})


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        (
            "coco/annotations/semi_supervised/instances_train2017.1@10.json",
            "coco/annotations/instances_train2017.json --percent 10 --fold 1 "
            "--output coco/annotations/semi_supervised",
        ),
        (
            "splits/instances_train.3@0.5-stratified-unlabeled.json",
            "FOLDER/instances_train.json --percent 0.5 --fold 3 --stratify --output splits",
        ),
        (
            f"c/annotations/semi_supervised/{CITYSCAPES}.1@5.json",
            "c --percent 5 --fold 1 --output c/annotations/semi_supervised",
        ),
        # no part of a split
        ("coco/annotations/instances_train2017.json", None),
        ("coco/annotations/me@10.json", None),
    ],
)
def test_command_that_makes_a_missing_part(missing, command):
    whole = command and f"python datasets/prepare_splits.py {command}"
    assert command_for(missing) == whole


def test_command_names_the_json_that_is_there(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    assert f"{tmp_path / 'a.json'} --percent" in command_for(tmp_path / "a.1@5.json")
    assert f"{tmp_path / 'a.json'} --percent" in command_for(Path(tmp_path, "parts", "a.1@5.json"))
