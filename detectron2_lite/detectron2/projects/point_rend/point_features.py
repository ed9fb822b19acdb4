"""Reading maps at real-valued points, and choosing the points (PointRend, sections 3.1 and 3.2).

Shape legend. N maps or regions, C channels, H and W of a map, P points; (x, y) of a point is
relative to its map or box: (0, 0) is the upper left corner, (1, 1) the lower right one. The centre
of the first pixel therefore is (0.5 / W, 0.5 / H), and maps are sampled with align_corners false.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import cat
from detectron2.structures import BitMasks, Boxes, Instances

__all__ = [
    "generate_regular_grid_point_coords",
    "get_point_coords_wrt_image",
    "get_uncertain_point_coords_on_grid",
    "get_uncertain_point_coords_with_randomness",
    "point_sample",
    "point_sample_fine_grained_features",
    "sample_point_labels",
]


def point_sample(input: torch.Tensor, point_coords: torch.Tensor, **kwargs) -> torch.Tensor:
    """Values of maps at points, bilinear unless ``kwargs`` say otherwise; 0 outside.

    Args:
        input: (N, C, H, W).
        point_coords: (N, P, 2), or (N, P, Q, 2) for a grid of points.
        kwargs: of `torch.nn.functional.grid_sample` (mode, padding_mode, align_corners).

    Returns:
        (N, C, P), or (N, C, P, Q).
    """
    as_list = point_coords.dim() == 3
    grid = point_coords.unsqueeze(2) if as_list else point_coords
    # grid_sample counts from -1 to 1.
    values = F.grid_sample(input, 2.0 * grid - 1.0, **kwargs)
    return values.squeeze(3) if as_list else values


def generate_regular_grid_point_coords(
    R: int, side_size: int, device: torch.device | str
) -> torch.Tensor:
    """(R, side_size ** 2, 2): the centres of a regular grid's cells, row by row, R times."""
    centre = (torch.arange(side_size, dtype=torch.float32, device=device) + 0.5) / side_size
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    points = torch.stack((x, y), dim=2).flatten(0, 1)
    return points.expand(R, *points.shape)


def get_uncertain_point_coords_with_randomness(
    coarse_logits: torch.Tensor,
    uncertainty_func: Callable[[torch.Tensor], torch.Tensor],
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> torch.Tensor:
    """Points to train on: mostly the most uncertain of many random ones, some without a look.

    The uncertainty is computed at the points, from the logits sampled there. Sampling a map of
    uncertainties instead would be wrong: halfway between logits 1 and -1 the logit is 0, the most
    uncertain value there is, while both neighbours are equally sure.

    Args:
        coarse_logits: (N, C, H, W).
        uncertainty_func: maps (N, C, Q) logits at points to (N, 1, Q).
        num_points: P.
        oversample_ratio: so many times P points are looked at, >= 1.
        importance_sample_ratio: share of P that goes to the most uncertain ones, in [0, 1].

    Returns:
        (N, P, 2), the uncertain ones first.
    """
    assert oversample_ratio >= 1, f"oversample_ratio must be at least 1, got {oversample_ratio}"
    assert 0 <= importance_sample_ratio <= 1, (
        f"importance_sample_ratio must lie in [0, 1], got {importance_sample_ratio}"
    )
    maps, device = len(coarse_logits), coarse_logits.device
    candidates = torch.rand(maps, int(num_points * oversample_ratio), 2, device=device)
    sampled = point_sample(coarse_logits, candidates, align_corners=False)
    doubt = uncertainty_func(sampled)[:, 0]
    count = int(importance_sample_ratio * num_points)
    best = doubt.topk(count, dim=1).indices
    chosen = candidates.gather(1, best.unsqueeze(-1).expand(-1, -1, 2))
    if count == num_points:
        return chosen
    return cat([chosen, torch.rand(maps, num_points - count, 2, device=device)], dim=1)


def get_uncertain_point_coords_on_grid(
    uncertainty_map: torch.Tensor, num_points: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most uncertain pixels of a map, for refinement at inference.

    Args:
        uncertainty_map: (N, 1, H, W).
        num_points: P; all H * W pixels if there are fewer.

    Returns:
        (N, P) index of the pixels in [0, H * W), most uncertain first, and (N, P, 2) centres.
    """
    height, width = uncertainty_map.shape[-2:]
    flat = uncertainty_map.reshape(len(uncertainty_map), height * width)
    index = flat.topk(min(num_points, height * width), dim=1).indices
    cell = torch.stack([index % width, index // width], dim=-1).to(torch.float32)
    return index, (cell + 0.5) / cell.new_tensor([width, height])


def get_point_coords_wrt_image(
    boxes_coords: torch.Tensor, point_coords: torch.Tensor
) -> torch.Tensor:
    """Points relative to (N, 4) boxes, (N, P, 2), as pixel positions in the image; no gradient."""
    with torch.no_grad():
        corner, opposite = boxes_coords.unsqueeze(1).split(2, dim=-1)
        return corner + point_coords * (opposite - corner)


def point_sample_fine_grained_features(
    features_list: Sequence[torch.Tensor],
    feature_scales: Sequence[float],
    boxes: Sequence[Boxes],
    point_coords: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature vectors at points in boxes, those of all maps one after another.

    Args:
        features_list: maps of the same images, (B, C_l, H_l, W_l).
        feature_scales: 1 / stride of each.
        boxes: per image, N in all.
        point_coords: (N, P, 2) relative to the boxes.

    Returns:
        (N, sum of C_l, P), and the points as pixel positions in the image, (N, P, 2).
    """
    positions = get_point_coords_wrt_image(Boxes.cat(list(boxes)).tensor, point_coords)
    per_image = positions.split([len(b) for b in boxes])
    levels = []
    for feature, scale in zip(features_list, feature_scales):
        # The map covers the padded image, whose size it tells.
        extent = positions.new_tensor([feature.shape[-1], feature.shape[-2]]) / scale
        # All points of an image as one long list: (1, C_l, N_i * P, 1).
        rows = [
            point_sample(
                feature[[number]], (points / extent).flatten(0, 1)[None], align_corners=False
            )[0].unflatten(1, points.shape[:2])
            for number, points in enumerate(per_image)
        ]
        levels.append(cat(rows, dim=1).transpose(0, 1))
    return cat(levels, dim=1), positions


def sample_point_labels(instances: Sequence[Instances], point_coords: torch.Tensor) -> torch.Tensor:
    """Ground truth at points: the true masks, read bilinearly.

    Args:
        instances: per image N_i regions with "gt_masks" (`BitMasks`).
        point_coords: (N, P, 2) pixel positions in the image, see `get_point_coords_wrt_image`.

    Returns:
        (N, P) in [0, 1]; on an outline neither 0 nor 1.
    """
    labels = []
    with torch.no_grad():
        for regions, points in zip(instances, point_coords.split([len(i) for i in instances])):
            if len(regions) == 0:
                continue
            masks = regions.gt_masks
            assert isinstance(masks, BitMasks), (
                f"points are read from bitmasks, got {type(masks).__name__}; set "
                "INPUT.MASK_FORMAT to bitmask"
            )
            height, width = masks.tensor.shape[-2:]
            relative = points / points.new_tensor([width, height])
            planes = masks.tensor[:, None].float()
            labels.append(point_sample(planes, relative, align_corners=False)[:, 0])
    return cat(labels) if labels else point_coords.new_zeros(point_coords.shape[:2])
