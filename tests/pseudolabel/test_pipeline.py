"""The stock pipeline: SAMPLER_TRAIN is obeyed or refused; a mask head gets masks."""

import json

import pytest

import mal.data
import mal.mask_auto_labeler  # noqa: F401  (these register the meta-architecture and pipeline)
from pseudolabel.errors import DataError
from pseudolabel.pipeline import build_pipeline
from tests.tiny import tiny_config, write_coco

REPEAT = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"]
THRESHOLD = ["DATALOADER.REPEAT_THRESHOLD", 0.6]


@pytest.mark.parametrize(
    ("opts", "factor"),
    [
        ([], 1),
        ([*REPEAT], 1),  # Detectron2's threshold of 0 repeats nothing
        # one image of six with a class of its own: .6 / (1 / 6) = 3.6
        ([*REPEAT, *THRESHOLD], 3.6**0.5),
        ([*REPEAT, *THRESHOLD, "DATALOADER.REPEAT_SQRT", False], 3.6),
    ],
)
def test_sampler_of_the_config_is_used(opts, factor, tmp_path):
    json_file = write_coco(tmp_path, images=6)
    data = json.loads(json_file.read_text())
    data["categories"].append({"id": 9, "name": "rare"})
    data["annotations"][0]["category_id"] = 9
    json_file.write_text(json.dumps(data))
    cfg = tiny_config("mask_rcnn/sample", json_file, tmp_path / "out", opts)
    dataset = build_pipeline(cfg).train_loader(cfg).dataset
    ids = [dataset.records[dataset.order(position)]["image_id"] for position in range(3000)]
    # A whole epoch has 5 + factor samples.
    assert ids.count(1) == pytest.approx(3000 * factor / (5 + factor), rel=0.05)


@pytest.mark.parametrize(
    ("method", "sampler", "message"),
    [
        ("mask_rcnn/sample", "RandomSubsetTrainingSampler", "is not supported.*use 'Training"),
        ("mask_rcnn/sample", "Repeat", "'Repeat' is not supported"),
        # a record of MAL is one box: there is no image to repeat
        (
            "mal/sample",
            REPEAT[1],
            "BoxCropPipeline trains on something else.*use 'TrainingSampler'",
        ),
        ("mal/sample", "Repeat", "'Repeat' is not supported"),
    ],
)
def test_other_sampler_is_refused(method, sampler, message, tmp_path):
    opts = ["DATALOADER.SAMPLER_TRAIN", sampler]
    cfg = tiny_config(method, write_coco(tmp_path), tmp_path / "out", opts)
    with pytest.raises(DataError, match=rf"DATALOADER\.SAMPLER_TRAIN.*{message}"):
        build_pipeline(cfg).train_loader(cfg)


def test_boxes_are_no_training_data_for_a_mask_head(tmp_path):
    json_file = write_coco(tmp_path)
    data = json.loads(json_file.read_text())
    del data["annotations"][2]["segmentation"]
    data["annotations"][5].update(segmentation=None, iscrowd=1)  # never trained on
    json_file.write_text(json.dumps(data))
    cfg = tiny_config("mask_rcnn/sample", json_file, tmp_path / "out")
    with pytest.raises(DataError, match=r"2\.png \(annotation 20\): has no mask.*label\.py"):
        build_pipeline(cfg).train_loader(cfg)
    cfg.MODEL.MASK_ON = False
    build_pipeline(cfg).train_loader(cfg)
