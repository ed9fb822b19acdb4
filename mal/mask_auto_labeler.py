"""The meta-architecture: student, EMA teacher, MIL and mean-field losses (MAL, section 3).

Shape legend: B crops, S crop side, M map side.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from mal.dice import dice_loss
from mal.fill_monitor import FillMonitor, box_fill
from mal.label_refinement import LabelRefinement
from mal.mean_field import initial_state, mean_field, mean_field_kernel
from mal.mil import mil_loss, warmup
from mal.network import build_network
from mal.predictor import BoxPredictor
from pseudolabel.ema import init_teacher, update_ema
from pseudolabel.labeler import MaskRecord


@META_ARCH_REGISTRY.register()
class MaskAutoLabeler(nn.Module):
    """Learns class-agnostic masks from boxes; labels boxes at test time.

    Args:
        student: network with (images (B, 3, S, S), box_areas (B,)) -> logits (B, M, M).
        teacher: same architecture; becomes a copy of the student at once.
        pixel_mean, pixel_std: per RGB channel, for values 0-255.
        mil_weight, mil_warmup, crf_weight, crf_warmup: alpha_mil, alpha_crf and the iterations
            over which each loss rises linearly.
        kernel: options of `mean_field_kernel`.
        refine: options of `mean_field`.
        momentum: of the teacher's moving average.
        predict: options of `BoxPredictor`.
        label_with: "student" or "teacher".
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
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
    ):
        super().__init__()
        if label_with not in ("student", "teacher"):
            raise ValueError(f"MODEL.MAL.TEST.NETWORK {label_with!r}: use 'student' or 'teacher'")
        self.student, self.teacher = student, teacher
        init_teacher(self.teacher, self.student)
        self.mil_weight, self.mil_warmup = mil_weight, mil_warmup
        self.crf_weight, self.crf_warmup = crf_weight, crf_warmup
        self.kernel, self.refine, self.momentum = kernel, refine, momentum
        self.predict_options, self.label_with = predict, label_with
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        # Steps done; in the checkpoint, so that the warm-ups go on where they were.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.monitors = {name: FillMonitor(name) for name in ("predicted mask", "CRF target")}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
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
            "teacher": build_network(cfg),
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
                "refinement": _label_refinement(mal.TEST, kernel, refine),
            },
            "label_with": mal.TEST.NETWORK,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training; in evaluation the records of both networks for each image.

        Args:
            batched_inputs: training: crops of `BoxCropMapper`; evaluation: images of `ImageBoxes`.

        Returns:
            {"loss_mil", "loss_crf"}, or [{"student": [MaskRecord, ...], "teacher": [...]}].
        """
        if not self.training:
            return [self.predict(x["image"], x["boxes"]) for x in batched_inputs]
        seen = self.normalize(self._stack(batched_inputs, "student_view"))
        clean = self.normalize(self._stack(batched_inputs, "teacher_view"))
        areas = torch.tensor([x["box_area"] for x in batched_inputs])
        student_prob = self.student(seen, areas).sigmoid()
        with torch.no_grad():
            teacher_prob = self.teacher(clean, areas).sigmoid()
        box = self._to_map(self._stack(batched_inputs, "box_mask")[:, None], student_prob)[:, 0]
        kernel = mean_field_kernel(self._to_map(seen, student_prob), **self.kernel)
        start = initial_state(student_prob, teacher_prob, box)
        target = mean_field(start, box, kernel, **self.refine)
        self._log_fill(student_prob, target, box)
        mil_rise = warmup(int(self.steps), self.mil_warmup)
        crf_rise = warmup(int(self.steps), self.crf_warmup)
        return {
            "loss_mil": self.mil_weight * mil_rise * mil_loss(student_prob, box),
            "loss_crf": self.crf_weight * crf_rise * dice_loss(student_prob, target),
        }

    def train(self, mode: bool = True) -> "MaskAutoLabeler":
        """The teacher stays in evaluation mode: stochastic depth would make its target noisy."""
        super().train(mode)
        self.teacher.eval()
        return self

    def begin_training(self) -> None:
        """A new run, be it from the weights of an earlier one, warms its losses up anew."""
        self.steps.zero_()

    def update_teacher(self) -> None:
        """One EMA step; the trainer calls it after every optimizer step."""
        update_ema(self.teacher, self.student, self.momentum)
        self.steps += 1

    def predict(self, image, boxes) -> dict[str, list[MaskRecord]]:
        """Records of student and teacher for the boxes of one image (`BoxPredictor.predict`)."""
        networks = {"student": self.student, "teacher": self.teacher}
        return BoxPredictor(networks, self.normalize, **self.predict_options).predict(image, boxes)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to the normalised float input, on the model's device."""
        return (images.to(self.device).float() - self.pixel_mean) / self.pixel_std

    def _stack(self, batched_inputs: list[dict], key: str) -> Tensor:
        return torch.stack([x[key] for x in batched_inputs]).to(self.device)

    @staticmethod
    def _to_map(images: Tensor, like: Tensor) -> Tensor:
        """(B, C, S, S) resized bilinearly to the map's (B, C, M, M)."""
        size = like.shape[-2:]
        return F.interpolate(images.float(), size, mode="bilinear", align_corners=False)

    def _log_fill(self, student_prob: Tensor, target: Tensor, box: Tensor) -> None:
        storage = get_event_storage()
        masks = {"predicted mask": student_prob.detach(), "CRF target": target}
        for name, mask in masks.items():
            fill = float(box_fill(mask, box).mean())
            self.monitors[name].update(fill)
            storage.put_scalar(f"mal/fill of box, {name}", fill)


def _label_refinement(test: CfgNode, kernel: dict, refine: dict) -> LabelRefinement | None:
    """The mean field of `MODEL.MAL.TEST`, or None without iterations."""
    if test.CRF_ITERATIONS == 0:
        return None
    options = {**refine, "iterations": test.CRF_ITERATIONS}
    return LabelRefinement(kernel, scale=test.CRF_SCALE, **options)
