"""Charts as inline SVG: bars, lines and dots, in the page's own colours, with a text for readers
who do not see them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pseudolabel.report.markup import Html, escape

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 40
# Of Okabe and Ito's palette, with a dash each: lines stay apart without colour too.
LINES = (
    ("var(--mark)", "none"),
    ("var(--second)", "7 4"),
    ("#009e73", "2 3"),
    ("#cc79a7", "9 3 2 3"),
    ("#8c8c8c", "1 5"),
    ("#a58a00", "12 4"),
)


@dataclass
class Axis:
    """One axis.

    Args:
        title: what it shows, with its unit.
        low, high: the numbers at its ends.
        log: whether equal lengths are equal ratios; `low` is above 0 then.
    """

    title: str
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1; beyond them it is held at the end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        share = (value - low) / (high - low) if high > low else 0.5
        return min(1.0, max(0.0, share))

    def ticks(self) -> list[float]:
        """Four to eight round numbers within the ends."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 2 else (1,)
            numbers = [s * 10.0**e for e in range(first, last + 1) for s in steps]
            return [n for n in numbers if self.low <= n <= self.high] or sorted(
                {self.low, self.high}
            )
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        step = 10.0 ** math.floor(math.log10(span / 4))
        step *= next(m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= 6)
        start = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(start, math.floor(self.high / step + 1e-9) + 1)]


@dataclass
class Line:
    """A line or a cloud of a chart.

    Args:
        name: in the legend; "" stays out of it.
        points: (x, y), finite.
        style: position in `LINES`.
        faint: whether it is drawn thin and pale, behind others.
        sizes: radius per point; draws dots in place of a line.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    faint: bool = False
    sizes: Sequence[float] = field(default_factory=tuple)


def bars(heights: Sequence[float], x: Axis, y_title: str, text: str) -> Html:
    """A histogram of equal bins between the ends of `x`.

    Args:
        heights: one per bin, 0 or more.
        text: what the chart says, for screen readers.
    """
    y = Axis(y_title, 0, max([*heights, 1]))
    step = (WIDTH - LEFT - RIGHT) / max(1, len(heights))
    marks = []
    for number, value in enumerate(heights):
        top = _y(y, value)
        marks.append(
            f'<rect x="{LEFT + number * step + 0.5:.1f}" y="{top:.1f}" width="{step - 1:.1f}" '
            f'height="{HEIGHT - BOTTOM - top:.1f}" fill="var(--mark)"/>'
        )
    return _svg(x, y, marks, text)


def lines(
    series: Sequence[Line], x: Axis, y: Axis, text: str, *, diagonal: bool = False, mark: float = -1
) -> Html:
    """Lines and dots over common axes.

    Args:
        text: what the chart says, for screen readers.
        diagonal: draws y = x.
        mark: draws an upright line at this x, if it is not negative.
    """
    marks = []
    if diagonal:
        marks.append(_path([(x.low, x.low), (x.high, x.high)], x, y, "var(--soft)", "3 3", 1))
    if mark >= 0:
        marks.append(_path([(mark, y.low), (mark, y.high)], x, y, "var(--ink)", "2 2", 1.5))
    for line in series:
        color, dash = LINES[line.style % len(LINES)]
        if line.sizes:
            marks += [
                f'<circle cx="{_x(x, px):.1f}" cy="{_y(y, py):.1f}" r="{size:.1f}" '
                f'fill="{color}" fill-opacity=".8"/>'
                for (px, py), size in zip(line.points, line.sizes, strict=True)
            ]
        elif line.faint:
            marks.append(_path(line.points, x, y, color, "none", 1, 0.35))
        else:
            marks.append(_path(line.points, x, y, color, dash, 2))
    return Html(_svg(x, y, marks, text) + _legend(series))


def _legend(series: Sequence[Line]) -> str:
    named = [line for line in series if line.name]
    if len(named) < 2:
        return ""
    items = []
    for line in named:
        color, dash = LINES[line.style % len(LINES)]
        items.append(
            '<span style="white-space:nowrap"><svg viewBox="0 0 34 8" style="display:inline;'
            f'width:34px;height:8px" aria-hidden="true"><path d="M0 4H34" stroke="{color}" '
            f'stroke-width="3" stroke-dasharray="{dash}"/></svg> {escape(line.name)}</span>'
        )
    return f'<div class="note">{" &ensp;".join(items)}</div>'


def _path(
    points: Sequence[tuple[float, float]],
    x: Axis,
    y: Axis,
    color: str,
    dash: str,
    width: float,
    opacity: float = 1,
) -> str:
    places = [f"{_x(x, px):.1f} {_y(y, py):.1f}" for px, py in points]
    if len(places) == 1:
        left, top = places[0].split()
        return f'<circle cx="{left}" cy="{top}" r="3.5" fill="{color}"/>'
    return (
        f'<path d="M{"L".join(places)}" fill="none" stroke="{color}" stroke-width="{width}" '
        f'stroke-dasharray="{dash}" stroke-opacity="{opacity}"/>'
    )


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def _svg(x: Axis, y: Axis, marks: Sequence[str], text: str) -> Html:
    base = HEIGHT - BOTTOM
    parts = []
    for value in y.ticks():
        top = _y(y, value)
        parts.append(
            f'<path d="M{LEFT} {top:.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>'
            f'<text x="{LEFT - 6}" y="{top + 4:.1f}" text-anchor="end">{_number(value)}</text>'
        )
    for value in x.ticks():
        parts.append(
            f'<text x="{_x(x, value):.1f}" y="{base + 16}" text-anchor="middle">'
            f"{_number(value)}</text>"
        )
    title = x.title + (" (log)" if x.log else "")
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(title)}</text>"
        f'<text x="12" y="{(TOP + base) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(TOP + base) / 2:.0f})">{escape(y.title)}</text>'
    )
    axis = f'<path d="M{LEFT} {base}H{WIDTH - RIGHT}" stroke="var(--soft)"/>'
    return Html(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(text)}">'
        f"{''.join(parts)}{''.join(marks)}{axis}</svg>"
    )


def _number(value: float) -> str:
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{round(value, 4):g}"
