"""Masks as outlines that give back the identical mask when they are filled.

The outline runs along the borders between pixels. All of its edges are horizontal or vertical, so
no reader has to round. A polygon has no holes; a hole is joined to the line around it by a cut of
no width, walked there and back, which even-odd and non-zero filling both ignore.

Shape legend: H, W image rows and columns. Pixel (row y, column x) covers [x, x+1) x [y, y+1). Rings
are lists of (x, y), closed without repeating the first point, clockwise on the screen: the mask
lies to the right of every edge.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_rle
from scipy import ndimage

from pseudolabel.masks import mask_iou, parse_segmentation

Ring = list[tuple[float, float]]

INSET = 0.25
"""Shift of a line into the mask, pixels. A reader that cuts coordinates down to whole pixels and
paints the line as well (OpenCV, Pillow) then paints pixels of the mask alone; the centres of the
pixels stay on their sides of the line."""


class Edges(NamedTuple):
    """Straight stretches of the border of a mask, all horizontal or all vertical; K of them.

    Attributes:
        line: int (K,), the y of a horizontal, the x of a vertical stretch.
        begin, end: int (K,), where it begins and ends along the line, in its direction.
    """

    line: np.ndarray
    begin: np.ndarray
    end: np.ndarray


class Loop(NamedTuple):
    """One closed border: corners, and the cut by which a hole will be joined.

    Attributes:
        corners: (x, y) in pixels; the first is the leftmost of the topmost ones. The way from an
            even corner to the next is vertical around a hole, horizontal along an outer border.
        hole: whether it runs around a hole.
    """

    corners: list[tuple[int, int]]
    hole: bool


def mask_to_rings(mask: np.ndarray, inset: float = 0.0) -> list[Ring]:
    """Outlines of a mask, one per part, holes joined to their part by a cut.

    Pixels that touch at a corner only belong to different parts.

    Args:
        mask: (H, W), non-zero = inside.
        inset: shift of the line into the mask, in [0, 0.5) pixels.

    Returns:
        Rings, top to bottom; none for an empty mask. With `inset` 0 the coordinates are whole
        numbers and the area that a ring encloses is its number of pixels.
    """
    mask = np.asarray(mask) != 0
    loops = _loops(mask)
    parts, _ = ndimage.label(mask)
    grouped: dict[int, list[Loop]] = defaultdict(list)
    for loop in loops:
        x, y = loop.corners[0]
        grouped[int(parts[y - loop.hole, x])].append(loop)
    rings = [_join(mask, group, inset) for group in grouped.values()]
    return sorted(rings, key=lambda ring: (ring[0][1], ring[0][0]))


def segmentation_to_rings(
    segmentation: Any, height: int, width: int, inset: float = 0.0
) -> list[Ring]:
    """`mask_to_rings` of a COCO segmentation; only its tight box is searched for borders.

    Raises:
        SegmentationError: malformed, or made for another image size.
    """
    patch, x0, y0 = segmentation_patch(segmentation, height, width)
    return [[(x + x0, y + y0) for x, y in ring] for ring in mask_to_rings(patch, inset)]


def segmentation_patch(segmentation: Any, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """The mask within its tight box: bool (h, w), and column and row of its corner.

    Raises:
        SegmentationError: malformed, or made for another image size.
    """
    code = parse_segmentation(segmentation, height, width)
    if isinstance(code, list):
        flat = [ring.tolist() for ring in code]
        code = coco_rle.merge(coco_rle.frPyObjects(flat, height, width))
    x, y, w, h = (int(n) for n in coco_rle.toBbox(code))
    return coco_rle.decode(code)[y : y + h, x : x + w] != 0, x, y


def patch_iou(a: tuple[np.ndarray, int, int], b: tuple[np.ndarray, int, int]) -> float:
    """IoU of two masks, each as `segmentation_patch` gives it."""
    left, top = min(a[1], b[1]), min(a[2], b[2])
    right = max(x + patch.shape[1] for patch, x, _ in (a, b))
    bottom = max(y + patch.shape[0] for patch, _, y in (a, b))
    canvases = []
    for patch, x, y in (a, b):
        canvas = np.zeros((bottom - top, right - left), dtype=bool)
        canvas[y - top : y - top + patch.shape[0], x - left : x - left + patch.shape[1]] = patch
        canvases.append(canvas)
    return mask_iou(*canvases)


def flatten_ring(ring: Ring) -> list[float]:
    """x1, y1, x2, y2, ... as COCO writes it; whole numbers as such."""
    return [int(n) if n == int(n) else n for point in ring for n in point]


def _loops(mask: np.ndarray) -> list[Loop]:
    """Follows the border: from every horizontal stretch to a vertical one and back."""
    padded = np.pad(mask, 1).astype(np.int8)
    across = _stretches(np.diff(padded, axis=0)[:, 1:-1], 1)
    down = _stretches(np.diff(padded, axis=1)[1:-1].T, -1)
    side = max(mask.shape) + 1
    # Heading east, the right hand is south; heading south, it is west.
    after_across = _followers(across, down, side, right=across.end > across.begin)
    after_down = _followers(down, across, side, right=down.end < down.begin)
    ys, xs = across.line.tolist(), across.begin.tolist()
    turns, loops, seen = across.end.tolist(), [], [False] * len(xs)
    for first in range(len(xs)):
        corners, k = [], first
        while not seen[k]:
            seen[k] = True
            corners += [(xs[k], ys[k]), (turns[k], ys[k])]
            k = after_down[after_across[k]]
        if corners:
            loops.append(_from_the_top(corners))
    return loops


def _stretches(steps: np.ndarray, forward: int) -> Edges:
    """Maximal runs of one sign in the rows of `steps` (lines, pixels), in the order of the rows.

    Args:
        steps: change of the mask across each line: +1 enters it.
        forward: the sign of those runs that are walked towards larger numbers.
    """
    wide = np.pad(steps, ((0, 0), (0, 1)))
    flat = wide.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=0))
    starts = starts[flat[starts] != 0] if len(starts) else starts
    stops = np.flatnonzero(np.diff(flat, append=0)) + 1
    stops = stops[flat[stops - 1] != 0] if len(stops) else stops
    line, low = np.divmod(starts, wide.shape[1])
    high = stops - line * wide.shape[1]
    ahead = flat[starts] == forward
    return Edges(line, np.where(ahead, low, high), np.where(ahead, high, low))


def _followers(edges: Edges, others: Edges, side: int, right: np.ndarray) -> list[int]:
    """Index, in `others`, of the stretch that begins where each of `edges` ends.

    Where two begin, the mask touches itself at a corner; the right turn keeps the parts separate.

    Args:
        right: bool (K,), whether the right turn goes towards larger numbers.
    """
    keys = (others.begin * (side + 1) + others.line) * 2 + (others.end > others.begin)
    order = np.argsort(keys)
    keys = keys[order]
    base = (edges.line * (side + 1) + edges.end) * 2
    at = np.minimum(np.searchsorted(keys, base + right), max(len(keys) - 1, 0))
    other = np.minimum(np.searchsorted(keys, base + ~right), max(len(keys) - 1, 0))
    return order[np.where(keys[at] == base + right, at, other)].tolist()


def _from_the_top(corners: list[tuple[int, int]]) -> Loop:
    """The loop from its topmost, there leftmost corner on."""
    first = min(range(len(corners)), key=lambda k: (corners[k][1], corners[k][0]))
    # A hole arrives there from the right, along its upper edge; an outer border leaves there.
    hole = first % 2 == 1
    return Loop(corners[first:] + corners[:first], hole)


def _join(mask: np.ndarray, loops: list[Loop], inset: float) -> Ring:
    """One ring of a part from its outer border and its holes.

    The cut goes straight up from the upper left pixel border of a hole, through the mask, to the
    first border above. That one begins higher, so lower holes are finished before their hosts.
    """
    hosts = {
        (y, x): (number, k)
        for number, loop in enumerate(loops)
        for k, (x, y) in enumerate(loop.corners)
        if k % 2 == loop.hole and loop.corners[(k + 1) % len(loop.corners)][0] > x
    }
    begins: dict[int, list[int]] = defaultdict(list)
    for y, x in sorted(hosts):
        begins[y].append(x)
    guests: dict[tuple[int, int], list[tuple[float, Ring]]] = defaultdict(list)
    order = sorted(range(len(loops)), key=lambda n: loops[n].corners[0][1], reverse=True)
    # The outer border begins at least a row above its holes and so comes last.
    for number in order:
        loop = loops[number]
        ring = _with_guests(loop, number, guests, inset)
        if not loop.hole:
            return ring
        x, y = loop.corners[0]
        background = np.flatnonzero(~mask[:y, x])
        top = int(background[-1]) + 1 if len(background) else 0
        host_x = begins[top][bisect_right(begins[top], x) - 1]
        guests[hosts[top, host_x]].append((x + inset, ring))
    raise AssertionError("a part without an outer border")


def _with_guests(
    loop: Loop, number: int, guests: dict[tuple[int, int], list[tuple[float, Ring]]], inset: float
) -> Ring:
    """The points of a loop, moved into the mask by `inset`, with the holes joined to it."""
    corners, ring = loop.corners, []
    for k, (x, y) in enumerate(corners):
        before, after = corners[k - 1], corners[(k + 1) % len(corners)]
        # The vertical neighbour has the same x, the horizontal one the same y.
        above_below, beside = (before, after) if before[0] == x else (after, before)
        south = (above_below[1] > y) == (above_below is after)
        east = (beside[0] > x) == (beside is after)
        _append(ring, (x - inset if south else x + inset, y + inset if east else y - inset))
        for cut, guest in sorted(guests.pop((number, k), ()), key=lambda pair: pair[0]):
            place = (cut, y + inset)
            _append(ring, place)
            for point in guest:
                _append(ring, point)
            ring.append(place)
    if loop.hole:
        x, y = corners[0]
        foot = (x + inset, y - inset)
        ring = [foot, *ring, foot] if inset else [*ring, foot]
    return ring


def _append(ring: Ring, point: tuple[float, float]) -> None:
    """Adds a point; one that stands there already would be an edge of no length."""
    if not ring or ring[-1] != point:
        ring.append(point)
