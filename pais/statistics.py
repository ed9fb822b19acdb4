"""What a reader of the log must see of the pseudo-labels, from the first iteration on.

A loss of zero on unlabelled images is either a teacher that is not sure of anything yet, or a run
that is broken; the numbers here tell the two apart. They are those of this process.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage

from pais.daloss import DALoss, Floors

logger = logging.getLogger(__name__)

# Iterations that a line of the log sums up, as many as a line of Detectron2's.
PERIOD = 20
# With more classes they have no curve each; so many of them are named in a line of the log.
MAX_CURVES, MAX_NAMED = 100, 8
# What the heads store of the regions of unlabelled images (`SemiSupervisedROIHeads`).
BACKGROUND_WEIGHT = "unlabelled/class weight of negatives"
# Means over the pseudo-labels that are kept.
MEANS = ("score", "quality", "mask weight", "class weight")


class PseudoLabelStatistics:
    """Numbers, scores, qualities and weights of pseudo-labels: to the event storage and the log.

    Args:
        classes: names of the model's classes.
        floors: of the class scores.
        weighting: what a pseudo-label weighs.
        warn_after: iterations without any pseudo-label before a warning; 0 never warns.
    """

    def __init__(self, classes: Sequence[str], floors: Floors, weighting: DALoss, warn_after: int):
        self.classes, self.floors, self.weighting = tuple(classes), floors, weighting
        self.warn_after = warn_after
        self._barren, self._barren_best = 0, 0.0
        # Sums since the last line of the log, and the first step of them.
        self._sums: Counter[str] = Counter()
        self._per_class: Counter[str] = Counter()
        self._begin: int | None = None
        # The steps of the last batch, of the last line and of the last look during a burn-in; a
        # step may have several batches.
        self._step = self._line_step = self._look_step = -1

    @torch.no_grad()
    def update(
        self, step: int, found: list[Instances], proposed: list[Instances], kept: list[Instances]
    ) -> None:
        """Takes in an iteration, after its losses; inside an event storage.

        Args:
            step: optimizer steps made before it.
            found: per image all that the teacher has detected, with "scores".
            proposed: per image the pseudo-labels of the proposals' losses.
            kept: per image those of the heads' losses, with "gt_classes", "gt_scores" and
                "gt_quality".
        """
        sums, per_class, best = self._measure(found, kept)
        sums["proposed"] = sum(map(len, proposed))
        self._store(sums, per_class, best)
        background = get_event_storage().latest().get(BACKGROUND_WEIGHT)
        if background is not None and background[1] == get_event_storage().iter:
            sums.update({"background": background[0], "background counted": 1})
        self._begin = step if self._begin is None else self._begin
        self._sums.update(sums)
        self._per_class.update(per_class)
        # The first iteration has a line of its own, so that a mistake shows at once.
        due = self._line_step < 0 or (step + 1) % PERIOD == 0
        if due and step != self._line_step:
            logger.info("%s", self._line(step))
            self._sums, self._per_class = Counter(), Counter()
            self._begin, self._line_step = None, step
        self._watch(step, int(sums["kept"]), best)
        self._step = step

    def wants_look(self, step: int) -> bool:
        """Whether `look_ahead` is due at a step of the burn-in: at the first of a process, too."""
        return step != self._look_step and (self._look_step < 0 or step % PERIOD == 0)

    @torch.no_grad()
    def look_ahead(self, step: int, found: Instances) -> None:
        """Says during a burn-in how far the teacher is; inside an event storage.

        Args:
            step: optimizer steps made before it.
            found: all that the teacher has detected on an unlabelled image, with "scores".
        """
        scores = found.scores.float()
        best = float(scores.max()) if len(scores) else 0.0
        get_event_storage().put_scalar("pseudo-labels/best score", best)
        logger.info(
            "burn-in, iteration %d: on an unlabelled image the teacher finds %d objects, best "
            "score %.2f, %d above the floor of %g",
            *(step + 1, len(scores), best, int((scores > self.floors.roi).sum())),
            self.floors.roi,
        )
        self._look_step = step

    def _measure(
        self, found: list[Instances], kept: list[Instances]
    ) -> tuple[Counter[str], Counter[str], float]:
        """Sums over a batch, kept pseudo-labels by class, and the best score of all detections."""
        scores = torch.cat([each.scores for each in found]).float()
        classes, kept_scores, quality = (
            torch.cat([each.get(name) for each in kept])
            for name in ("gt_classes", "gt_scores", "gt_quality")
        )
        parts = [
            scores.max() if len(scores) else scores.new_zeros(()),
            (scores <= self.floors.roi).sum(),
            kept_scores.sum(),
            quality.sum(),
            self.weighting.masks(quality).sum(),
            self.weighting.positives(kept_scores).sum(),
            *torch.bincount(classes, minlength=len(self.classes)),
        ]
        # One transfer from the device for all of them.
        best, below, *values = torch.stack([part.to(scores) for part in parts]).tolist()
        sums = Counter(dict(zip(MEANS, values)))
        sums.update({"images": len(found), "kept": len(classes), "below": below})
        amounts = zip(self.classes, map(int, values[len(MEANS) :]))
        return sums, Counter({name: amount for name, amount in amounts if amount}), best

    def _store(self, sums: Counter[str], per_class: Counter[str], best: float) -> None:
        put, images = get_event_storage().put_scalar, sums["images"]
        put("pseudo-labels/kept per image", sums["kept"] / images)
        put("pseudo-labels/below floor per image", sums["below"] / images)
        put("pseudo-labels/for proposals per image", sums["proposed"] / images)
        put("pseudo-labels/best score", best)
        if sums["kept"]:
            for name in MEANS:
                put(f"pseudo-labels/mean {name}", sums[name] / sums["kept"])
        if len(self.classes) <= MAX_CURVES:
            for name in self.classes:
                put(f"pseudo-labels/class {name} per image", per_class[name] / images)

    def _line(self, step: int) -> str:
        """The sums since the last line in words; iterations are counted from 1."""
        sums, images = self._sums, self._sums["images"]
        line = (
            f"pseudo-labels of iterations {self._begin + 1}-{step + 1}: "
            f"{sums['kept'] / images:.2f} kept and {sums['below'] / images:.2f} below the floor "
            f"of {self.floors.roi:g} per image"
        )
        if sums["kept"]:
            line += "; mean " + ", ".join(f"{n} {sums[n] / sums['kept']:.3f}" for n in MEANS)
        if sums["background counted"]:
            mean = sums["background"] / sums["background counted"]
            line += f"; weight of background {mean:.3f}"
        if self._per_class:
            named = self._per_class.most_common(MAX_NAMED)
            line += "; " + ", ".join(f"{name} {amount}" for name, amount in named)
            others = len(self._per_class) - len(named)
            line += f" and {others} more classes" if others else ""
        return line

    def _watch(self, step: int, kept: int, best: float) -> None:
        """Warns once per run of iterations without a pseudo-label."""
        if kept:
            self._barren, self._barren_best = 0, 0.0
            return
        self._barren_best = max(self._barren_best, best)
        if step == self._step:
            return
        self._barren += 1
        if self._barren == self.warn_after:
            logger.warning("%s", self._causes())

    def _causes(self) -> str:
        best, floor = self._barren_best, self.floors.roi
        if best == 0:
            seen = "the teacher detects nothing at all on them"
            cause = (
                "weights that were not loaded, INPUT.FORMAT or MODEL.PIXEL_MEAN of other weights, "
                "unlabelled images of another kind, or a teacher that has not learned anything yet"
            )
        elif best > floor:
            seen = f"its best score is {best:.2f}, but the strong views show none of what it finds"
            cause = "MODEL.PAIS.VIEWS that move objects out of the image"
        else:
            seen = f"its best score is {best:.2f}, and {floor:g} has to be exceeded"
            cause = (
                "a teacher that needs longer on labelled images (MODEL.WEIGHTS of a supervised "
                "run, or MODEL.PAIS.BURN_IN_ITERS), or floors above what it reaches "
                "(MODEL.PAIS.SCORE_FLOOR, ROI_SCORE_FLOOR)"
            )
        return (
            f"{self._barren} iterations without a pseudo-label: {seen}. Unlabelled images teach "
            f"only what is background. Likely causes: {cause}"
        )
