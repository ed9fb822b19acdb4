"""From queries to ranked instances of one image.

Shape legend: Q queries, K classes, N kept instances, (h, w) mask logits, (H, W) padded image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits that are enlarged at a time: 128 MiB of them, of which three copies live at once.
CHUNK = 2**25


def best_pairs(class_logits: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable pairs of query and class; a query may occur with several classes.

    Args:
        class_logits: (Q, K + 1); the last class is "no object".
        limit: N at most.

    Returns:
        Probability, query and class of each pair, all (N,), by falling probability.
    """
    probs = class_logits.float().softmax(-1)[:, :-1]
    best, flat = probs.flatten().topk(min(limit, probs.numel()))
    return best, flat // probs.shape[1], flat % probs.shape[1]


def masks_with_quality(
    mask_logits: Tensor,
    padded: tuple[int, int],
    size: tuple[int, int],
    output: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Masks in the size of the original image, and how sure the network is inside them.

    Args:
        mask_logits: (N, h, w), over the padded image.
        padded: (H, W).
        size: rows and columns of the padded image that the image fills, from its top left corner.
        output: rows and columns of the original image.

    Returns:
        bool (N, *output), the logit being positive, and float (N,): the mean foreground probability
        inside the mask, 0 for an empty one.
    """
    area = max(padded[0] * padded[1], output[0] * output[1])
    count = len(mask_logits)
    masks = torch.empty((count, *output), dtype=torch.bool, device=mask_logits.device)
    quality = torch.empty(count, device=mask_logits.device)
    step = max(CHUNK // area, 1)
    for start in range(0, count, step):
        part = slice(start, start + step)
        logits = _enlarged(mask_logits[part], padded, size, output)
        masks[part] = logits > 0
        filled = masks[part].flatten(1)
        inside = (logits.sigmoid_().flatten(1) * filled).sum(1)
        quality[part] = inside / filled.sum(1).clamp(min=1)
    return masks, quality


def _enlarged(
    logits: Tensor, padded: tuple[int, int], size: tuple[int, int], output: tuple[int, int]
) -> Tensor:
    """float (n, *output) from (n, h, w); see `masks_with_quality`."""
    large = F.interpolate(logits[None].float(), padded, mode="bilinear", align_corners=False)
    large = large[:, :, : size[0], : size[1]]
    if tuple(output) != tuple(size):
        large = F.interpolate(large, output, mode="bilinear", align_corners=False)
    return large[0]


def rank(class_probs: Tensor, quality: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Scores, class probability x mask quality, and the order of falling score.

    Empty masks, and scores that are not finite, have no place in the order.

    Returns:
        Scores (N,) and indices of at most N.
    """
    scores = class_probs * quality
    usable = torch.isfinite(scores) & masks.flatten(1).any(1)
    order = scores.nan_to_num().argsort(descending=True, stable=True)
    return scores, order[usable[order]]
