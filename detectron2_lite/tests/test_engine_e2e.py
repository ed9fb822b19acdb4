"""DefaultTrainer from a config to AP on a generated data set; empty images; NaN."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import (
    DefaultPredictor,
    DefaultTrainer,
    HookBase,
    default_argument_parser,
    default_setup,
)
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image


def _write_coco(folder):
    """Six images of bright rectangles on noise; polygon, RLE-free, one image without objects."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(6):
        pixels = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        images.append({"id": index, "file_name": f"{index}.png", "height": 48, "width": 64})
        for k in range(0 if index == 5 else 1 + index % 2):
            x, y, w, h = 4 + 25 * k, 5 + index, 22, 20 + k
            pixels[y : y + h, x : x + w, k] = 250
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": 7 * (k + 1),  # not contiguous
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        Image.fromarray(pixels).save(folder / f"{index}.png")
    categories = [{"id": 7, "name": "red"}, {"id": 14, "name": "green"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    _write_coco(folder)
    name = "lite_engine_test"
    register_coco_instances(name, {}, str(folder / "instances.json"), str(folder))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def _tiny_cfg(dataset="", output=""):
    """Stock Mask R-CNN R-18-FPN at a size that trains in seconds on one core."""
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True, "OUTPUT_DIR", str(output)),
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
            *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.FPN.OUT_CHANNELS", 16),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
            *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
            *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.PRE_NMS_TOPK_TEST", 50),
            *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", 2),
            *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
            *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
            *("INPUT.MIN_SIZE_TRAIN", (48,), "INPUT.MIN_SIZE_TEST", 48),
            *("DATASETS.TRAIN", (dataset,), "DATASETS.TEST", (dataset,)),
            *("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2),
            *("SOLVER.MAX_ITER", 4, "SOLVER.STEPS", (3,), "SOLVER.CHECKPOINT_PERIOD", 2),
            *("SOLVER.WARMUP_ITERS", 1, "SOLVER.BASE_LR", 0.01, "SEED", 1),
        ]
    )
    return cfg


class _Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, ("bbox", "segm"), output_dir=cfg.OUTPUT_DIR)


def test_default_trainer_trains_resumes_and_evaluates(dataset, tmp_path):
    cfg = _tiny_cfg(dataset, tmp_path)
    default_setup(cfg, default_argument_parser().parse_args([]))
    assert (tmp_path / "config.yaml").is_file()
    trainer = _Trainer(cfg)
    order = [type(h).__name__ for h in trainer._hooks]
    assert order == [
        *("IterationTimer", "LRScheduler", "PeriodicCheckpointer", "EvalHook", "PeriodicWriter")
    ]
    trainer.resume_or_load(resume=True)  # nothing to resume from yet
    assert trainer.start_iter == 0
    trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert (tmp_path / "model_0000001.pth").is_file()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert set(saved) == {"model", "trainer", "iteration"}
    assert saved["trainer"]["iteration"] == 3
    assert saved["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 4
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    for name in ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"):
        assert math.isfinite(rows[0][name])
    # The evaluation after training was written as scalars and results.
    assert {"bbox/AP", "segm/AP50", "bbox/AP-red"} <= set(rows[-1])
    assert (tmp_path / "coco_instances_results.json").is_file()

    cfg.SOLVER.MAX_ITER = 6
    resumed = _Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 4
    assert resumed.scheduler.last_epoch == 4
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)  # after STEPS
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, saved["model"][name]), name
    momentum = resumed.optimizer.state_dict()["state"][0]["momentum_buffer"]
    expected = saved["trainer"]["_trainer"]["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, expected)
    resumed.train()
    assert resumed.scheduler.last_epoch == 6
    results = resumed.test(cfg, resumed.model)
    assert set(results) == {"bbox", "segm"}
    assert resumed.model.training  # the mode is restored

    # The same weights through the predictor; a BGR image in, the original size out.
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    predict = DefaultPredictor(cfg)
    instances = predict(np.zeros((30, 60, 3), dtype=np.uint8))["instances"]
    assert instances.image_size == (30, 60)


def test_missing_evaluator_skips_the_test_set(dataset, tmp_path, caplog):
    cfg = _tiny_cfg(dataset, tmp_path)
    model = build_model(cfg)
    with caplog.at_level(logging.WARNING):
        assert DefaultTrainer.test(cfg, model) == {}
    assert "build_evaluator" in caplog.text


# (objects kept of each image of the batch)
EMPTY = [(0, 0), (1, 0)]  # nothing at all; one of two images has objects


@pytest.mark.parametrize("kept", EMPTY)
def test_images_without_objects_train(kept, dataset):
    cfg = _tiny_cfg(dataset)
    torch.manual_seed(0)
    model = build_model(cfg)
    mapper = DatasetMapper(cfg, True)
    batch = [mapper(record) for record in DatasetCatalog.get(dataset)[:2]]
    for element, count in zip(batch, kept):
        element["instances"] = element["instances"][:count]
    with EventStorage():
        losses = model(batch)
    assert len(losses) == 5
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is None or torch.isfinite(g).all() for g in grads)


def test_nan_pixels_stop_the_training(dataset, tmp_path):
    cfg = _tiny_cfg(dataset, tmp_path)
    trainer = DefaultTrainer(cfg)
    mapper = DatasetMapper(cfg, True)
    batch = [mapper(record) for record in DatasetCatalog.get(dataset)[:2]]
    batch[0]["image"] = batch[0]["image"].float() * math.nan
    trainer.data_loader = [batch]
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert not (tmp_path / "model_final.pth").exists()


def test_after_backward_is_for_hooks_of_the_inner_trainer(dataset, tmp_path):
    """As upstream: DefaultTrainer does not pass the event on to its own hooks."""
    cfg = _tiny_cfg(dataset, tmp_path)
    cfg.SOLVER.MAX_ITER = 1

    class Count(HookBase):
        calls = 0

        def after_backward(self):
            self.calls += 1

    trainer, outer, inner = DefaultTrainer(cfg), Count(), Count()
    trainer.register_hooks([outer])
    trainer._trainer.register_hooks([inner])
    trainer.train()
    assert (outer.calls, inner.calls) == (0, 1)


def test_weights_of_other_classes_load_partly(dataset, tmp_path):
    """Fine-tuning: the class-specific layers differ in shape and keep their initial values."""
    cfg = _tiny_cfg(dataset, tmp_path)
    source = build_model(cfg)
    DetectionCheckpointer(source, str(tmp_path)).save("source")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    target = build_model(cfg)
    before = target.roi_heads.box_predictor.cls_score.weight.detach().clone()
    DetectionCheckpointer(target).load(str(tmp_path / "source.pth"))
    assert torch.equal(target.backbone.fpn_output2.weight, source.backbone.fpn_output2.weight)
    assert torch.equal(target.roi_heads.box_predictor.cls_score.weight, before)
