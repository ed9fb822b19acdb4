"""Isotonic calibration: against scipy and a brute-force twin, on files, and what is refused."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from pseudolabel.calibration import (
    MIN_MASKS,
    Calibration,
    expected_calibration_error,
    fit_calibration,
    fit_from_files,
    load_calibration,
    pool_adjacent_violators,
)
from pseudolabel.errors import DataError
from pseudolabel.files import file_hash, write_json
from pseudolabel.masks import encode_rle

FACTS = {"measure": "stability", "labeler": {"weights_sha256": "w", "config_sha256": "c"}}
unit = st.floats(0, 1)


def made(quality=(0.2, 0.8), iou=(0.1, 0.9)):
    return Calibration(tuple(quality), tuple(iou), FACTS)


def naive_isotonic(values, weights):
    """Min-max formula: the largest over starts of the smallest mean that begins there."""
    size = len(values)
    return [
        max(
            min(
                np.average(values[first : last + 1], weights=weights[first : last + 1])
                for last in range(place, size)
            )
            for first in range(place + 1)
        )
        for place in range(size)
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(unit, st.floats(0.1, 5)), min_size=1, max_size=12))
def test_pooling_equals_scipy_and_the_min_max_formula(pairs):
    values, weights = np.array(pairs).T
    blocks = pool_adjacent_violators(values, weights)
    assert [start for start, *_ in blocks] == [0, *(stop for _, stop, _ in blocks[:-1])]
    fitted = np.concatenate([np.full(stop - start, mean) for start, stop, mean in blocks])
    assert fitted == pytest.approx(isotonic_regression(values, weights=weights).x, abs=1e-9)
    assert fitted == pytest.approx(naive_isotonic(values, weights), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(np.linspace(0, 1, 9).tolist()), unit), min_size=20))
def test_a_fit_rises_and_keeps_the_mean_of_what_it_was_fitted_on(pairs):
    quality, iou = np.array(pairs).T
    fitted = fit_calibration(quality, iou, FACTS)
    assert (np.diff(fitted.quality) > 0).all()
    assert (np.diff(fitted.iou) >= 0).all()
    values = [fitted.apply(q) for q in np.linspace(-0.5, 1.5, 50)]
    assert all(0 <= a <= b <= 1 for a, b in pairwise(values))
    levels = isotonic_regression(
        [iou[quality == q].mean() for q in np.unique(quality)],
        weights=[(quality == q).sum() for q in np.unique(quality)],
    ).x
    assert set(np.round(fitted.iou, 9)) == set(np.round(levels, 9))


def test_a_distorted_quality_is_straightened_on_other_masks():
    rng = np.random.default_rng(0)
    true = rng.uniform(0.2, 0.9, 2000)
    stated = true**3
    fitted = fit_calibration(stated[:1000], true[:1000], FACTS)
    after = np.array([fitted.apply(q) for q in stated[1000:]])
    assert expected_calibration_error(stated[1000:], true[1000:]) > 0.2
    assert expected_calibration_error(after, true[1000:]) < 0.01


@pytest.mark.parametrize(
    ("quality", "iou", "expected"),
    [
        ([0.5, 0.5], [0.5, 0.5], 0.0),  # right
        ([0.55, 0.55], [0.0, 1.0], 0.05),  # right on average over a bin
        ([0.1, 0.9], [0.2, 0.8], 0.1),  # errors of two bins do not cancel
        ([1.0, 0.0], [1.0, 0.0], 0.0),  # the ends belong to a bin
        ([0.0, 0.0, 0.0, 1.0], [0.4, 0.4, 0.4, 1.0], 0.3),  # weighted by share
    ],
)
def test_expected_calibration_error(quality, iou, expected):
    assert expected_calibration_error(quality, iou) == pytest.approx(expected)


def test_no_pairs_have_no_calibration_error():
    assert np.isnan(expected_calibration_error([], []))


@pytest.mark.parametrize(
    ("quality", "iou", "message"),
    [
        ([0.5] * (MIN_MASKS - 1), [0.5] * (MIN_MASKS - 1), "at least"),
        ([0.5] * 30, [0.5] * 29, "one quality per IoU"),
        ([np.nan] * 30, [0.5] * 30, "numbers of"),
        ([0.5] * 30, [1.5] * 30, "numbers of"),
    ],
)
def test_what_cannot_be_fitted(quality, iou, message):
    with pytest.raises(ValueError, match=message):
        fit_calibration(quality, iou, FACTS)


def test_a_saved_calibration_is_the_same(tmp_path):
    made().save(tmp_path / "c.json")
    loaded = load_calibration(tmp_path / "c.json")
    assert loaded == made()
    assert loaded.describe() == made().describe()
    assert [loaded.apply(q) for q in (0, 0.2, 0.5, 1)] == pytest.approx([0.1, 0.1, 0.5, 0.9])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "no calibration"),
        ({"quality": [0.8, 0.2]}, "do not rise"),
        ({"iou": [0.9, 0.1]}, "do not rise"),
        ({"quality": [0.2]}, "no two equal lists"),
        ({"quality": [], "iou": []}, "no two equal lists"),
        ({"quality": [0.2, float("nan")]}, "no two equal lists"),
        ({"iou": "text"}, "incomplete"),
        ({"facts": 3}, "incomplete"),
        ({"iou": [0.1, 0.8]}, "hash differs"),  # edited by hand
        ({"facts": {}}, "hash differs"),  # the images are part of it
        ({"sha256": None}, "hash differs"),
    ],
)
def test_unusable_files_are_refused(tmp_path, change, message):
    path = tmp_path / "c.json"
    made().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        load_calibration(path)


@pytest.mark.parametrize("key", ["quality", "weights_sha256", "config_sha256"])
def test_a_calibration_serves_its_own_labeler_alone(key):
    own = {"quality": "stability", "weights_sha256": "w", "config_sha256": "c"}
    made().check_fits(own, "c.json")
    with pytest.raises(DataError, match=f"c.json.*another {key}"):
        made().check_fits({**own, key: "else"}, "c.json")


def write_pair(folder, masks=MIN_MASKS, **labeler):
    """Label file with its manifest, and the truth: the right half of each mask is wrong."""
    whole, half = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    whole[2:6, 2:6] = half[2:6, 2:4] = True
    images = [{"id": k, "file_name": f"{k}.png", "width": 8, "height": 8} for k in (1, 2)]
    truth, labels = [], []
    for key in range(1, masks + 2):
        shared = {"id": key, "image_id": 1, "category_id": 1, "bbox": [2, 2, 4, 4], "iscrowd": 0}
        truth.append({**shared, "segmentation": encode_rle(whole)})
        source = "model" if key <= masks else "filled_tiny"
        labels.append(
            {**shared, "segmentation": encode_rle(half), "quality": 0.9, "mask_source": source}
        )
    shared = {"images": images, "categories": [{"id": 1, "name": "x"}]}
    write_json(folder / "truth.json", {**shared, "annotations": truth})
    write_json(folder / "labels.json", {**shared, "annotations": labels})
    manifest = {"labeler": {"name": "mal", "quality": "stability", **labeler}}
    manifest["output_sha256"] = file_hash(folder / "labels.json")
    write_json(folder / "labels.manifest.json", manifest)
    return folder / "labels.json", folder / "truth.json"


def test_fit_from_files_names_images_and_leaves_filled_boxes_out(tmp_path):
    fitted = fit_from_files(*write_pair(tmp_path, weights_sha256="w"))
    assert (fitted.quality, fitted.iou) == ((0.9,), (0.5,))
    facts = fitted.describe()
    assert facts["image_ids"] == [1]
    assert facts["file_names"] == ["1.png"]
    assert facts["instances"] == MIN_MASKS
    assert facts["measure"] == "stability"
    assert facts["labeler"]["weights_sha256"] == "w"
    assert len(facts["file_sha256"]) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": MIN_MASKS - 1}, "labels.json.*at least"),
        ({"calibration": {"sha256": "x"}}, "labelled with a calibration"),
    ],
)
def test_files_that_cannot_be_fitted(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        fit_from_files(*write_pair(tmp_path, **options))


def other_images(data):
    for annotation in data["annotations"]:
        annotation["image_id"] = 2


# The file, what happens to it after labelling, whether its manifest is written anew, and the error.
SPOILT = [
    ("truth", other_images, r"truth\.json.*is on image 2, the label is on image 1"),
    ("truth", lambda d: d.pop("annotations"), r"truth\.json: has no list"),
    ("labels", lambda d: d.pop("annotations"), r"labels\.json: has no list"),
    ("labels", lambda d: d["annotations"][0].update(quality=0.1), "file that its manifest was"),
    ("labels.manifest", lambda d: d.update(labeler=None), "describes no labeler"),
    ("labels.manifest", lambda d: d.update(output_sha256=0), "its manifest was"),
    ("labels.manifest", lambda d: d.update(review={"counts": {}}), "corrected by hand"),
]


@pytest.mark.parametrize(("name", "change", "message"), SPOILT)
def test_files_that_do_not_belong_together(tmp_path, name, change, message):
    pair = write_pair(tmp_path)
    spoil(tmp_path / f"{name}.json", change)
    with pytest.raises(DataError, match=message):
        fit_from_files(*pair)


@pytest.mark.parametrize("change", [{"quality": None}, {"quality": "high"}, {"segmentation": None}])
def test_labels_that_state_no_quality_or_mask(tmp_path, change):
    pair = write_pair(tmp_path)
    spoil(pair[0], lambda d: d["annotations"][2].update(change))
    digest = file_hash(pair[0])
    spoil(tmp_path / "labels.manifest.json", lambda d: d.update(output_sha256=digest))
    with pytest.raises(DataError, match=r"labels\.json \(annotation 3\)"):
        fit_from_files(*pair)


def spoil(path, change):
    data = json.loads(path.read_text())
    change(data)
    write_json(path, data)
