"""The meta-architecture of PAIS: Mask R-CNN twice, a student and the teacher that follows it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from pais.config import check_config, warn_after
from pais.daloss import Floors, score_floors, without_effect
from pais.ema import momentum_at
from pais.mask_iou_head import MaskQualityHead
from pais.pseudo_labels import WeakViews, keep_above
from pais.roi_heads import SemiSupervisedROIHeads
from pais.statistics import PseudoLabelStatistics
from pseudolabel.ema import init_teacher, update_ema
from pseudolabel.errors import DataError

logger = logging.getLogger(__name__)

# What teacher and student have each for themselves.
PARTS = ("backbone", "proposal_generator", "roi_heads")
TEACHER = "teacher."
Features = dict[str, Tensor]


@META_ARCH_REGISTRY.register()
class SemiSupervisedRCNN(GeneralizedRCNN):
    """Learns from labelled images and from the teacher's pseudo-labels on unlabelled ones.

    The model itself is the student, under Detectron2's names, so that weights of a stock Mask R-CNN
    or of its trunk are loaded as ever, and a checkpoint serves as weights of a stock one.

    Args:
        teacher: a network of the same parts; becomes a copy of the student at once.
        enabled: False is the supervised baseline: losses of labelled images alone.
        unlabelled_weight: lambda_u, factor of the losses on unlabelled images.
        burn_in: optimizer steps on labelled images alone.
        floors: scores that a pseudo-label must exceed.
        tight_boxes: of pseudo-labels, see `pais.pseudo_labels.carry`.
        momentum: the largest of the moving average.
        start_from: "student" or "teacher" of the weights that a training starts from.
        answer_with: "teacher" or "student", which one predicts.
        statistics: of the pseudo-labels.
        kwargs: of `GeneralizedRCNN`.
    """

    @configurable
    def __init__(
        self,
        *,
        teacher: GeneralizedRCNN,
        enabled: bool,
        unlabelled_weight: float,
        burn_in: int,
        floors: Floors,
        tight_boxes: bool,
        momentum: float,
        start_from: str,
        answer_with: str,
        statistics: PseudoLabelStatistics,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.teacher = teacher
        self.enabled, self.unlabelled_weight = enabled, unlabelled_weight
        self.burn_in, self.floors, self.momentum = burn_in, floors, momentum
        self.tight_boxes = tight_boxes
        self.start_from, self.answer_with = start_from, answer_with
        self.statistics = statistics
        # Step of the last message on the burn-in; a step may have several batches.
        self._announced = -1
        # Optimizer steps made; in the checkpoint, so that a resumed run goes on where it was.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        init_teacher(_parts(teacher), _parts(self))
        self.teacher.eval()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        check_config(cfg)
        _check_heads(cfg)
        pais = cfg.MODEL.PAIS
        if pais.ENABLED:
            for line in without_effect(pais, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST):
                logger.warning("MODEL.PAIS.%s", line)
        own = super().from_config(cfg)
        floors = score_floors(pais)
        weighting = own["roi_heads"].weighting
        return own | {
            "teacher": GeneralizedRCNN(cfg),
            "enabled": pais.ENABLED,
            "unlabelled_weight": pais.UNLABELLED_WEIGHT,
            "burn_in": pais.BURN_IN_ITERS,
            "floors": floors,
            "tight_boxes": pais.VIEWS.TIGHT_BOXES,
            "momentum": pais.EMA.MOMENTUM,
            "start_from": pais.EMA.START,
            "answer_with": pais.TEST.NETWORK,
            "statistics": PseudoLabelStatistics(
                class_names(cfg), floors, weighting, warn_after(cfg)
            ),
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training; in evaluation what each network finds.

        Args:
            batched_inputs: training: samples of `pais.mapper`, labelled ones among them;
                evaluation: samples with "image".

        Returns:
            "loss_sup_*" of labelled and "loss_unsup_*" of unlabelled images; or per image
            {"teacher": Instances, "student": Instances, "instances": that of TEST.NETWORK}.
        """
        if not self.training:
            return self._answers(batched_inputs)
        labelled = [x for x in batched_inputs if x.get("labelled", True)]
        unlabelled = [x for x in batched_inputs if not x.get("labelled", True)]
        if not self._teaches():
            self._look_ahead(unlabelled)
            unlabelled = []
        images = self.preprocess_image([*labelled, *(x["strong"] for x in unlabelled)])
        # One pass for both kinds; no layer mixes the images of a batch.
        features = self.backbone(images.tensor)
        count = len(labelled)
        losses = self._labelled_losses(labelled, *_take(images, features, slice(None, count)))
        if unlabelled:
            views = _take(images, features, slice(count, None))
            losses |= self._unlabelled_losses(unlabelled, *views)
        return losses

    def _teaches(self) -> bool:
        """Whether the teacher's time has come; logs the end of the burn-in, and that it is on."""
        if not self.enabled:
            return False
        step = int(self.steps)
        teaches = step >= self.burn_in
        # A process that resumes a run says it anew.
        begins = not teaches and self._announced < 0
        ends = step == self.burn_in > 0
        if (begins or ends) and step != self._announced:
            state = "over" if teaches else f"{self.burn_in} iterations on labelled images alone"
            logger.info("burn-in: %s (iteration %d)", state, step + 1)
            self._announced = step
        return teaches

    def _look_ahead(self, unlabelled: list[dict]) -> None:
        """Now and then of the burn-in, lets the log say how far the teacher is."""
        step = int(self.steps)
        if self.enabled and unlabelled and self.statistics.wants_look(step):
            (found,) = WeakViews.look(self.teacher, unlabelled[:1]).found
            self.statistics.look_ahead(step, found)

    def _labelled_losses(
        self, samples: list[dict], images: ImageList, features: Features
    ) -> dict[str, Tensor]:
        """Mask R-CNN's losses and those of the quality branches."""
        targets = [sample["instances"].to(self.device) for sample in samples]
        proposals, losses = self.proposal_generator(images, features, targets)
        _, of_heads = self.roi_heads(images, features, proposals, targets)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(samples, proposals)
        return _named("loss_sup_", losses | of_heads)

    def _unlabelled_losses(
        self, samples: list[dict], images: ImageList, features: Features
    ) -> dict[str, Tensor]:
        """The losses against the teacher's pseudo-labels, weighted."""
        weak = WeakViews.look(self.teacher, samples)
        labels = weak.pseudo_labels(self.floors.initial, images.image_sizes, self.tight_boxes)
        of_proposals, of_heads = (
            [keep_above(each, "gt_scores", floor) for each in labels]
            for floor in (self.floors.rpn, self.floors.roi)
        )
        # Under names of their own, or they would stand among those of the labelled images.
        with get_event_storage().name_scope("unlabelled"):
            proposals, losses = self.proposal_generator(images, features, of_proposals)
        losses |= self.roi_heads.losses_unlabelled(
            features, proposals, of_heads, weak.background_probability
        )
        self.statistics.update(int(self.steps), weak.found, of_proposals, of_heads)
        return _named("loss_unsup_", losses, self.unlabelled_weight)

    def _answers(self, batched_inputs: list[dict]) -> list[dict]:
        answers = {
            "teacher": self.teacher.inference(batched_inputs),
            "student": super().inference(batched_inputs),
        }
        outputs = []
        for index in range(len(batched_inputs)):
            output = {name: found[index]["instances"] for name, found in answers.items()}
            outputs.append(output | {"instances": output[self.answer_with]})
        return outputs

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list:
        """As of `GeneralizedRCNN`, by the network that MODEL.PAIS.TEST.NETWORK names."""
        ask = self.teacher.inference if self.answer_with == "teacher" else super().inference
        return ask(batched_inputs, detected_instances, do_postprocess)

    def train(self, mode: bool = True) -> SemiSupervisedRCNN:
        """The teacher stays in evaluation mode: it gives detections, not losses."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def begin_training(self) -> None:
        """A new run counts its steps anew, and both networks start from the same weights."""
        self.steps.zero_()
        networks = [_parts(self), _parts(self.teacher)]
        if self.start_from == "teacher":
            update_ema(*networks, 0.0)
        init_teacher(networks[1], networks[0])

    def update_teacher(self) -> None:
        """One step of the moving average; the trainer calls it after every optimizer step.

        So the teacher of iteration t is what it would be were it updated before that iteration,
        with the momentum of `momentum_at(t)`; and an iteration that fails updates neither network.
        """
        self.steps += 1
        momentum = momentum_at(int(self.steps), self.momentum)
        update_ema(_parts(self.teacher), _parts(self), momentum, average_buffers=True)

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        """Detectron2's; before the first step without the teacher, which is the student then.

        Where weights are matched by how their names end, as those of a trunk are, every name may
        occur once.
        """
        state = super().state_dict(*args, **kwargs)
        if int(self.steps) == 0:
            prefix = kwargs.get("prefix", "") + TEACHER
            for name in [name for name in state if name.startswith(prefix)]:
                del state[name]
        return state

    def load_state_dict(
        self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False
    ):
        """As of any module; where there is no teacher in it, both networks get the student's.

        Unless strict, what a teacher of other classes has in another shape is left out and named.
        The checkpointer, which does so for all names of `state_dict()`, does not know the teacher's
        before the first step.
        """
        if not any(name.startswith(TEACHER) for name in state_dict):
            shared = [name for name in state_dict if name.split(".")[0] in PARTS]
            state_dict = {**state_dict, **{TEACHER + name: state_dict[name] for name in shared}}
        elif not strict:
            state_dict = self._without_misfits(state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _without_misfits(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """All but the teacher's entries of other shapes than the model's."""
        shapes = {name: value.shape for name, value in super().state_dict().items()}
        misfits = [
            name
            for name, value in state_dict.items()
            if name.startswith(TEACHER) and value.shape != shapes.get(name, value.shape)
        ]
        if misfits:
            logger.warning(
                "weights of another shape are not loaded, these keep the values that they had: %s",
                ", ".join(misfits),
            )
        return {name: value for name, value in state_dict.items() if name not in misfits}


def class_names(cfg: CfgNode) -> Sequence[str]:
    """Names of the model's classes: those of the first of DATASETS.TRAIN, or else their numbers."""
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    name = next(iter(cfg.DATASETS.TRAIN), "")
    known = (
        MetadataCatalog.get(name).get("thing_classes") if name in MetadataCatalog.list() else None
    )
    return known if known and len(known) == count else [str(index) for index in range(count)]


def _check_heads(cfg: CfgNode) -> None:
    """Refuses heads without what PAIS needs of them; a stock Mask R-CNN's are two keys away.

    Raises:
        DataError: naming the key and its value.
    """
    if not cfg.MODEL.MASK_ON:
        raise DataError("MODEL.MASK_ON", "is False, and PAIS learns masks", "set it to True")
    needed = {
        "ROI_HEADS": (ROI_HEADS_REGISTRY, SemiSupervisedROIHeads, "weighs no pseudo-labels"),
        "ROI_MASK_HEAD": (ROI_MASK_HEAD_REGISTRY, MaskQualityHead, "predicts no quality"),
    }
    for part, (registry, kind, problem) in needed.items():
        name = cfg.MODEL[part].NAME
        if not issubclass(registry.get(name), kind):
            remedy = f"set it to {kind.__name__!r}, as configs/_base_/pais_R_50_FPN.yaml does"
            raise DataError(f"MODEL.{part}.NAME {name!r}", problem, remedy)


def _parts(network: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({name: getattr(network, name) for name in PARTS})


def _take(images: ImageList, features: Features, part: slice) -> tuple[ImageList, Features]:
    """Some images of a batch."""
    chosen = ImageList(images.tensor[part], images.image_sizes[part])
    return chosen, {name: maps[part] for name, maps in features.items()}


def _named(prefix: str, losses: dict[str, Tensor], factor: float = 1.0) -> dict[str, Tensor]:
    """The losses times a factor, "loss_" of their names being replaced."""
    return {prefix + name.removeprefix("loss_"): factor * loss for name, loss in losses.items()}
