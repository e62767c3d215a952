"""Trade-off curves as one SVG file that needs nothing else.

Written by hand: two panels of lines and labels are a hundred lines here, where a plotting library is tens of megabytes
and a day of its own releases to follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from lambent_simulator.sweep import NAMED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lambent_simulator.figures import Report
    from lambent_simulator.sweep import Run

_WIDTH, _HEIGHT = 420, 320
_LEFT, _TOP, _BETWEEN, _BELOW = 70, 40, 90, 60
# Told apart by people who see colours differently (Okabe and Ito, 2008).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
_MIB_S_PER_GIB_H = 1024 * 3600
# Past it the small values of a straight scale lie on each other.
_LOGARITHMIC_FROM = 20.0


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    value: Callable[[Report], float | None]


_PANELS = (
    _Panel("cold starts, % of calls", lambda report: 100 * report.cold_start_share),
    _Panel("slowdown, p99", lambda report: report.slowdown_p99),
    _Panel("slowdown of functions, p99 of their means", lambda report: report.function_slowdown_p99),
)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Turns values into places between two ends."""

    least: float
    most: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Sequence[float]) -> _Axis:
        least, most = min(values), max(values)
        if least > 0 and most / least > _LOGARITHMIC_FROM:
            return cls(10 ** math.floor(math.log10(least)), 10 ** math.ceil(math.log10(most)), True)
        step = _step(most - least or abs(most) or 1.0)
        low = math.floor(least / step) * step
        return cls(low, max(math.ceil(most / step) * step, low + step), False)

    def share(self, value: float) -> float:
        """Give the place of a value, in [0, 1]."""
        if self.logarithmic:
            return math.log(value / self.least) / math.log(self.most / self.least)
        return (value - self.least) / (self.most - self.least)

    def ticks(self) -> list[float]:
        """Give the values that are written beside the axis."""
        if self.logarithmic:
            decades = round(math.log10(self.most / self.least))
            return [self.least * 10**decade for decade in range(decades + 1)]
        step = _step(self.most - self.least)
        return [self.least + step * number for number in range(round((self.most - self.least) / step) + 1)]


def picture(runs: Sequence[Run], title: str) -> str:
    """Draw the runs of a sweep: what memory kept idle buys, in cold starts and in slowdown."""
    width = _LEFT + len(_PANELS) * (_WIDTH + _BETWEEN)
    curves = _curves(runs)
    height = _TOP + _HEIGHT + _BELOW + 20 * len(curves)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        "<style>text { font: 12px sans-serif } .label { font-size: 10px } .title { font-size: 14px }</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20" class="title">{escape(title)}</text>',
    ]
    for number, panel in enumerate(_PANELS):
        parts += _draw(panel, curves, _LEFT + number * (_WIDTH + _BETWEEN))
    for number, name in enumerate(curves):
        y = _TOP + _HEIGHT + _BELOW + 20 * number
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<rect x="{_LEFT}" y="{y - 9}" width="20" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + 28}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _curves(runs: Sequence[Run]) -> dict[str, list[tuple[str, Report]]]:
    """Give the points of each curve with their labels: along a curve varies the last setting that is a number."""
    curves: dict[str, list[tuple[str, Report]]] = {}
    for run in runs:
        along = next((setting for setting in reversed(list(run.settings)) if setting not in NAMED), None)
        same = ", ".join(f"{name} {value}" for name, value in run.settings.items() if name != along)
        label = f"{along} {run.settings[along]}" if along is not None else ""
        curves.setdefault(same or f"policy {run.scenario.policy}", []).append((label, run.outcome.report))
    return curves


def _draw(panel: _Panel, curves: dict[str, list[tuple[str, Report]]], left: int) -> Iterator[str]:
    points = {
        name: [
            (_wasted_gib_h(report), value, label) for label, report in of if (value := panel.value(report)) is not None
        ]
        for name, of in curves.items()
    }
    every = [point for of in points.values() for point in of]
    if not every:
        return
    across, up = _Axis.of([x for x, _, _ in every]), _Axis.of([y for _, y, _ in every])
    bottom = _TOP + _HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return left + across.share(x) * _WIDTH, bottom - up.share(y) * _HEIGHT

    yield f'<text x="{left}" y="{_TOP - 6}">{escape(panel.title)}</text>'
    yield f'<text x="{left + _WIDTH / 2}" y="{bottom + 36}" text-anchor="middle">memory wasted, GiB h</text>'
    for tick in across.ticks():
        x, _ = place(tick, up.least)
        yield f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#dddddd"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.4g}</text>'
    for tick in up.ticks():
        _, y = place(across.least, tick)
        yield f'<line x1="{left}" y1="{y:.1f}" x2="{left + _WIDTH}" y2="{y:.1f}" stroke="#dddddd"/>'
        yield f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    for number, (name, of) in enumerate(points.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y, _ in of)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for x, y, label in of:
            at_x, at_y = place(x, y)
            told = escape(f"{name}, {label}: {y:.4g} at {x:.4g} GiB h")
            yield f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="4" fill="{colour}"><title>{told}</title></circle>'
            if label:
                yield f'<text x="{at_x + 6:.1f}" y="{at_y - 6:.1f}" class="label">{escape(label)}</text>'


def _wasted_gib_h(report: Report) -> float:
    return report.wasted_memory_mib_s / _MIB_S_PER_GIB_H


def _step(span: float) -> float:
    """Give a round distance between ticks, some four to eight of them to a span."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(power * times for times in (1, 2, 2.5, 5, 10) if span / (power * times) <= 8)
