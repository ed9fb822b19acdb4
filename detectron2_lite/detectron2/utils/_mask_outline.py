"""Outlines of binary masks as polygons along the pixels' edges, and back.

H x W mask, pixel (x, y) covers [x, x + 1] x [y, y + 1]. Outlines keep the mask on their right as
they go (x to the right, y down), so outer ones run clockwise and those of holes the other way.
Pixels that touch at a corner belong to one part; background that touches at a corner does not.
"""

from __future__ import annotations

import numpy as np

__all__ = ["fill_outlines", "is_hole", "part_anchors", "trace_outlines", "without_specks"]

EAST, SOUTH, WEST, NORTH = range(4)

# Parts above this many pixels have an anchor of their own.
LARGE_PART = 120_000


def _edge_table(mask: np.ndarray) -> np.ndarray:
    """(4, H + 1, W + 1) bool: a piece of outline leaves this pixel corner in that direction."""
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), dtype=bool)
    padded[1:-1, 1:-1] = mask
    # The four pixels that meet at each corner.
    nw, ne = padded[:-1, :-1], padded[:-1, 1:]
    sw, se = padded[1:, :-1], padded[1:, 1:]
    table = np.empty((4, height + 1, width + 1), dtype=bool)
    table[EAST] = se & ~ne
    table[SOUTH] = sw & ~se
    table[WEST] = nw & ~sw
    table[NORTH] = ne & ~nw
    return table


def _successors(table: np.ndarray) -> np.ndarray:
    """Index of the piece that follows each piece; pieces are numbered as in the flat table."""
    corners = table[0].size
    flat = table.reshape(4, corners)
    steps = np.array([1, table.shape[2], -1, -table.shape[2]])
    follow = np.full(4 * corners, -1)
    for heading in range(4):
        start = np.flatnonzero(flat[heading])
        end = start + steps[heading]
        # The last choice that exists wins. At a corner with two ways out the left one joins
        # pixels that touch diagonally.
        for turn in (1, 0, -1):
            onward = (heading + turn) % 4
            there = flat[onward, end]
            follow[heading * corners + start[there]] = onward * corners + end[there]
    return follow


def trace_outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons that enclose exactly the pixels of a mask, holes included.

    Args:
        mask: (H, W), non-zero is foreground.

    Returns:
        (K, 2) float64 arrays of x, y: the turning points of each closed outline, ordered by
        their first pixel from the top; empty for an empty mask.
    """
    mask = np.asarray(mask) != 0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return []
    top, left = rows[0], columns[0]
    table = _edge_table(mask[top : rows[-1] + 1, left : columns[-1] + 1])
    follow = _successors(table).tolist()
    corners, stride = table[0].size, table.shape[2]
    outlines, seen = [], bytearray(len(follow))
    # Every outline has a piece that heads east, so these are starts enough.
    for start in np.flatnonzero(table[EAST]).tolist():
        piece, turns = start, []
        while not seen[piece]:
            seen[piece] = 1
            onward = follow[piece]
            if onward // corners != piece // corners:
                turns.append(onward % corners)
            piece = onward
        if turns:
            y, x = np.divmod(np.asarray(turns), stride)
            outlines.append(np.stack([x + left, y + top], axis=1).astype(np.float64))
    return outlines


def is_hole(outline: np.ndarray) -> bool:
    """Whether a (K, 2) outline of `trace_outlines` surrounds background."""
    return _signed_area(outline) < 0


def fill_outlines(outlines: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The inverse of `trace_outlines`.

    Args:
        outlines: (K, 2) arrays of x, y whose edges are horizontal or vertical, at whole numbers.
        height: H.
        width: W.

    Returns:
        (H, W) bool, true inside an odd number of outlines.
    """
    flips = np.zeros((height, width + 1), dtype=bool)
    for outline in outlines:
        corners = np.asarray(outline).astype(int)
        for (x, y), (_, next_y) in zip(corners, np.roll(corners, -1, axis=0)):
            flips[min(y, next_y) : max(y, next_y), x] ^= True
    return np.logical_xor.accumulate(flips, axis=1)[:, :width]


def _signed_area(outline: np.ndarray) -> float:
    """Pixels that a (K, 2) outline encloses, negative where it runs as holes' do."""
    onward = np.roll(outline, -1, axis=0)
    # x0 y1 - y0 x1 is twice the triangle of an edge and the origin.
    return float((outline[:, 0] * onward[:, 1] - outline[:, 1] * onward[:, 0]).sum() / 2)


def _enclosed_area(outline: np.ndarray) -> float:
    return abs(_signed_area(outline))


def _pixels_inside(outline: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The window around an outline, and which of its pixels lie inside."""
    (left, top), (right, bottom) = outline.min(axis=0).astype(int), outline.max(axis=0).astype(int)
    window = (slice(top, bottom), slice(left, right))
    return window, fill_outlines([outline - (left, top)], bottom - top, right - left)


def without_specks(mask: np.ndarray, smallest: float) -> np.ndarray:
    """The (H, W) mask without the parts that enclose fewer pixels than `smallest`."""
    kept = mask.copy()
    if smallest <= 0:
        return kept
    for outline in trace_outlines(mask):
        if not is_hole(outline) and _enclosed_area(outline) < smallest:
            window, inside = _pixels_inside(outline)
            kept[window][inside] = False
    return kept


def part_anchors(mask: np.ndarray) -> list[tuple[float, float]]:
    """Where to write in an (H, W) mask: x, y for the largest part and for every very large one.

    Each is the centre of the part's pixel nearest to the part's median, so never beside the part.
    """
    outer = [outline for outline in trace_outlines(mask) if not is_hole(outline)]
    outer.sort(key=_enclosed_area, reverse=True)
    anchors = []
    for rank, outline in enumerate(outer):
        if rank > 0 and _enclosed_area(outline) < LARGE_PART:
            break
        (rows, columns), inside = _pixels_inside(outline)
        y, x = np.nonzero(inside & (mask[rows, columns] != 0))
        distance = (x - np.median(x)) ** 2 + (y - np.median(y)) ** 2
        nearest = distance.argmin()
        anchors.append((columns.start + x[nearest] + 0.5, rows.start + y[nearest] + 0.5))
    return anchors
