"""MAL as a labeler: a trained checkpoint and its config become `Labeler` "mal"."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from yaml import YAMLError

from mal.categories import category_classes
from mal.config import add_mal_config
from mal.mask_auto_labeler import MaskAutoLabeler
from mal.predictor import BoxPredictor
from pseudolabel.calibration import Calibration, load_calibration
from pseudolabel.checkpoints import load_strictly
from pseudolabel.config import add_masksmith_config
from pseudolabel.errors import DataError
from pseudolabel.files import expand_path, file_hash
from pseudolabel.labeler import LABELERS, MaskRecord

# yacs asserts, and an unknown device or an old config version is a RuntimeError.
CONFIG_ERRORS = (
    *(AssertionError, AttributeError, KeyError, OSError),
    *(RuntimeError, TypeError, ValueError),
)


class MALLabeler:
    """Labels with the student or the teacher of a trained `MaskAutoLabeler`.

    The other one runs only where the measure of quality asks for it.

    Args:
        model: in evaluation mode.
        description: JSON-able facts for the manifest.
        quality: name of a measure in `pseudolabel.quality.MEASURES`.
        calibration: turns that measure into an expected IoU.
        category_ids: of the classes of a class-aware decoder, in their order; none for a
            class-agnostic one.

    Attributes:
        needs_categories: whether `label` has to be told the category of every box, one of
            `category_ids`.

    Raises:
        ValueError: no measure has that name.
    """

    name = "mal"

    def __init__(
        self,
        model: MaskAutoLabeler,
        description: dict[str, Any],
        quality: str,
        calibration: Calibration | None = None,
        category_ids: Sequence[int] = (),
    ):
        self.model, self.calibration = model.eval(), calibration
        self.category_ids = tuple(category_ids)
        self.needs_categories = bool(self.category_ids)
        facts = calibration.describe() if calibration else None
        self.description = {**description, "quality": quality, "calibration": facts}
        networks = {"student": model.student, "teacher": model.teacher}
        self.predictor = BoxPredictor(
            networks, model.normalize, **{**model.predict_options, "quality": quality}
        )

    def label(
        self, image: np.ndarray, boxes: np.ndarray, categories: Sequence[int] | None = None
    ) -> list[MaskRecord]:
        """One record per box (N, 4) on the uint8 RGB image (H, W, 3), in order.

        Args:
            image, boxes: see above.
            categories: category id of each box, where `needs_categories`; else not looked at.

        Raises:
            DataError: the network gives no number for a box, or does not know its category.
        """
        network = self.model.label_with
        told = {}
        if self.needs_categories:
            told["classes"] = category_classes(self.category_ids, categories, boxes)
        records = self.predictor.predict(image, boxes, [network], **told)[network]
        if self.calibration is None:
            return records
        return [self._calibrated(record) for record in records]

    def _calibrated(self, record: MaskRecord) -> MaskRecord:
        # A filled box has a quality of its own, which the calibration knows nothing of.
        if record.mask_source != "model":
            return record
        return replace(record, quality=self.calibration.apply(record.quality))

    def describe(self) -> dict[str, Any]:
        """Name, network, thresholds, measure of quality and the images it was calibrated on,
        hashes of config and weights, device and torch version."""
        return {"name": self.name, **self.description}


def load_config(config_file: str, opts: list[str]) -> CfgNode:
    """The config of a MAL training run: its YAML, or the `config.yaml` of its output folder.

    Raises:
        DataError: the file is missing or no config, or a key or value does not fit.
    """
    cfg = get_cfg()
    add_masksmith_config(cfg)
    add_mal_config(cfg)
    device = cfg.MODEL.DEVICE
    # A saved config also holds the keys of the other methods that tools/train_net.py knows.
    cfg.set_new_allowed(True)
    cfg.MODEL.MAL.set_new_allowed(False)
    with _clear_errors(config_file, "give the YAML of a MAL training run"):
        cfg.merge_from_file(config_file, allow_unsafe=False)
    cfg.set_new_allowed(False)
    # A saved config names the machine it was trained on.
    cfg.MODEL.DEVICE = device
    with _clear_errors("options", "give pairs of a config key and its value"):
        cfg.merge_from_list(opts)
    # The checkpoint holds every weight; the pretraining file need not be there any more.
    cfg.MODEL.MAL.ENCODER.WEIGHTS = ""
    cfg.freeze()
    return cfg


@contextmanager
def _clear_errors(where: str, remedy: str) -> Iterator[None]:
    """Whatever yacs, yaml and the networks say of a bad config becomes one `DataError`."""
    try:
        yield
    except DataError:
        raise
    except (*CONFIG_ERRORS, YAMLError) as error:
        text = " ".join(str(error).split())
        # yacs quotes the whole tree where a section got a plain value; the key comes last.
        text = text if len(text) <= 300 else f"{text[:100]} ... {text[-150:]}"
        raise DataError(where, f"cannot be used as a config of MAL ({text})", remedy) from error


@LABELERS.register()
def mal(config_file: str = "", weights: str = "", opts: list[str] | None = None) -> MALLabeler:
    """Builds the labeler "mal".

    Args:
        config_file: YAML of the training run.
        weights: checkpoint of the training run.
        opts: KEY VALUE pairs that override the config, as on the command line.

    Raises:
        DataError: config or weights are not named or unusable, or do not fit each other.
    """
    if not config_file or not weights:
        raise DataError(
            "labeler 'mal'", "needs a config and weights", "give --config-file and --weights"
        )
    cfg = load_config(config_file, opts or [])
    with _clear_errors(config_file, "correct the value, or override it with KEY VALUE"):
        model = MaskAutoLabeler(cfg).to(cfg.MODEL.DEVICE)
    load_strictly(model, weights)
    category_ids = _stated_categories(cfg, config_file)
    test = cfg.MODEL.MAL.TEST
    description = {
        "network": test.NETWORK,
        "thresholds": list(test.THRESHOLDS),
        "config_sha256": _config_hash(cfg),
        "weights_sha256": file_hash(weights),
        "trained_steps": int(model.steps),
        "device": cfg.MODEL.DEVICE,
        "torch": torch.__version__,
    }
    calibration = load_calibration(expand_path(test.CALIBRATION)) if test.CALIBRATION else None
    if calibration is not None:
        calibration.check_fits({"quality": test.QUALITY, **description}, test.CALIBRATION)
    with _clear_errors(config_file, "correct the value, or override it with KEY VALUE"):
        return MALLabeler(model, description, test.QUALITY, calibration, category_ids)


def _stated_categories(cfg: CfgNode, config_file: str) -> tuple[int, ...]:
    """The category ids of a class-aware decoder; () of a class-agnostic one.

    Raises:
        DataError: the config does not have one for each class.
    """
    decoder = cfg.MODEL.MAL.DECODER
    if not decoder.NUM_CLASSES:
        return ()
    if len(set(decoder.CATEGORY_IDS)) != decoder.NUM_CLASSES:
        raise DataError(
            config_file,
            f"has {len(set(decoder.CATEGORY_IDS))} CATEGORY_IDS for a decoder of "
            f"{decoder.NUM_CLASSES} classes",
            "give the config.yaml of the training run's output folder",
        )
    return tuple(decoder.CATEGORY_IDS)


def _config_hash(cfg: CfgNode) -> str:
    """Hash of all that MAL is and does; a calibration counts by its content, not by its path.

    The scale of its pixels stands outside of MAL's own section, and in no checkpoint.
    """
    own = cfg.MODEL.MAL.clone()
    own.defrost()
    own.TEST.CALIBRATION = ""
    scale = [[float(value) for value in key] for key in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)]
    return hashlib.sha256(f"{own.dump()}{scale}".encode()).hexdigest()
