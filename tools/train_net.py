#!/usr/bin/env python3
"""Trains or evaluates any Masksmith config: MAL, then stock Mask R-CNN on its labels.

tools/train_net.py --config-file configs/mal/nuclei.yaml
tools/train_net.py --config-file configs/mask_rcnn/nuclei.yaml DATASETS.TRAIN "('x_mal',)"
tools/train_net.py --config-file ... --resume
tools/train_net.py --config-file ... --num-gpus 8
torchrun --nproc-per-node 8 tools/train_net.py --config-file ...
tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import logging
import sys
from argparse import Namespace

import detectron2
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessRaisedException

from mal.categories import settle_categories
from masksmith import new_config, register_methods
from pseudolabel.config import changes_since_last_run, draw_seed
from pseudolabel.data_hashes import write_data_hashes
from pseudolabel.distributed import data_error_of, run_everywhere
from pseudolabel.errors import DataError
from pseudolabel.evaluation import load_complete
from pseudolabel.loader import seed_everything
from pseudolabel.registration import register_datasets
from pseudolabel.trainer import Trainer, check_evaluation

logger = logging.getLogger("masksmith.train_net")


def setup(args: Namespace) -> CfgNode:
    """Config from file and command line, data sets registered, logs and seed set up.

    Args:
        args: of Detectron2's `default_argument_parser`.

    Raises:
        DataError: as of `register_datasets` and `settle_categories`.
    """
    register_methods()
    cfg = new_config()
    cfg.merge_from_file(args.config_file, allow_unsafe=False)
    cfg.merge_from_list(args.opts)
    register_datasets(cfg)
    settle_categories(cfg)
    drawn = cfg.SEED < 0
    if drawn:
        cfg.SEED = draw_seed(cfg, args.resume)
    cfg.freeze()
    # `default_setup` overwrites the saved config, so it is compared before.
    changes = changes_since_last_run(cfg) if args.resume else []
    default_setup(cfg, args)
    for name in ("masksmith", "mal", "pais", "masksmith_projects", "pseudolabel"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    logger.info("detectron2 %s", detectron2.__version__)
    if drawn:
        logger.info("SEED %d, drawn since the config states a negative one", cfg.SEED)
    if changes:
        logger.warning("this run resumes one of another config:\n  %s", "\n  ".join(changes))
    seed_everything(cfg.SEED)
    return cfg


def evaluate(cfg: CfgNode) -> dict:
    """`--eval-only`: loads MODEL.WEIGHTS, which must be complete, and evaluates on DATASETS.TEST.

    Without MODEL.WEIGHTS the network is evaluated as it starts a training.

    Returns:
        {task: {metric: value}}; one such dict per data set where there are several.

    Raises:
        DataError: a test set cannot be evaluated, or the weights are not the model's.
    """
    check_evaluation(cfg)
    model = Trainer.build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        load_complete(model, cfg.MODEL.WEIGHTS)
    else:
        logger.warning("MODEL.WEIGHTS is empty: this evaluates the network as initialised")
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(args: Namespace) -> dict | None:
    """Trains, or evaluates with `--eval-only`; the work of one process.

    Returns:
        The numbers of `evaluate`; of a training, only where TEST.EXPECTED_RESULTS are stated.
    """
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg)
    trainer = Trainer(cfg)
    if comm.is_main_process():
        write_data_hashes(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run(args: Namespace) -> int:
    """`main` in every process that is asked for.

    Returns:
        The exit status: 0, or 1 with one clear error line for bad input. Anything else is raised.
    """
    try:
        run_everywhere(main, args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ProcessRaisedException as error:
        message = data_error_of(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(default_argument_parser().parse_args()))
