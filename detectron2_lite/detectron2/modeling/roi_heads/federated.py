"""Class frequencies for the federated loss (CenterNet2, Zhou et al. 2021, section 5)."""

from collections.abc import Sequence

import torch
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import check_metadata_consistency

__all__ = ["get_fed_loss_cls_weights"]


def get_fed_loss_cls_weights(
    dataset_names: str | Sequence[str], freq_weight_power: float = 1.0
) -> torch.Tensor:
    """Chance of each class to be sampled, unnormalised: its images to the power.

    Args:
        dataset_names: data sets, all with the same metadata "class_image_count": a list with
            ``{"id": ..., "image_count": ...}`` for every class.
        freq_weight_power: 0 makes all classes equal, 1 takes the counts themselves.

    Returns:
        (K,) float, in the order of the ids.

    Raises:
        AttributeError: for a data set without the counts. Upstream knows those of LVIS by heart;
            here they come with the data.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    if not names:
        raise ValueError(
            "The federated loss needs the class frequencies of the data: name it in DATASETS.TRAIN"
        )
    for name in names:
        if getattr(MetadataCatalog.get(name), "class_image_count", None) is None:
            raise AttributeError(
                f"Data set '{name}' has no metadata 'class_image_count', which the federated loss "
                f"needs: set MetadataCatalog.get('{name}').class_image_count to a list of "
                '{"id": category id, "image_count": number of images with it}, as an LVIS JSON '
                "has them in its categories"
            )
    check_metadata_consistency("class_image_count", names)
    rows = sorted(MetadataCatalog.get(names[0]).class_image_count, key=lambda row: row["id"])
    counts = torch.tensor([row["image_count"] for row in rows], dtype=torch.float32)
    return counts**freq_weight_power
