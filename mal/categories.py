"""Which categories of a data set the classes of a class-aware decoder are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from pseudolabel.errors import DataError

SOURCE = "MODEL.MAL.DECODER"


def settle_categories(cfg: CfgNode) -> None:
    """Writes the category ids of a class-aware decoder into the config, in the order of classes.

    Class indices are those of Detectron2's dataset dicts; the ids make them mean something to a
    label job, which has the saved config and no training JSON. A class-agnostic decoder is left
    as it is. The data sets have to be registered.

    Args:
        cfg: `MODEL.MAL.DECODER.CATEGORY_IDS` is filled from `DATASETS.TRAIN`, frozen or not.

    Raises:
        DataError: data sets of `TRAIN` and `TEST` have different ids, or NUM_CLASSES or stated
            CATEGORY_IDS are not theirs.
    """
    decoder = cfg.MODEL.MAL.DECODER
    if not decoder.NUM_CLASSES:
        return
    known = {name: _category_ids(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    known = {name: ids for name, ids in known.items() if ids}
    if not known:
        return
    first, ids = next(iter(known.items()))
    for name, others in known.items():
        if others != ids:
            problem = f"the category ids of {first} and {name} differ"
            raise DataError(SOURCE, problem, "give both the same list, or set NUM_CLASSES 0")
    if len(ids) != decoder.NUM_CLASSES:
        problem = f"NUM_CLASSES is {decoder.NUM_CLASSES}, but {first} has {len(ids)} categories"
        raise DataError(SOURCE, problem, f"set it to {len(ids)}")
    if decoder.CATEGORY_IDS and list(decoder.CATEGORY_IDS) != ids:
        raise DataError(SOURCE, f"CATEGORY_IDS are not those of {first}", "leave them empty")
    frozen = cfg.is_frozen()
    cfg.defrost()
    decoder.CATEGORY_IDS = tuple(ids)
    if frozen:
        cfg.freeze()


def _category_ids(name: str) -> list[int]:
    """Ids of a registered data set by class index; [] where it states none."""
    indices = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id") or {}
    return sorted(indices, key=indices.get)


def category_classes(
    category_ids: Sequence[int], categories: Sequence[int] | None, boxes: np.ndarray
) -> Tensor:
    """The class index of each box for a class-aware decoder.

    Args:
        category_ids: of the decoder's classes, in their order.
        categories: category id of each box.
        boxes: (N, 4), for the message.

    Returns:
        (N,), long, on the CPU.

    Raises:
        DataError: there is no category per box, or one that the decoder was not trained on.
    """
    if categories is None or len(categories) != len(boxes):
        count = "none" if categories is None else len(categories)
        problem = f"needs the category of each of {len(boxes)} boxes, got {count}"
        raise DataError("labeler 'mal', class-aware", problem, "give `categories`")
    index = {category: position for position, category in enumerate(category_ids)}
    for category, box in zip(categories, np.asarray(boxes).tolist(), strict=True):
        if category not in index:
            raise DataError(
                "labeler 'mal', class-aware",
                f"was not trained on category {category}",
                "leave the annotation out, or use a class-agnostic labeler",
                f"box {box}",
            )
    return torch.tensor([index[category] for category in categories], dtype=torch.long)
