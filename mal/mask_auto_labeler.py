"""The meta-architecture: student, EMA teacher, MIL and mean-field losses (Lan et al. 2023, 3).

Shape legend: B crops, S crop side, M map side.
"""

from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from mal.config_check import check_mal_config
from mal.dice import dice_loss
from mal.fill_monitor import FillMonitor, box_fill
from mal.label_refinement import LabelRefinement
from mal.mask_supervision import mask_losses
from mal.mean_field import initial_state, mean_field, mean_field_kernel
from mal.mil import mil_loss, warmup
from mal.network import build_network
from mal.predictor import BoxPredictor
from mal.resampling import resize_maps
from pseudolabel.ema import init_teacher, update_ema
from pseudolabel.labeler import MaskRecord


@META_ARCH_REGISTRY.register()
class MaskAutoLabeler(nn.Module):
    """Learns class-agnostic masks from boxes; labels boxes at test time.

    From a config, its values are checked first (`check_mal_config`).

    Args:
        student: network with (images (B, 3, S, S), box_areas (B,)) -> logits (B, M, M); gets
            `classes=` (B,) too where the batch knows them.
        teacher: same architecture; becomes a copy of the student at once. None: the mean field
            starts from the student alone.
        pixel_mean, pixel_std: per RGB channel, for values 0-255.
        mil_weight, mil_warmup, crf_weight, crf_warmup: alpha_mil, alpha_crf and the iterations
            over which each loss rises linearly. A crf_weight of 0 runs neither the mean field nor
            the teacher's forward pass.
        kernel: options of `mean_field_kernel`.
        refine: options of `mean_field`.
        momentum: of the teacher's moving average.
        predict: options of `BoxPredictor`.
        label_with: "student" or "teacher".
        guidance: whose colours guide the mean field, "student" (its augmented view) or "clean".
        supervision: "box", or "mask" for dice and cross-entropy on human masks; the teacher then
            only follows.

    Raises:
        DataError: from a config whose values cannot be used.
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module | None,
        pixel_mean: list[float],
        pixel_std: list[float],
        mil_weight: float,
        mil_warmup: int,
        crf_weight: float,
        crf_warmup: int,
        kernel: dict,
        refine: dict,
        momentum: float,
        predict: dict,
        label_with: str = "student",
        guidance: str = "student",
        supervision: str = "box",
    ):
        super().__init__()
        self.student, self.teacher = student, teacher
        if teacher is not None:
            init_teacher(teacher, student)
        self.guidance, self.supervision = guidance, supervision
        self.mil_weight, self.mil_warmup = mil_weight, mil_warmup
        self.crf_weight, self.crf_warmup = crf_weight, crf_warmup
        self.kernel, self.refine, self.momentum = kernel, refine, momentum
        self.predict_options, self.label_with = predict, label_with
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        # Steps done; in the checkpoint, so that the warm-ups go on where they were.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.monitors = {name: FillMonitor(name) for name in ("predicted mask", "CRF target")}
        # Fills of the batches of a step, on the device, until the step is done.
        self._fills: dict[str, list[Tensor]] = {}
        self._lacks_teacher = False
        self.register_load_state_dict_post_hook(_note_missing_teacher)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        check_mal_config(cfg)
        mal = cfg.MODEL.MAL
        kernel = {
            "zeta": mal.CRF.ZETA,
            "omega": mal.CRF.OMEGA,
            "kernel_size": mal.CRF.KERNEL_SIZE,
        }
        refine = {
            "iterations": mal.CRF.ITERATIONS,
            "low": mal.CRF.LOW,
            "high": mal.CRF.HIGH,
            "unary": mal.CRF.UNARY,
        }
        return {
            "student": build_network(cfg),
            # It becomes a copy of the student: pretrained weights need not be read twice.
            "teacher": build_network(cfg, pretrained=False) if mal.TEACHER else None,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "mil_weight": mal.MIL_WEIGHT,
            "mil_warmup": mal.MIL_WARMUP,
            "crf_weight": mal.CRF_WEIGHT,
            "crf_warmup": mal.CRF_WARMUP,
            "kernel": kernel,
            "refine": refine,
            "momentum": mal.TEACHER_MOMENTUM,
            "predict": {
                "crop_size": mal.CROP_SIZE,
                "margin": mal.TEST_MARGIN,
                "thresholds": tuple(mal.TEST.THRESHOLDS),
                "batch_size": mal.TEST.BATCH_SIZE,
                "border": mal.BORDER,
                "refinement": _label_refinement(mal.TEST, kernel, refine),
            },
            "label_with": mal.TEST.NETWORK,
            "guidance": mal.CRF.GUIDANCE,
            "supervision": mal.SUPERVISION,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Student and, if there is one, teacher by name."""
        both = {"student": self.student, "teacher": self.teacher}
        return {name: network for name, network in both.items() if network is not None}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training; in evaluation the records of every network for each image.

        Args:
            batched_inputs: training: crops of `BoxCropMapper`; evaluation: images of `ImageBoxes`.

        Returns:
            {"loss_mil", "loss_crf"} ("loss_crf" unless its weight is 0), {"loss_dice", "loss_bce"}
            on human masks, or [{"student": [MaskRecord, ...], "teacher": [...]}].
        """
        if not self.training:
            return [self.predict(x["image"], x["boxes"], x.get("classes")) for x in batched_inputs]
        # Read before a GPU is given work, which reading would wait for.
        steps = int(self.steps)
        seen = self.normalize(self._stack(batched_inputs, "student_view"))
        logits = self._logits(self.student, seen, batched_inputs)
        prob = logits.sigmoid()
        box = self._mask(batched_inputs, "box_mask", prob)
        if self.supervision == "mask":
            self._note_fill({"predicted mask": prob.detach()}, box)
            return mask_losses(logits, self._mask(batched_inputs, "true_mask", prob))
        mil_rise = warmup(steps, self.mil_warmup)
        losses = {"loss_mil": self.mil_weight * mil_rise * mil_loss(prob, box)}
        masks = {"predicted mask": prob.detach()}
        if self.crf_weight > 0:
            masks["CRF target"] = target = self._target(prob, box, seen, batched_inputs)
            crf_rise = warmup(steps, self.crf_warmup)
            losses["loss_crf"] = self.crf_weight * crf_rise * dice_loss(prob, target)
        self._note_fill(masks, box)
        return losses

    @torch.no_grad()
    def _target(
        self, prob: Tensor, box: Tensor, seen: Tensor, batched_inputs: list[dict]
    ) -> Tensor:
        """The mean field from the student's and the teacher's masks, 0 and 1, (B, M, M)."""
        second, guide = prob, seen
        if self.teacher is not None or self.guidance == "clean":
            clean = self.normalize(self._stack(batched_inputs, "teacher_view"))
            if self.teacher is not None:
                second = self._logits(self.teacher, clean, batched_inputs).sigmoid()
            if self.guidance == "clean":
                guide = clean
        kernel = mean_field_kernel(resize_maps(guide, prob.shape[-1]), **self.kernel)
        return mean_field(initial_state(prob, second, box), box, kernel, **self.refine)

    def train(self, mode: bool = True) -> "MaskAutoLabeler":
        """The teacher stays in evaluation mode: stochastic depth would make its target noisy."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def begin_training(self) -> None:
        """A new run, be it from the weights of an earlier one, warms its losses up anew.

        Where those were of a student alone, the teacher starts as its copy.
        """
        self.steps.zero_()
        if self._lacks_teacher:
            init_teacher(self.teacher, self.student)
            self._lacks_teacher = False

    def update_teacher(self) -> None:
        """One EMA step; the trainer calls it after every optimizer step.

        The fills of the step are logged here too: the losses have been read by now, so that
        nothing is left for a GPU to wait for.
        """
        if self.teacher is not None:
            update_ema(self.teacher, self.student, self.momentum)
        self.steps += 1
        self._log_fills()

    def predict(
        self, image: np.ndarray, boxes: np.ndarray, classes: np.ndarray | None = None
    ) -> dict[str, list[MaskRecord]]:
        """Records of each network for the boxes of one image (`BoxPredictor.predict`)."""
        predictor = BoxPredictor(self.networks, self.normalize, **self.predict_options)
        return predictor.predict(image, boxes, classes=classes)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to the normalised float input, on the model's device."""
        return (images.to(self.device).float() - self.pixel_mean) / self.pixel_std

    def _stack(self, batched_inputs: list[dict], key: str) -> Tensor:
        return torch.stack([x[key] for x in batched_inputs]).to(self.device)

    def _logits(self, network: nn.Module, views: Tensor, batched_inputs: list[dict]) -> Tensor:
        """(B, M, M), float32 also where the network runs in lower precision."""
        areas = torch.tensor([x["box_area"] for x in batched_inputs])
        known = all("category" in x for x in batched_inputs)
        # On the CPU, where the decoder can look at them without a wait.
        classes = {"classes": torch.stack([x["category"] for x in batched_inputs])} if known else {}
        return network(views, areas, **classes).float()

    def _mask(self, batched_inputs: list[dict], key: str, like: Tensor) -> Tensor:
        """Masks (S, S) of the crops, resized to the map's (B, M, M)."""
        return resize_maps(self._stack(batched_inputs, key)[:, None], like.shape[-1])[:, 0]

    def _note_fill(self, masks: dict[str, Tensor], box: Tensor) -> None:
        for name, mask in masks.items():
            self._fills.setdefault(name, []).append(box_fill(mask, box).mean())

    def _log_fills(self) -> None:
        for name, fills in self._fills.items():
            fill = float(torch.stack(fills).mean())
            self.monitors[name].update(fill)
            get_event_storage().put_scalar(f"mal/fill of box, {name}", fill)
        self._fills = {}


def _note_missing_teacher(model: MaskAutoLabeler, incompatible: NamedTuple) -> None:
    """Hook of `load_state_dict`: remembers whether the weights held nothing of the teacher."""
    if model.teacher is None:
        return
    missing = incompatible.missing_keys
    # A wrapper for several processes puts its own name in front.
    absent = sum(".teacher." in f".{name}" for name in missing)
    model._lacks_teacher = absent == len(model.teacher.state_dict())


def _label_refinement(test: CfgNode, kernel: dict, refine: dict) -> LabelRefinement | None:
    """The mean field of `MODEL.MAL.TEST`, or None without iterations."""
    if test.CRF_ITERATIONS == 0:
        return None
    options = {**refine, "iterations": test.CRF_ITERATIONS}
    return LabelRefinement(kernel, scale=test.CRF_SCALE, **options)
