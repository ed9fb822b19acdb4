"""Self-supervised warm-up of the mask network: segment blobs that were pasted by ourselves.

An extension of this project, not part of the paper, for machines without pretrained weights. It
reads images alone; annotations are never looked at.
"""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from mal.config_check import check_mal_config
from mal.data import to_tensor, training_crop
from mal.mask_supervision import mask_losses
from mal.network import build_network
from mal.pasted_blobs import make_exercise
from mal.resampling import resize_maps
from mal.views import student_view
from pseudolabel.errors import DataError
from pseudolabel.image_cache import ImageCache
from pseudolabel.loader import TrainLoader
from pseudolabel.pipeline import PIPELINES, build_train_loader

# Images that lend textures to one exercise.
SOURCES = 4


@META_ARCH_REGISTRY.register()
class MaskPretrainer(nn.Module):
    """Trains the student network of MAL on pasted blobs with dice and cross-entropy.

    `tools/export_weights.py` writes the encoder of its checkpoint out for MAL; the decoder has done
    its work then.

    Args:
        student: network with (images (B, 3, S, S), areas (B,)) -> logits (B, M, M).
        pixel_mean, pixel_std: per RGB channel, for values 0-255.
    """

    @configurable
    def __init__(self, *, student: nn.Module, pixel_mean: list[float], pixel_std: list[float]):
        super().__init__()
        self.student = student
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        check_mal_config(cfg)
        _check_exercise_config(cfg)
        return {
            "student": build_network(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Losses for crops of `ExerciseMapper`; there is nothing to infer with.

        Returns:
            {"loss_dice", "loss_bce"}.
        """
        device = self.pixel_mean.device
        views = torch.stack([x["student_view"] for x in batched_inputs]).to(device)
        areas = torch.tensor([x["box_area"] for x in batched_inputs])
        logits = self.student((views.float() - self.pixel_mean) / self.pixel_std, areas)
        masks = torch.stack([x["mask"] for x in batched_inputs]).to(device)
        return mask_losses(logits, resize_maps(masks[:, None], logits.shape[-1])[:, 0])


class ExerciseMapper:
    """An image record to one crop of an exercise: student_view, mask (uint8, S x S), box_area.

    Args:
        file_names: the images that may lend textures.
        crop_size: S.
        margin, gated, border: of the crop, as in MAL's training.
        cache: decoded images to keep.
    """

    @configurable
    def __init__(
        self,
        *,
        file_names: list[str],
        crop_size: int,
        margin: float,
        gated: bool,
        border: str = "wrap",
        cache: int = 0,
    ):
        self.file_names = file_names
        self.crop = {"size": crop_size, "margin": margin, "gated": gated, "border": border}
        self._read = ImageCache(cache)

    @classmethod
    def from_config(cls, cfg: CfgNode, file_names: list[str]) -> dict:
        mal = cfg.MODEL.MAL
        return {
            "file_names": file_names,
            "crop_size": mal.CROP_SIZE,
            "margin": mal.MARGIN,
            "gated": mal.MARGIN_GATED,
            "border": mal.BORDER,
            "cache": mal.IMAGE_CACHE,
        }

    def __call__(self, record: dict) -> dict:
        # The loader seeds numpy's global generator for this sample.
        rng = np.random.default_rng(np.random.randint(2**31))
        names = rng.choice(self.file_names, SOURCES)
        base, *sources = (self._read(str(name)) for name in (record["file_name"], *names))
        image, mask, box = make_exercise(rng, base, sources)
        crop, target = training_crop(rng, image, mask.astype(np.uint8), box, **self.crop)
        return {
            "file_name": record["file_name"],
            "student_view": to_tensor(student_view(crop, rng)),
            "mask": torch.from_numpy(target),
            "box_area": float((box[2] - box[0]) * (box[3] - box[1])),
        }


def _check_exercise_config(cfg: CfgNode) -> None:
    """An exercise has one crop per image, and its blob is of no class."""
    mal = cfg.MODEL.MAL
    for key, value, needed in (
        ("CROPS_PER_IMAGE", mal.CROPS_PER_IMAGE, 1),
        ("DECODER.NUM_CLASSES", mal.DECODER.NUM_CLASSES, 0),
    ):
        if value != needed:
            problem = f"is {value}, which the self-supervised warm-up does not know"
            raise DataError(f"MODEL.MAL.{key}", problem, f"set it to {needed}")


@PIPELINES.register()
class PastedBlobPipeline:
    """Exercises on the images of DATASETS.TRAIN; there is no evaluation (DATASETS.TEST empty)."""

    def train_loader(self, cfg: CfgNode) -> TrainLoader:
        records = [
            {key: record[key] for key in ("file_name", "height", "width")}
            for name in cfg.DATASETS.TRAIN
            for record in DatasetCatalog.get(name)
        ]
        names = [record["file_name"] for record in records]
        return build_train_loader(cfg, records, ExerciseMapper(cfg, names), group_by_aspect=False)
