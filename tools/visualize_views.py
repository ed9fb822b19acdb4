#!/usr/bin/env python3
"""Draws what teacher and student of a PAIS config see, as a PNG grid.

    tools/visualize_views.py configs/pais/sample.yaml --output views.png
    tools/visualize_views.py output/pais_sample/config.yaml --output views.png \\
        --weights output/pais_sample/model_final.pth

A row per image: the weak view, the labels on it, the strong view, and the labels as the map between
the views carries them there. Without --weights the masks of DATASETS.TRAIN stand in for labels;
with them, images of DATASETS.UNLABELLED get the teacher's pseudo-labels above
MODEL.PAIS.SCORE_FLOOR, and the fill of a mask shows its weight in the loss. Those not above
MODEL.PAIS.ROI_SCORE_FLOOR teach no mask: on the strong view they are grey outlines.

Exit status: 0 written; 1 with one clear error line; 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image
from yaml import YAMLError

from masksmith import new_config, register_methods
from pais.config import check_config
from pais.daloss import DALoss, score_floors
from pais.drawing import Example, View, draw_grid
from pais.mapper import TwoViews, UnlabelledMapper
from pais.mapping import map_boxes, map_masks, matrix_of
from pais.pipeline import unlabelled_records
from pais.pseudo_labels import WeakViews
from pais.semi_supervised_rcnn import SemiSupervisedRCNN
from pseudolabel.errors import DataError
from pseudolabel.evaluation import load_complete
from pseudolabel.files import atomic_write, failure_line, refuse_overwrite
from pseudolabel.loader import isolated_rng, mix_seed
from pseudolabel.masks import decode_segmentation
from pseudolabel.registration import register_datasets


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML of a PAIS run")
    parser.add_argument("--output", required=True, metavar="GRID.png", help="picture to write")
    parser.add_argument("--weights", help="checkpoint whose teacher gives the labels")
    parser.add_argument("--images", type=int, default=4, help="number of rows (4)")
    parser.add_argument("--side", type=int, default=420, help="of a panel, pixels (420)")
    parser.add_argument("--seed", type=int, default=0, help="of images and views (0)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    args = parser.parse_intermixed_args(argv)
    if args.images < 1 or args.side < 32 or args.seed < 0:
        parser.error("--images: at least 1; --side: at least 32; --seed: at least 0")
    if Path(args.output).suffix != ".png":
        parser.error("--output: name a .png file")
    return args


def load_config(args: argparse.Namespace) -> CfgNode:
    """The config with its data sets registered.

    Raises:
        DataError: the file is missing or no config, a key or value of the command line does not
            fit, or a data set is not sound.
    """
    if not Path(args.config).is_file():
        raise DataError(args.config, "the config does not exist", "check the path")
    register_methods()
    cfg = new_config()
    try:
        cfg.merge_from_file(args.config, allow_unsafe=False)
        cfg.merge_from_list(args.opts)
    except (AssertionError, KeyError, TypeError, ValueError, YAMLError) as error:
        text = " ".join(str(error).split())
        raise DataError(args.config, text, "correct the config, or KEY VALUE") from error
    check_config(cfg)
    register_datasets(cfg)
    cfg.freeze()
    return cfg


def load_model(cfg: CfgNode, weights: str) -> SemiSupervisedRCNN:
    """Teacher and student of a checkpoint.

    Raises:
        DataError: the config is of another model, or the weights are not the model's.
    """
    model = build_model(cfg).eval()
    if not isinstance(model, SemiSupervisedRCNN):
        name = cfg.MODEL.META_ARCHITECTURE
        raise DataError("MODEL.META_ARCHITECTURE", f"{name} has no teacher", "use a PAIS config")
    load_complete(model, weights)
    return model


def stand_ins(record: dict[str, Any], views: TwoViews) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, 4) and masks (N, H, W) of a record's annotations on its weak view; no crowds.

    Raises:
        DataError: a mask is malformed.
    """
    size, weak_size = (record["height"], record["width"]), views.weak.shape[:2]
    matrix = torch.from_numpy(matrix_of(views.to_weak))
    boxes, masks = np.zeros((0, 4)), np.zeros((0, *size), bool)
    annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    if annotations:
        xyxy = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        boxes = np.array(xyxy, dtype=np.float64)
        try:
            masks = np.stack([decode_segmentation(a["segmentation"], *size) for a in annotations])
        except (KeyError, ValueError) as error:
            problem = f"a mask is missing or malformed ({error})"
            raise DataError(record["file_name"], problem, "correct DATASETS.TRAIN") from error
    on_weak = map_masks(torch.from_numpy(masks), matrix, weak_size)
    # What lies outside of a crop is no label of the view.
    seen = on_weak.any(dim=2).any(dim=1)
    return map_boxes(torch.from_numpy(boxes), matrix, weak_size)[seen], on_weak[seen]


@torch.no_grad()
def example_of(
    cfg: CfgNode, mapper: UnlabelledMapper, record: dict[str, Any], model: SemiSupervisedRCNN | None
) -> Example:
    """The views of a record with its annotations, or with the pseudo-labels of a model's teacher.

    Raises:
        DataError: the image or a mask cannot be used.
    """
    views = mapper.look(record)
    sample = mapper.sample(record, views)
    known = {}
    if model is None:
        boxes, masks = stand_ins(record, views)
    else:
        here = {**sample, "weak_to_strong": torch.eye(3, dtype=torch.float64)}
        floors = score_floors(cfg.MODEL.PAIS)
        looked = WeakViews.look(model.teacher, [here])
        found = looked.pseudo_labels(floors.initial, [views.weak.shape[:2]])[0]
        boxes, masks = found.gt_boxes.tensor.cpu(), found.gt_masks.tensor.cpu()
        used = found.gt_scores > floors.roi
        weights = DALoss.from_config(cfg.MODEL.PAIS).masks(found.gt_quality) * used
        known = {"scores": found.gt_scores, "quality": found.gt_quality}
        known |= {"weights": weights, "used": used}
    size, matrix = views.strong.shape[:2], sample["weak_to_strong"]
    moved = map_boxes(boxes, matrix, size), map_masks(masks, matrix, size)
    rgb = slice(None) if cfg.INPUT.FORMAT == "RGB" else slice(None, None, -1)
    return Example(
        Path(record["file_name"]).name,
        View(np.ascontiguousarray(views.weak[:, :, rgb]), boxes.numpy(), masks.numpy()),
        View(np.ascontiguousarray(views.strong[:, :, rgb]), *(each.numpy() for each in moved)),
        **{name: values.cpu().numpy() for name, values in known.items()},
    )


def choose(records: Sequence[dict], number: int, seed: int) -> list[dict]:
    """Some records, drawn without repetition."""
    order = np.random.default_rng(seed).permutation(len(records))
    return [records[index] for index in order[:number]]


def run(args: argparse.Namespace) -> int:
    """Writes the picture. Returns 0.

    Raises:
        DataError: bad input.
    """
    for source in filter(None, (args.config, args.weights)):
        refuse_overwrite(source, args.output)
    cfg = load_config(args)
    model = load_model(cfg, args.weights) if args.weights else None
    if model is None:
        records = [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    else:
        records = unlabelled_records(cfg)
    mapper, examples = UnlabelledMapper(cfg), []
    for number, record in enumerate(choose(records, args.images, args.seed)):
        with isolated_rng(mix_seed(args.seed, number)):
            examples.append(example_of(cfg, mapper, record, model))
    if not examples:
        raise DataError(args.config, "its data sets have no image", "correct DATASETS.TRAIN")
    grid = Image.fromarray(draw_grid(examples, args.side, cfg.MODEL.PAIS.MASK_COEF))
    with atomic_write(args.output, "wb") as file:
        grid.save(file, format="PNG")
    labels = sum(len(example.weak.masks) for example in examples)
    unused = sum(int((~one.used).sum()) for one in examples if one.used is not None)
    grey = f", {unused} of them not above the floor of the heads" if unused else ""
    print(f"wrote {args.output}: {len(examples)} images with {labels} labels{grey}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """`run` for a command line. Returns the exit status."""
    args = parse_args(argv)
    try:
        return run(args)
    except (DataError, OSError) as error:
        print(f"error: {failure_line(error, args.output)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
