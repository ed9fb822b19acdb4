"""The library's set criterion with a weight per instance and per image.

Shape legend: B images, Q queries, K classes, P points, M matched pairs of query and instance in the
batch, n instances of one image, (h, w) the mask logits' and (H, W) the images' padded size.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Matches = Sequence[tuple[Tensor, Tensor]]
Losses = dict[str, Tensor]


class WeightedReduction:
    """Before `Mask2FormerLoss` in a class's bases: replaces how its terms are summed up, only.

    A weight scales the gradient of what it belongs to and is not normalised away: sums are divided
    by the same unweighted counts as the library's. The weight of an instance is on its mask terms
    and on the class term of the query that it is matched with; the weight of an image is on all
    terms of the image, queries without an object included. With all weights 1, every loss and
    gradient is the library's, bit for bit: points are drawn in the same order, and a product with 1
    changes nothing.
    """

    def forward(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor],
        auxiliary_predictions: Sequence[dict[str, Tensor]] | None = None,
        instance_weights: Sequence[Tensor] | None = None,
        image_weights: Tensor | None = None,
    ) -> Losses:
        """Losses of the last layer and, numbered from 0, of the layers before it.

        Args:
            masks_queries_logits: (B, Q, h, w).
            class_queries_logits: (B, Q, K + 1); the last class is "no object".
            mask_labels: per image float (n, H, W) in [0, 1], all of the padded size.
            class_labels: per image int64 (n,).
            auxiliary_predictions: the same two logits, under these names, of each earlier layer.
            instance_weights: per image float (n,); None for 1.
            image_weights: float (B,); None for 1.

        Returns:
            `loss_mask`, `loss_dice`, `loss_cross_entropy`, and the same with "_0", "_1", ...; not
            yet multiplied by the weights of the losses.

        Raises:
            TypeError: masks that are not float, which cannot be sampled at points.
        """
        for masks in mask_labels:
            if not masks.is_floating_point():
                raise TypeError(f"mask_labels are {masks.dtype}; convert them with .float()")
        layers = [(masks_queries_logits, class_queries_logits, "")]
        for index, layer in enumerate(auxiliary_predictions or ()):
            masks, classes = layer["masks_queries_logits"], layer["class_queries_logits"]
            layers.append((masks, classes, f"_{index}"))
        weights = pair_weights(class_labels, instance_weights, image_weights)
        num_masks = self.get_num_masks(class_labels, class_queries_logits.device)
        losses = {}
        for masks, classes, suffix in layers:
            matches = self.matcher(masks, classes, mask_labels, class_labels)
            terms = self.loss_masks(masks, mask_labels, matches, num_masks, weights)
            terms |= self.loss_labels(classes, class_labels, matches, weights, image_weights)
            losses |= {name + suffix: value for name, value in terms.items()}
        return losses

    def loss_masks(
        self,
        masks_queries_logits: Tensor,
        mask_labels: Sequence[Tensor],
        indices: Matches,
        num_masks: Tensor,
        weights: Sequence[Tensor],
    ) -> Losses:
        """Binary cross-entropy and dice at points, summed with weights over the matched pairs."""
        chosen = masks_queries_logits[self._get_predictions_permutation_indices(indices)]
        chosen = chosen[:, None]
        truth = torch.cat([masks[j] for masks, (_, j) in zip(mask_labels, indices)])[:, None]
        pair = torch.cat([w[j] for w, (_, j) in zip(weights, indices)])
        with torch.no_grad():
            points = self.sample_points_using_uncertainty(
                chosen,
                self.calculate_uncertainty,
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
            labels = at_points(truth, points)
        logits = at_points(chosen, points)
        entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        return {
            "loss_mask": (entropy * pair).sum() / num_masks,
            "loss_dice": (dice(logits, labels) * pair).sum() / num_masks,
        }

    def loss_labels(
        self,
        class_queries_logits: Tensor,
        class_labels: Sequence[Tensor],
        indices: Matches,
        weights: Sequence[Tensor],
        image_weights: Tensor | None,
    ) -> Losses:
        """Cross-entropy over all queries; its normaliser is the sum of the class weights alone.

        That sum is of this process's queries, in the library as here: it depends on how many of
        them are matched, so that two processes with unequal counts are not one with both batches.
        """
        batch, queries, _ = class_queries_logits.shape
        targets = class_queries_logits.new_full((batch, queries), self.num_labels, dtype=torch.long)
        factors = class_queries_logits.new_ones(batch, queries)
        if image_weights is not None:
            factors = factors * image_weights[:, None]
        place = self._get_predictions_permutation_indices(indices)
        targets[place] = torch.cat([labels[j] for labels, (_, j) in zip(class_labels, indices)])
        factors[place] = torch.cat([w[j] for w, (_, j) in zip(weights, indices)])
        log_probs = F.log_softmax(class_queries_logits.transpose(1, 2), dim=1)
        # Weighted before the reduction, so that it divides by the class weights but not by ours.
        loss = F.nll_loss(log_probs * factors[:, None], targets, weight=self.empty_weight)
        return {"loss_cross_entropy": loss}

    def get_num_masks(self, class_labels: Sequence[Tensor], device: torch.device) -> Tensor:
        """Instances per process, at least 1; a mean over the processes where there are several."""
        count = torch.tensor(float(sum(map(len, class_labels))), device=device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count = count / dist.get_world_size()
        return count.clamp(min=1)


def pair_weights(
    class_labels: Sequence[Tensor],
    instance_weights: Sequence[Tensor] | None,
    image_weights: Tensor | None,
) -> list[Tensor]:
    """Per image float (n,): the weight of each instance times that of its image."""
    if instance_weights is None:
        instance_weights = [torch.ones(len(c), device=c.device) for c in class_labels]
    if image_weights is None:
        return list(instance_weights)
    return [weights * image for weights, image in zip(instance_weights, image_weights)]


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples (M, P) of maps (M, 1, h, w) at points (M, P, 2), x and y in [0, 1]."""
    grid = (2.0 * points - 1.0).unsqueeze(2)
    return F.grid_sample(maps, grid, align_corners=False)[:, 0, :, 0]


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - (2 |X Y| + 1) / (|X| + |Y| + 1) per row of (M, P), X being the probabilities."""
    probs = logits.sigmoid()
    overlap = 2 * (probs * labels).sum(-1)
    size = probs.sum(-1) + labels.sum(-1)
    return 1 - (overlap + 1) / (size + 1)


def build_criterion(config: object) -> nn.Module:
    """The weighted criterion for a `transformers.Mask2FormerConfig`."""
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    weights = {
        "loss_cross_entropy": config.class_weight,
        "loss_mask": config.mask_weight,
        "loss_dice": config.dice_weight,
    }
    weighted = type("WeightedMask2FormerLoss", (WeightedReduction, Mask2FormerLoss), {})
    return weighted(config, weights)
