"""Mask IoU from true boxes: means, size bins by box area, errors by name."""

import json
import math

import numpy as np
import pytest

from pseudolabel.errors import DataError
from pseudolabel.evaluation import MaskIoUEvaluator
from pseudolabel.labeler import finish_record
from pseudolabel.mask_iou import score_label_file, summarize_ious
from pseudolabel.masks import encode_rle


def annotation(key, bbox, mask, category=1, **more):
    return {
        "id": key,
        "image_id": 1,
        "category_id": category,
        "bbox": bbox,
        "segmentation": encode_rle(mask),
        **more,
    }


def square(y0, x0, side, size=200):
    mask = np.zeros((size, size), bool)
    mask[y0 : y0 + side, x0 : x0 + side] = True
    return mask


def write(path, annotations):
    image = {"id": 1, "file_name": "1.png", "width": 200, "height": 200}
    others = {"id": 2, "file_name": "2.png", "width": 200, "height": 200}
    data = {"images": [image, others], "annotations": annotations}
    path.write_text(json.dumps({**data, "categories": [{"id": 1, "name": "x"}]}))
    return path


def test_means_over_instances_classes_and_half_open_bins():
    rows = [
        (0.2, 1023, 1),  # small
        (0.4, 1024, 1),  # exactly 32^2 is medium
        (0.6, 9215, 1),
        (1.0, 9216, 2),  # exactly 96^2 is large
    ]
    result = summarize_ious(rows)
    assert result["mIoU"] == pytest.approx(0.55)
    assert result["class_mIoU"] == pytest.approx((0.4 + 1.0) / 2)
    assert (result["small"], result["large"]) == (0.2, 1.0)
    assert result["medium"] == pytest.approx(0.5)
    assert [result[f"n_{name}"] for name in ("small", "medium", "large")] == [1, 2, 1]


def test_no_instance_is_nan_not_zero():
    assert math.isnan(summarize_ious([])["mIoU"])


def test_label_file_against_truth(tmp_path):
    truth = [
        annotation(1, [10, 10, 20, 20], square(10, 10, 20)),
        annotation(2, [50, 50, 40, 40], square(50, 50, 40)),
        annotation(3, [0, 0, 9, 9], square(0, 0, 9), iscrowd=1),  # left out
    ]
    labels = [
        annotation(1, [10, 10, 20, 20], square(10, 10, 20)),  # perfect
        annotation(2, [50, 50, 40, 40], square(50, 50, 20)),  # a quarter of it
    ]
    result = score_label_file(
        write(tmp_path / "labels.json", labels), write(tmp_path / "truth.json", truth)
    )
    assert result["mIoU"] == pytest.approx((1 + 0.25) / 2)
    assert result["n"] == 2


def test_missing_label_is_an_error_not_a_smaller_mean(tmp_path):
    truth = write(tmp_path / "truth.json", [annotation(5, [1, 1, 9, 9], square(1, 1, 9))])
    with pytest.raises(DataError, match=r"labels\.json.*1 instances.*first id 5"):
        score_label_file(write(tmp_path / "labels.json", []), truth)


def test_truth_on_another_image_is_no_truth(tmp_path):
    # The same ids, the same mask, another image.
    one = annotation(5, [1, 1, 9, 9], square(1, 1, 9))
    truth = write(tmp_path / "truth.json", [{**one, "image_id": 2}])
    with pytest.raises(DataError, match=r"truth\.json.*5\): is on image 2, the label .* image 1"):
        score_label_file(write(tmp_path / "labels.json", [one]), truth)


def test_truth_without_masks_names_the_annotation(tmp_path):
    bare = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
    labels = [annotation(5, [1, 1, 9, 9], square(1, 1, 9))]
    with pytest.raises(DataError, match=r"truth\.json \(annotation 5\): has no mask"):
        score_label_file(
            write(tmp_path / "labels.json", labels), write(tmp_path / "truth.json", [bare])
        )


def test_evaluator_reports_each_network(tmp_path):
    boxes = [[10, 10, 20, 20], [50, 50, 40, 40]]
    truth = [
        annotation(1, boxes[0], square(10, 10, 20)),
        annotation(2, boxes[1], square(50, 50, 40)),
    ]
    evaluator = MaskIoUEvaluator(str(write(tmp_path / "truth.json", truth)), str(tmp_path))

    def records(share):
        for x, y, side, _ in boxes:
            patch = np.ones((side, int(side * share)))
            yield finish_record(patch, y, x, np.array([x, y, x + side, y + side]), 200, 200, 1)

    whole, half = list(records(1)), list(records(0.5))
    evaluator.process([{"annotation_ids": [1, 2]}], [{"student": half, "teacher": whole}])
    result = evaluator.evaluate()
    assert result["student"]["mIoU"] == pytest.approx(0.5)
    assert result["teacher"]["mIoU"] == pytest.approx(1.0)
    written = json.loads((tmp_path / "mask_iou.json").read_text())
    assert written["student"]["large"] is None  # no large box: null, not NaN
