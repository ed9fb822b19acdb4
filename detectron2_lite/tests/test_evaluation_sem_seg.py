"""Semantic segmentation scores against a naive count over pixels."""

import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

NAMES = ["sky", "road", "tree", "lamp"]
IGNORED = 255
HEIGHT, WIDTH = 12, 17


@pytest.fixture
def dataset(tmp_path):
    """Registers two images with label maps; returns (name, file names, label maps)."""
    random = np.random.RandomState(3)
    truths = []
    for stem in ("a", "b"):
        truth = random.randint(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)  # never class 3
        truth[:2] = IGNORED
        Image.fromarray(truth).save(tmp_path / f"{stem}.png")
        Image.fromarray(truth).save(tmp_path / f"{stem}.jpg")
        truths.append(truth)
    name = "lite_sem_seg_test"
    DatasetCatalog.register(name, lambda: load_sem_seg(str(tmp_path), str(tmp_path)))
    MetadataCatalog.get(name).set(stuff_classes=NAMES, ignore_label=IGNORED)
    yield name, [record["file_name"] for record in DatasetCatalog.get(name)], truths
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def _noisy(truths):
    random = np.random.RandomState(4)
    out = []
    for truth in truths:
        noise = random.randint(0, 4, truth.shape)
        out.append(np.where((random.rand(*truth.shape) < 0.6) & (truth < 4), truth, noise))
    return out


def _evaluate(evaluator, files, predictions):
    evaluator.reset()
    for file_name, predicted in zip(files, predictions):
        scores = torch.nn.functional.one_hot(torch.as_tensor(predicted).long(), 4)
        evaluator.process([{"file_name": file_name}], [{"sem_seg": scores.permute(2, 0, 1)}])
    return evaluator.evaluate()


def _naive(truths, predictions):
    """Counts pixel by pixel."""
    pairs = [
        (int(t), int(p))
        for truth, predicted in zip(truths, predictions)
        for t, p in zip(truth.ravel(), predicted.ravel())
        if t != IGNORED
    ]
    iou, accuracy, share = {}, {}, {}
    for c in range(4):
        true = sum(t == c for t, _ in pairs)
        both = sum(t == p == c for t, p in pairs)
        union = sum(c in pair for pair in pairs)
        if true:
            iou[c], accuracy[c], share[c] = both / union, both / true, true / len(pairs)
    out = {"mIoU": np.mean(list(iou.values())), "fwIoU": sum(share[c] * iou[c] for c in iou)}
    out.update({f"IoU-{name}": iou.get(c, math.nan) for c, name in enumerate(NAMES)})
    out["mACC"] = np.mean(list(accuracy.values()))
    out["pACC"] = sum(t == p for t, p in pairs) / len(pairs)
    out.update({f"ACC-{name}": accuracy.get(c, math.nan) for c, name in enumerate(NAMES)})
    return {key: 100 * value for key, value in out.items()}


def test_scores(dataset):
    name, files, truths = dataset
    predictions = _noisy(truths)
    found = _evaluate(SemSegEvaluator(name, distributed=False), files, predictions)["sem_seg"]
    expected = _naive(truths, predictions)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, nan_ok=True)
    assert math.isnan(found["IoU-lamp"])  # predicted, never true: in no mean
    assert 20 < found["mIoU"] < 90


def test_perfect_prediction(dataset):
    name, files, truths = dataset
    perfect = [np.where(truth == IGNORED, 0, truth) for truth in truths]
    found = _evaluate(SemSegEvaluator(name), files, perfect)["sem_seg"]
    assert [found[key] for key in ("mIoU", "fwIoU", "mACC", "pACC")] == [100] * 4


@pytest.mark.parametrize("mapped", [True, False])
def test_files(dataset, tmp_path, mapped):
    name, files, truths = dataset
    if mapped:
        ids = {7: 0, 8: 1, 11: 2, 12: 3}
        MetadataCatalog.get(name).stuff_dataset_id_to_contiguous_id = ids
    predictions = _noisy(truths)
    out = tmp_path / "out"
    results = _evaluate(SemSegEvaluator(name, output_dir=str(out)), files, predictions)
    rows = json.loads((out / "sem_seg_predictions.json").read_text())
    of_first = [row for row in rows if row["file_name"] == files[0]]
    assert [r["category_id"] for r in of_first] == ([7, 8, 11, 12] if mapped else [0, 1, 2, 3])
    for label, row in enumerate(of_first):
        assert np.array_equal(mask_util.decode(row["segmentation"]), predictions[0] == label)
    saved = torch.load(out / "sem_seg_evaluation.pth", weights_only=True)
    assert saved == pytest.approx(results["sem_seg"], nan_ok=True)


def test_nothing_was_processed(dataset):
    found = SemSegEvaluator(dataset[0]).evaluate()["sem_seg"]
    assert found["fwIoU"] == 0
    assert all(math.isnan(value) for key, value in found.items() if key != "fwIoU")


def test_reset_forgets(dataset):
    name, files, truths = dataset
    evaluator = SemSegEvaluator(name)
    _evaluate(evaluator, files, _noisy(truths))
    perfect = [np.where(truth == IGNORED, 0, truth) for truth in truths]
    assert _evaluate(evaluator, files, perfect)["sem_seg"]["mIoU"] == 100


def test_own_loader_and_deprecated_arguments(dataset, caplog):
    name, files, truths = dataset
    loaded = []

    def load(path, dtype):
        loaded.append(path)
        return np.zeros((HEIGHT, WIDTH), dtype=dtype)

    evaluator = SemSegEvaluator(name, sem_seg_loading_fn=load, num_classes=4, ignore_label=0)
    assert "deprecated" in caplog.text
    found = _evaluate(evaluator, files, _noisy(truths))["sem_seg"]
    assert len(loaded) == 2
    assert math.isnan(found["mIoU"])  # everything is ignored
    with pytest.raises(AssertionError, match="num_classes is 3"):
        SemSegEvaluator(name, num_classes=3)


# (label map, part of the message)
WRONG = [
    (np.full((HEIGHT, WIDTH), 9), "from 9 to 9"),
    (np.full((HEIGHT, WIDTH), -1), "from -1"),
    (np.zeros((3, 3)), "(3, 3)"),
]


@pytest.mark.parametrize(("truth", "message"), WRONG)
def test_wrong_label_maps(dataset, truth, message):
    name, files, truths = dataset
    evaluator = SemSegEvaluator(name, sem_seg_loading_fn=lambda path, dtype: truth.astype(dtype))
    with pytest.raises(ValueError, match=r"\.png") as caught:
        _evaluate(evaluator, files, _noisy(truths))
    assert message in str(caught.value)


def test_metadata_is_needed(dataset):
    MetadataCatalog.remove(dataset[0])
    with pytest.raises(AttributeError, match="stuff_classes"):
        SemSegEvaluator(dataset[0])
    MetadataCatalog.get(dataset[0])
