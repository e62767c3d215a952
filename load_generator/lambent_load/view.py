"""How a run is shown while it goes on: a table that stays in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lambent_load.histogram import Histogram
from lambent_load.tally import COUNTS, Interval
from lambent_load.text import milliseconds
from lambent_load.worker import REPORT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lambent_load.nodes import NodeSample
    from lambent_load.run import Progress, View

_REFRESH_S = 0.5
"""As often as the generators report; more would only flicker."""

_REPORTED_S = REPORT_S + 0.1
"""By then the generators have reported: an interval is looked at when it is whole."""

_FIRST_LINE_S = 2.0
_LINE_S = 5.0
"""Between two lines where there is no terminal: a log of a run of minutes stays short."""

_LATENCY_WINDOW_S = 5
"""Latencies shown are those of the last seconds: what happens now."""

_HISTORY = 60
"""Columns of a history, an interval each."""

_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Glance:
    """A run at one moment. Pure: made of counts by `glance`.

    Attributes:
        elapsed_s: Since it began.
        duration_s: For which calls are sent.
        counts: Of everything so far, by the names of `Interval`.
        sent_per_s: In the last whole interval, as is what follows.
        answered_per_s: With whatever outcome.
        latency: Of the last seconds.
        rates: Answers per second of each of the last intervals, oldest first.
        p50s_ms: Of each of the last intervals; None where nothing was answered.
        p99s_ms: The same.
        samples: The last ones of the nodes, oldest first.
    """

    elapsed_s: float
    duration_s: float
    counts: dict[str, int]
    sent_per_s: float
    answered_per_s: float
    latency: Histogram
    rates: tuple[float, ...]
    p50s_ms: tuple[float | None, ...]
    p99s_ms: tuple[float | None, ...]
    samples: tuple[NodeSample, ...]

    @property
    def clock(self) -> str:
        """How much of the run is over, in words."""
        if self.elapsed_s < self.duration_s:
            return f"{self.elapsed_s:.0f} of {self.duration_s:g} s"
        return f"{self.duration_s:g} s, the last calls run"

    @property
    def in_flight(self) -> int:
        """Calls sent and not ended."""
        return self.counts["sent"] - self.counts["answered"]


def glance(progress: Progress, now: float) -> Glance:
    """Look at a run, `now` being of `time.monotonic`."""
    tally = progress.tally
    elapsed_s = now - progress.start
    current = int(max(0.0, elapsed_s - _REPORTED_S) / tally.interval_s)
    intervals = [tally.intervals.get(number) or Interval() for number in range(max(0, current - _HISTORY), current)]
    last = intervals[-1] if intervals else Interval()
    latency = Histogram()
    for interval in intervals[-max(1, _LATENCY_WINDOW_S // tally.interval_s) :]:
        latency.merge(interval.latency)
    percentiles = [tuple(interval.latency.percentiles_us((50, 99))) for interval in intervals]
    return Glance(
        elapsed_s=elapsed_s,
        duration_s=progress.plan.duration_s,
        counts={name: sum(getattr(interval, name) for interval in tally.intervals.values()) for name in COUNTS},
        sent_per_s=last.sent / tally.interval_s,
        answered_per_s=last.answered / tally.interval_s,
        latency=latency,
        rates=tuple(interval.answered / tally.interval_s for interval in intervals),
        p50s_ms=tuple(None if p50_us is None else p50_us / 1000 for p50_us, _ in percentiles),
        p99s_ms=tuple(None if p99_us is None else p99_us / 1000 for _, p99_us in percentiles),
        samples=tuple(progress.samples[-_HISTORY:]),
    )


def line(seen: Glance) -> str:
    """Give a glance as one line."""
    counts = seen.counts
    p50, p99 = (milliseconds(value) for value in _latency_ms(seen))
    parts = [
        seen.clock,
        f"{counts['answered']:,} answered",
        f"{seen.answered_per_s:,.0f}/s",
        f"{seen.in_flight:,} in flight",
        f"p50 {p50}",
        f"p99 {p99}",
        *(f"{counts[name]:,} {name.replace('_', ' ')}" for name in _NOTABLE if counts[name]),
    ]
    if seen.samples:
        parts.append(f"{seen.samples[-1].environments:,} environments")
    return ", ".join(parts)


_NOTABLE = ("failed", "throttled", "cold_starts", "dropped", "late")


def table(seen: Glance) -> Group:
    """Give a glance as a table with a history of each figure."""
    rows = Table(box=None, pad_edge=False, show_header=False)
    rows.add_column(style="bold")
    rows.add_column(justify="right", min_width=22)
    rows.add_column(style="cyan", no_wrap=True)
    p50, p99 = (milliseconds(value) for value in _latency_ms(seen))
    rows.add_row("rate", f"{seen.answered_per_s:,.0f}/s of {seen.sent_per_s:,.0f}/s", bars(seen.rates))
    rows.add_row("p50", p50, bars(seen.p50s_ms))
    rows.add_row("p99", p99, bars(seen.p99s_ms))
    rows.add_row("in flight", f"{seen.in_flight:,}", "")
    rows.add_row("cold starts", f"{seen.counts['cold_starts']:,}", "")
    rows.add_row("throttled", _alarming(seen.counts["throttled"]), "")
    rows.add_row("failed", _alarming(seen.counts["failed"]), "")
    if seen.counts["dropped"]:
        rows.add_row("dropped", _alarming(seen.counts["dropped"]), "max in flight is reached")
    if seen.counts["late"]:
        rows.add_row("sent late", f"{seen.counts['late']:,}", "")
    if seen.samples:
        _add_nodes(rows, seen.samples)
    done = f"{seen.clock}, {seen.counts['answered']:,} answered; Ctrl-C stops"
    return Group(Text(done, style="dim"), rows)


def bars(values: Sequence[float | None]) -> str:
    """Draw values as bars of one character, the greatest as high as can be; a gap where there is nothing."""
    greatest = max((value for value in values if value is not None), default=0.0)
    if not greatest:
        return ""
    highest = len(_BARS) - 1
    return "".join(_BARS[math.ceil(value / greatest * highest)] if value else " " for value in values)


def make_view(progress: str) -> View:
    """Give a view for standard error: `live`, `plain`, `none`, or `auto`, which looks at what that is."""
    console = Console(stderr=True)
    if progress == "auto":
        progress = "live" if console.is_terminal and not console.is_dumb_terminal else "plain"
    if progress == "none":
        return SilentView()
    return LiveView(console) if progress == "live" else PlainView()


class SilentView:
    """Shows nothing."""

    async def watch(self, progress: Progress) -> None:  # noqa: ARG002 - nothing is shown
        """Wait until cancelled."""
        await asyncio.Event().wait()


class PlainView:
    """Writes a line now and then."""

    async def watch(self, progress: Progress) -> None:
        """Write until cancelled."""
        await asyncio.sleep(_FIRST_LINE_S)
        while True:
            click.echo(line(glance(progress, time.monotonic())), err=True)
            await asyncio.sleep(_LINE_S)


class LiveView:
    """Draws a table that stays in place, and takes it away at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def watch(self, progress: Progress) -> None:
        """Draw until cancelled."""
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(table(glance(progress, time.monotonic())), refresh=True)
                await asyncio.sleep(_REFRESH_S)


def _add_nodes(rows: Table, samples: Sequence[NodeSample]) -> None:
    last = samples[-1]

    def history(of: Callable[[NodeSample], int]) -> str:
        return bars([float(of(sample)) for sample in samples])

    rows.add_row("environments", f"{last.environments:,}", history(lambda sample: sample.environments))
    rows.add_row(
        f"memory, {last.nodes} node{'s' * (last.nodes != 1)}",
        f"{last.memory_reserved_mib:,} of {last.memory_mib:,} MiB",
        history(lambda sample: sample.memory_reserved_mib),
    )
    rows.add_row(
        "CPU reserved",
        f"{last.cpu_reserved_millis / 1000:,.1f} of {last.cpu_millis / 1000:,.1f}",
        history(lambda sample: sample.cpu_reserved_millis),
    )


def _latency_ms(seen: Glance) -> tuple[float | None, ...]:
    found = seen.latency.percentiles_us((50, 99))
    return tuple(None if value_us is None else value_us / 1000 for value_us in found)


def _alarming(count: int) -> Text:
    return Text(f"{count:,}", style="red" if count else "")
