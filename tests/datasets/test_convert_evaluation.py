"""Converted data through the shipped configs: trained on, and evaluated with the true masks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from pseudolabel.config import add_masksmith_config
from pseudolabel.files import write_json
from pseudolabel.masks import decode_segmentation, xywh_to_xyxy
from pseudolabel.registration import register_datasets
from pseudolabel.trainer import Trainer

ROOT = Path(__file__).parents[2]
TINY = [
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.NORM", "GN", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "TEST.DETECTIONS_PER_IMAGE", 5),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 1),
    *("SOLVER.STEPS", "()"),
]


@pytest.fixture(scope="module")
def laid_out(data_dir, cityscapes, voc, tmp_path_factory):
    """The folder that `$DETECTRON2_DATASETS` names in the configs, converted JSONs included."""
    root = tmp_path_factory.mktemp("converted")
    sources = {
        "cityscapes": (data_dir / "cityscapes_like", "leftImg8bit", cityscapes.convert),
        "VOC2012": (data_dir / "voc_like/VOCdevkit/VOC2012", "JPEGImages", voc.convert),
    }
    for name, (source, images, convert) in sources.items():
        (root / name).mkdir()
        (root / name / images).symlink_to(source / images)
        for split in ("train", "val"):
            path = root / name / "annotations" / f"instances_{split}.json"
            write_json(path, convert(source, split).data)
    return root


@pytest.mark.parametrize(("config", "classes"), [("cityscapes", 8), ("voc", 20)])
def test_a_tiny_model_trains_and_is_evaluated(laid_out, tmp_path, config, classes):
    command = [sys.executable, ROOT / "tools/train_net.py", "--config-file"]
    command += [ROOT / f"configs/mask_rcnn/{config}.yaml", *TINY, "OUTPUT_DIR", tmp_path]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(laid_out), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    values = {key: value for line in lines for key, value in json.loads(line).items()}
    assert values["loss_mask"] > 0
    assert {"bbox/AP", "segm/AP"} <= values.keys()
    weights = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert weights["roi_heads.box_predictor.cls_score.weight"].shape[0] == classes + 1


def true_instances(annotations, ids, height, width):
    """What a perfect model would say of an image."""
    instances = Instances((height, width))
    boxes = [xywh_to_xyxy(a["bbox"]) for a in annotations]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.pred_classes = torch.tensor([ids[a["category_id"]] for a in annotations])
    instances.scores = torch.ones(len(annotations))
    masks = [decode_segmentation(a["segmentation"], height, width) for a in annotations]
    instances.pred_masks = torch.tensor(masks).reshape(-1, height, width)
    return instances


@pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy")
@pytest.mark.parametrize("config", ["cityscapes", "voc"])
def test_the_true_masks_score_all_points(laid_out, tmp_path, monkeypatch, config):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(laid_out))
    cfg = get_cfg()
    add_masksmith_config(cfg)
    cfg.merge_from_file(str(ROOT / f"configs/mask_rcnn/{config}.yaml"))
    names = register_datasets(cfg)
    try:
        (name,) = cfg.DATASETS.TEST
        metadata = MetadataCatalog.get(name)
        truth = json.loads(Path(metadata.json_file).read_text())
        evaluator = Trainer.build_evaluator(cfg, name, str(tmp_path))
        evaluator.reset()
        for image in truth["images"]:
            mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
            ids = metadata.thing_dataset_id_to_contiguous_id
            instances = true_instances(mine, ids, image["height"], image["width"])
            evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
        results = evaluator.evaluate()
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)
