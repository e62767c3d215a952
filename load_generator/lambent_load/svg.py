"""Line plots as inline SVG: no script, no network, readable in any viewer. Colours come from the page's style."""

from __future__ import annotations

import html
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 34, 30

_NOTHING = 1e-9
"""An axis that ends below has no marks but 0: no figure here is that small."""

_MOST_POINTS = 800
"""More than the plot has columns of pixels; of a longer series the highest of each group is drawn."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a plot.

    Attributes:
        name: In the legend.
        points: By x; a y of None leaves a gap.
    """

    name: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Axis:
    """A horizontal axis.

    Attributes:
        label: What it counts.
        end: Its greatest value; it begins at 0.
        ticks: Values with their labels.
    """

    label: str
    end: float
    ticks: Sequence[tuple[float, str]]


def time_axis(end_s: float) -> Axis:
    """Give the axis of a run of this length."""
    return Axis("seconds", end_s, [(tick, f"{tick:g}") for tick in nice_ticks(end_s, 8)])


def nice_ticks(end: float, most: int) -> list[float]:
    """Give up to `most` + 1 round values from 0 to the last one that is not above `end`."""
    if not end > _NOTHING:
        return [0.0]
    magnitude = 10.0 ** math.floor(math.log10(end / most))
    step = next(step for step in (magnitude, 2 * magnitude, 5 * magnitude, 10 * magnitude) if end / step <= most)
    return [round(number * step, 12) for number in range(math.floor(end / step + 1e-9) + 1)]


def plot(title: str, unit: str, axis: Axis, lines: Sequence[Line]) -> str:
    """Draw lines over a common axis, from 0 to the greatest value."""
    values = [y for line in lines for _, y in line.points if y is not None]
    top = max(values, default=0.0) * 1.05 or 1.0
    inner_width, inner_height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> str:
        return f"{_LEFT + inner_width * x / (axis.end or 1):.1f},{_TOP + inner_height * (1 - y / top):.1f}"

    def horizontal(tick: float) -> str:
        y = _TOP + inner_height * (1 - tick / top)
        return (
            f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,g}</text>'
        )

    def vertical(tick: float, label: str) -> str:
        x = _LEFT + inner_width * tick / (axis.end or 1)
        return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{html.escape(label)}</text>'

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f'<text class="title" x="4" y="16">{html.escape(title)}, {html.escape(unit)}</text>',
        *(horizontal(tick) for tick in nice_ticks(top, 5)),
        *(vertical(tick, label) for tick, label in axis.ticks),
        f'<text class="tick" x="{WIDTH - _RIGHT}" y="{HEIGHT - 1}" text-anchor="end">{html.escape(axis.label)}</text>',
    ]
    for number, line in enumerate(lines):
        parts += [
            f'<polyline class="line c{number}" points="{" ".join(place(x, y) for x, y in piece)}"/>'
            for piece in pieces(thinned(line.points))
        ]
    parts += [_legend(lines), "</svg>"]
    return "".join(parts)


def pieces(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Cut a series at its gaps. A point between two gaps is doubled, since a line of one point is not drawn."""
    found = []
    for gap, group in itertools.groupby(points, key=lambda point: point[1] is None):
        if not gap:
            piece = [(x, y) for x, y in group if y is not None]
            found.append(piece if len(piece) > 1 else piece * 2)
    return found


def thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Give at most _MOST_POINTS of a series: the highest of each group, so that no peak is lost."""
    size = math.ceil(len(points) / _MOST_POINTS)
    return [
        max(points[begin : begin + size], key=lambda point: -1.0 if point[1] is None else point[1])
        for begin in range(0, len(points), max(1, size))
    ]


def _legend(lines: Sequence[Line]) -> str:
    parts = []
    x = float(WIDTH - _RIGHT)
    for number, line in reversed(list(enumerate(lines))):
        x -= 7.0 * len(line.name)
        parts.append(f'<text class="tick" x="{x:.0f}" y="16">{html.escape(line.name)}</text>')
        x -= 16
        parts.append(f'<rect class="key c{number}" x="{x:.0f}" y="8" width="10" height="10"/>')
        x -= 10
    return "".join(parts)
