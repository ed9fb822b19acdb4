"""Any Detectron2 model of instances as labeler "detector": it finds its own boxes on an image.

Shape legend: H, W image rows and columns, N instances, M side of a mask head's map.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNN, build_model, detector_postprocess
from torch import nn
from yaml import YAMLError

from pseudolabel.config import add_masksmith_config
from pseudolabel.errors import DataError
from pseudolabel.evaluation import load_complete
from pseudolabel.files import expand_path, file_hash, read_json
from pseudolabel.job.found import FoundInstance
from pseudolabel.labeler import LABELERS, finish_record
from pseudolabel.masks import meets_image
from pseudolabel.quality import mean_probability
from pseudolabel.registration import sorted_categories

# What the quality of an instance is made of, best first; `describe` names it.
PREDICTED, PROBABILITY, SCORE = "pred_quality", "mean_mask_probability", "score"
# Height and width of the blank image that shows which fields a model gives.
PROBE = (64, 96)
_CONFIG_ERRORS = (
    *(AssertionError, AttributeError, KeyError, OSError),
    *(RuntimeError, TypeError, ValueError),
)


def add_detector_config(cfg: CfgNode) -> None:
    """Adds the labeler's own keys to a config, in place."""
    cfg.DETECTOR = CfgNode()
    # Instances of at least this class score are labels; the model may cut before, as Mask R-CNN
    # does at MODEL.ROI_HEADS.SCORE_THRESH_TEST.
    cfg.DETECTOR.SCORE_THRESH = 0.5


class DetectorLabeler:
    """Labels an image with what a model finds on it (a `pseudolabel.job.found.Finder`).

    The model runs on one image at a time, so that a label depends on its image alone. An instance
    whose box is empty or off the image gets the box of its mask, and is dropped without one.

    Args:
        model: instance segmentation; Detectron2's input and output formats.
        categories: COCO categories in the order of the model's classes.
        description: JSON-able facts for the manifest.
        score_thresh: lowest class score of a label.
        min_size, max_size: of the resized image, as INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST.
        image_format: channels that the model was trained on, "RGB" or "BGR".

    Raises:
        DataError: the model gives no masks.
    """

    name = "detector"

    def __init__(
        self,
        model: nn.Module,
        categories: list[dict[str, Any]],
        description: dict[str, Any],
        *,
        score_thresh: float = 0.5,
        min_size: int = 800,
        max_size: int = 1333,
        image_format: str = "BGR",
    ):
        self.model, self.categories = model.eval(), categories
        self.score_thresh, self.image_format = score_thresh, image_format
        self.resize = ResizeShortestEdge(min_size, max_size)
        accepted = inspect.signature(getattr(model, "inference", model.forward)).parameters
        # Before the masks are pasted they are probabilities; afterwards yes and no.
        self._two_steps = isinstance(model, GeneralizedRCNN) and "do_postprocess" in accepted
        self.quality = self._probe()
        self.description = {**description, "quality": self.quality, "score_thresh": score_thresh}

    def label(self, image: np.ndarray, boxes: np.ndarray | None = None) -> list[FoundInstance]:
        """The instances on the uint8 RGB image (H, W, 3), in the model's order.

        Args:
            boxes: must be None; "mal" draws masks in given boxes.

        Raises:
            DataError: boxes were given, or the model gives no number, or no class of its config.
        """
        if boxes is not None:
            raise DataError(
                f"--labeler {self.name}",
                "finds its own boxes and has no use for given ones",
                "leave --boxes out, or take --labeler mal",
            )
        found = self._predict(image)
        keep = [k for k, score in enumerate(found["scores"]) if not score < self.score_thresh]
        instances = (self._instance(found, index, image.shape[:2]) for index in keep)
        return [instance for instance in instances if instance is not None]

    def describe(self) -> dict[str, Any]:
        """Name, source of the quality ("pred_quality" of the model, "mean_mask_probability" in the
        mask, or the class "score"), threshold, hashes of config, weights and classes, device."""
        return {"name": self.name, **self.description}

    def _probe(self) -> str:
        fields = self._predict(np.zeros((*PROBE, 3), np.uint8)).keys()
        if "pred_masks" not in fields:
            raise DataError(
                f"--labeler {self.name}", "the model gives no masks", "train with MODEL.MASK_ON"
            )
        return next((name for name in (PREDICTED, PROBABILITY) if name in fields), SCORE)

    @torch.no_grad()
    def _predict(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Fields of the model's instances, in the frame of the image, each an array (N, ...)."""
        height, width = image.shape[:2]
        channels = image if self.image_format == "RGB" else image[:, :, ::-1]
        resized = self.resize.get_transform(channels).apply_image(np.ascontiguousarray(channels))
        pixels = np.ascontiguousarray(resized.transpose(2, 0, 1)).astype(np.float32)
        sample = {"image": torch.from_numpy(pixels), "height": height, "width": width}
        if self._two_steps:
            small = self.model.inference([sample], do_postprocess=False)[0]
            if small.has("pred_masks"):
                small.set(PROBABILITY, _mean_probabilities(small.pred_masks))
            instances = detector_postprocess(small, height, width)
        else:
            instances = self.model([sample])[0]["instances"]
        fields = dict(instances.get_fields())
        # A model that ranks by something else keeps the scores of its classes beside that.
        if "class_scores" in fields:
            fields["scores"] = fields.pop("class_scores")
        boxes = fields.pop("pred_boxes", None)
        fields["boxes"] = torch.zeros(len(instances), 4) if boxes is None else boxes.tensor
        return {
            name: values.cpu().numpy()
            for name, values in fields.items()
            if isinstance(values, torch.Tensor)
        }

    def _instance(
        self, found: dict[str, np.ndarray], index: int, size: tuple[int, int]
    ) -> FoundInstance | None:
        score, box = float(found["scores"][index]), found["boxes"][index].astype(np.float64)
        label, mask = int(found["pred_classes"][index]), found["pred_masks"][index] > 0
        field = "scores" if self.quality == SCORE else self.quality
        quality = float(found[field][index]) if field in found else float("nan")
        if not (0 <= score <= 1 and 0 <= quality <= 1 and 0 <= label < len(self.categories)):
            raise DataError(
                f"--labeler {self.name}",
                f"the model gives score {score}, {self.quality} {quality} and class {label} of "
                f"{len(self.categories)}",
                "check that weights, config and its data set belong to each other",
            )
        if not (meets_image(box, *size) and (box[2:] > box[:2]).all()):
            box = _box_around(mask)
        if box is None:
            return None
        record = finish_record(mask, 0, 0, box, *size, quality)
        return FoundInstance(tuple(box.tolist()), self.categories[label]["id"], score, record)


def _mean_probabilities(maps: torch.Tensor) -> torch.Tensor:
    """(N,) mean of each map (N, 1, M, M) over where it exceeds a half."""
    values = maps.flatten(1).cpu().numpy()
    means = [mean_probability(row, row >= 0.5) for row in values]
    return torch.tensor(means, dtype=torch.float64)


def _box_around(mask: np.ndarray) -> np.ndarray | None:
    """XYXY of the pixels of a mask (H, W); None where it has none."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def shared_config() -> CfgNode:
    """Detectron2's config with the keys that all methods share."""
    cfg = get_cfg()
    add_masksmith_config(cfg)
    return cfg


def load_config(
    config_file: str, opts: list[str], new_config: Callable[[], CfgNode] = shared_config
) -> CfgNode:
    """The config of a detector's training run: its YAML, or the `config.yaml` of its output.

    The saved config of a run holds the keys of every method; those unknown here are taken over. A
    YAML holds some of them, so the others need the defaults of `new_config`.

    Args:
        config_file: YAML.
        opts: KEY VALUE pairs.
        new_config: makes the config that the YAML is merged into.

    Raises:
        DataError: the file is missing or no config, or a key or value of `opts` does not fit.
    """
    cfg = new_config()
    add_detector_config(cfg)
    device = cfg.MODEL.DEVICE
    cfg.set_new_allowed(True)
    with _clear_errors(config_file, "give the YAML of a detector's training run"):
        cfg.merge_from_file(config_file, allow_unsafe=False)
    # A saved config names the machine it was trained on.
    cfg.MODEL.DEVICE = device
    with _clear_errors("options", "give pairs of a config key and its value"):
        cfg.merge_from_list(opts)
    # The checkpoint holds every weight.
    cfg.MODEL.WEIGHTS = ""
    return cfg


@contextmanager
def _clear_errors(where: str, remedy: str) -> Iterator[None]:
    """Whatever yacs, yaml and the models say of a bad config becomes one `DataError`."""
    try:
        yield
    except DataError:
        raise
    except (*_CONFIG_ERRORS, YAMLError) as error:
        text = " ".join(str(error).split())[:300]
        raise DataError(where, f"cannot be used as a detector's config ({text})", remedy) from error


def trained_categories(cfg: CfgNode) -> list[dict[str, Any]]:
    """The COCO categories of the model's classes, by class: those of the first DATASETS.TRAIN.

    They are read from its JSON in DATASETS.REGISTER, or are those that Detectron2 has by itself for
    a data set of that name.

    Raises:
        DataError: neither knows them, or their number is not the model's.
    """
    name = next(iter(cfg.DATASETS.TRAIN), "")
    entries = [dict(e) for e in cfg.DATASETS.REGISTER if isinstance(e, dict)]
    entry = next((e for e in entries if e.get("name") == name), None)
    if entry is not None:
        json_file = expand_path(entry["json"])
        listed = sorted_categories(read_json(json_file), json_file)
        categories = [{"id": c["id"], "name": c["name"]} for c in listed]
    else:
        categories = _known_categories(name)
    stated = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if stated not in (0, len(categories)):
        raise DataError(
            "MODEL.ROI_HEADS.NUM_CLASSES",
            f"is {stated}, but {name} has {len(categories)} classes",
            "let DATASETS.REGISTER name the JSON that the model was trained on",
        )
    return categories


def _known_categories(name: str) -> list[dict[str, Any]]:
    metadata = MetadataCatalog.get(name) if name in MetadataCatalog.list() else None
    ids = metadata and metadata.get("thing_dataset_id_to_contiguous_id")
    if not ids:
        raise DataError(
            f"DATASETS.TRAIN {name!r}",
            "is no known data set, so the classes of the model have no names",
            "let DATASETS.REGISTER name the JSON that the model was trained on",
        )
    names = metadata.thing_classes
    return [{"id": key, "name": names[k]} for key, k in sorted(ids.items(), key=lambda i: i[1])]


@LABELERS.register()
def detector(
    config_file: str = "",
    weights: str = "",
    opts: list[str] | None = None,
    new_config: Callable[[], CfgNode] = shared_config,
) -> DetectorLabeler:
    """Builds the labeler "detector".

    Args:
        config_file: YAML of the training run.
        weights: its checkpoint, or any file that Detectron2's checkpointer reads.
        opts: KEY VALUE pairs that override the config; DETECTOR.SCORE_THRESH is the labeler's own.
        new_config: of `load_config`; with the keys of the methods whose YAMLs are to be read.

    Raises:
        DataError: config or weights are not named or unusable, or do not fit each other.
    """
    if not config_file or not weights:
        raise DataError(
            "labeler 'detector'", "needs a config and weights", "give --config-file and --weights"
        )
    cfg = load_config(config_file, opts or [], new_config)
    categories = trained_categories(cfg)
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise DataError("INPUT.FORMAT", f"is {cfg.INPUT.FORMAT!r}", "use a model of RGB or BGR")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(categories)
    cfg.freeze()
    with _clear_errors(config_file, "correct the value, or override it with KEY VALUE"):
        model = build_model(cfg).eval()
    if not Path(weights).is_file():
        raise DataError(weights, "the checkpoint does not exist", "train first")
    load_complete(model, weights)
    description = {
        "categories": categories,
        "config_sha256": _config_hash(cfg),
        "weights_sha256": file_hash(weights),
        "device": cfg.MODEL.DEVICE,
        "torch": torch.__version__,
    }
    return DetectorLabeler(
        model,
        categories,
        description,
        score_thresh=cfg.DETECTOR.SCORE_THRESH,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        image_format=cfg.INPUT.FORMAT,
    )


def _config_hash(cfg: CfgNode) -> str:
    """Hash of the keys that decide what is found; where the model runs is none of them."""
    own = cfg.clone()
    own.defrost()
    own.MODEL.DEVICE = ""
    parts = [own.MODEL.dump(), own.DETECTOR.dump(), str(own.TEST.DETECTIONS_PER_IMAGE)]
    parts += [str(own.INPUT[key]) for key in ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
