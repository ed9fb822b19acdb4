#!/usr/bin/env python3
"""Trains or evaluates any Masksmith config: MAL, then stock Mask R-CNN on its labels.

tools/train_net.py --config-file configs/mal/nuclei.yaml
tools/train_net.py --config-file configs/mask_rcnn/nuclei.yaml DATASETS.TRAIN "('x_mal',)"
tools/train_net.py --config-file ... --resume
tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import logging

import detectron2
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

import mal.data
import mal.mask_auto_labeler
import mal.pretext  # noqa: F401  (these register meta-architectures and pipelines)
from mal.config import add_mal_config
from pseudolabel.config import add_masksmith_config
from pseudolabel.loader import seed_everything
from pseudolabel.registration import register_datasets
from pseudolabel.trainer import Trainer

logger = logging.getLogger("masksmith.train_net")


def setup(args) -> CfgNode:
    """Config from file and command line, data sets registered, logs and seed set up."""
    cfg = get_cfg()
    add_masksmith_config(cfg)
    add_mal_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    register_datasets(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    for name in ("masksmith", "mal", "pseudolabel"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    logger.info("detectron2 %s", detectron2.__version__)
    seed_everything(cfg.SEED)
    return cfg


def evaluate(cfg: CfgNode) -> dict:
    """`--eval-only`: loads MODEL.WEIGHTS and evaluates on DATASETS.TEST."""
    model = Trainer.build_model(cfg)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(args) -> dict:
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
