"""Files of a result: a page with plots, the figures as JSON, the series as CSV."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from lambent_load.result import ROW_FIELDS, Durations
from lambent_load.svg import Axis, Line, plot, time_axis
from lambent_load.text import milliseconds, remarks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from lambent_load.assertions import Assertion
    from lambent_load.histogram import Histogram
    from lambent_load.result import Result, Row

PLOT_STYLE = """
:root { --ink: #1d2430; --dim: #667085; --paper: #fff; --rule: #e4e7ec; --c0: #2f6fde; --c1: #d9822b; --c2: #c4314b;
  --good: #1a7f4b; --bad: #c4314b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --dim: #98a2b3; --paper: #14171d; --rule: #2b303a;
  --c0: #6ea1ff; --c1: #f0a85c; --c2: #ff7a8f; --good: #5fd39a; --bad: #ff7a8f; } }
.title { font-weight: 600; font-size: 13px; } text { fill: var(--ink); }
.tick { fill: var(--dim); font-size: 11px; } .grid { stroke: var(--rule); } .line { fill: none; stroke-width: 1.6; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.key.c0 { fill: var(--c0); } .key.c1 { fill: var(--c1); } .key.c2 { fill: var(--c2); }
"""
"""What the plots look like, on light paper and on dark."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1340px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { color: var(--dim); margin: .3rem 0; }
.tiles { display: flex; flex-wrap: wrap; gap: 2.5rem; margin: 1.5rem 0; }
.tiles b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; } .tiles span { color: var(--dim); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 540px), 1fr)); gap: 1.5rem; }
svg { width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } td, th { text-align: left; font-weight: normal;
  padding: .2rem 1.5rem .2rem 0; border-bottom: 1px solid var(--rule); } th { color: var(--dim); }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
"""

_METHOD = (
    "Latency counts from when a call was due, to its answer; calls without an answer of the function have none. Start "
    "delay is the wait for an environment, send delay the generator's own. Sends are drawn when they were due, answers "
    "when they came. Percentiles are at most 0.4 % above the true ones."
)


def write_files(page: Path, result: Result, assertions: Sequence[Assertion]) -> list[Path]:
    """Write the page, and beside it the same name with `.json` and `.csv`; gives the three paths.

    Raises:
        OSError: One cannot be written.
    """
    paths = [page, page.with_suffix(".json"), page.with_suffix(".csv")]
    texts = [as_html(result, assertions), json.dumps(result.as_json(), indent=1) + "\n", as_csv(result)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def as_csv(result: Result) -> str:
    """Give the series, a line per interval; empty fields are unknown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(ROW_FIELDS)
    writer.writerows(asdict(row).values() for row in result.rows)
    return text.getvalue()


def as_html(result: Result, assertions: Sequence[Assertion] = ()) -> str:
    """Give the page. It asks for nothing from elsewhere and runs no script."""
    name = html.escape(str(result.settings.get("function") or result.settings.get("target") or "load"))
    started = f"{result.started:%Y-%m-%d %H:%M:%S} UTC, {result.duration_s:,.1f} s"
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width">',
            f"<title>lambent load {name}</title><style>{PLOT_STYLE}{_STYLE}</style></head><body>",
            f"<h1>lambent load {name}</h1><p>{started}{', interrupted' if result.interrupted else ''}</p>",
            *(f'<p class="bad">{html.escape(remark)}</p>' for remark in remarks(result)),
            _tiles(result),
            _verdicts(result, assertions),
            f'<div class="plots">{"".join(plots(result))}</div>',
            "<h2>Durations</h2>",
            _durations(result),
            "<h2>Calls</h2>",
            _table(_counts(result)),
            "<h2>Settings</h2>",
            _table((name.replace("_", "-"), str(value)) for name, value in result.settings.items()),
            f"<p>{_METHOD}</p></body></html>",
        )
    )


def _tiles(result: Result) -> str:
    latency = Durations.of(result.latency)
    tiles = (
        (f"{result.rate_per_s:,.1f}", "answers per second"),
        (milliseconds(latency.p50), "p50"),
        (milliseconds(latency.p99), "p99"),
        (f"{result.failed:,}", "failed"),
        (f"{result.throttled:,}", "throttled"),
        (f"{result.cold_starts:,}", "cold starts"),
    )
    return (
        f'<div class="tiles">{"".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in tiles)}</div>'
    )


def _verdicts(result: Result, assertions: Sequence[Assertion]) -> str:
    return "".join(
        f'<p class="{"good" if one.holds(result) else "bad"}">{"holds" if one.holds(result) else "FAILED"}: '
        f"{html.escape(one.text)} ({html.escape(one.found(result))})</p>"
        for one in assertions
    )


def plots(result: Result) -> Iterable[str]:
    """Give the plots of the page, each an SVG element."""
    interval_s = result.interval_s
    axis = time_axis((result.rows[-1].time_s + interval_s) if result.rows else 1.0)

    def line(name: str, value: Callable[[Row], float | None]) -> Line:
        return Line(name, [(row.time_s + interval_s / 2, value(row)) for row in result.rows])

    yield plot(
        "Calls",
        "per second",
        axis,
        (
            line("due", lambda row: (row.sent + row.dropped) / interval_s),
            line("answered", lambda row: row.answered / interval_s),
            line("failed", lambda row: row.failed / interval_s),
        ),
    )
    yield plot("Latency", "ms", axis, (line("p50", lambda row: row.p50_ms), line("p99", lambda row: row.p99_ms)))
    yield plot("In flight", "calls", axis, (line("in flight", lambda row: row.in_flight),))
    yield plot(
        "Cold starts and throttles",
        "per second",
        axis,
        (
            line("cold starts", lambda row: row.cold_starts / interval_s),
            line("throttled", lambda row: row.throttled / interval_s),
        ),
    )
    if result.memory_mib and result.cpu_millis:
        memory_mib, cpu_millis = result.memory_mib, result.cpu_millis
        yield plot("Environments in the cluster", "alive", axis, (line("environments", lambda row: row.environments),))
        yield plot(
            "Reserved on the nodes",
            "%",
            axis,
            (
                line("memory", lambda row: _percent(row.memory_reserved_mib, memory_mib)),
                line("CPU", lambda row: _percent(row.cpu_reserved_millis, cpu_millis)),
            ),
        )
    yield _distribution(result)


_DISTRIBUTION_TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)


def _distribution(result: Result) -> str:
    """Draw durations over percentiles, each further nine as wide as the one before."""

    def position(percent: float) -> float:
        return -math.log10(1 - percent / 100)

    # As far as there are ten values above: the last ones of a short run are chance.
    end = max(1.0, math.log10(max(10, result.latency.count / 10)))
    steps = [end * number / 100 for number in range(101)]

    def line(name: str, histogram: Histogram) -> Line:
        percents = [max(0.001, 100 * (1 - 10.0**-x)) for x in steps]
        found = histogram.percentiles_us(percents)
        return Line(name, [(x, None if us is None else us / 1000) for x, us in zip(steps, found, strict=True)])

    ticks = [(position(percent), f"{percent:g}") for percent in _DISTRIBUTION_TICKS if position(percent) <= end + 1e-9]
    return plot(
        "Durations by percentile",
        "ms",
        Axis("percentile", end, ticks),
        (
            line("latency", result.latency),
            line("start delay", result.start_delay),
            line("send delay", result.send_delay),
        ),
    )


def _durations(result: Result) -> str:
    heading = "<tr><th></th><th>mean</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th></tr>"
    rows = []
    for name in ("latency", "start_delay", "send_delay"):
        durations = Durations.of(getattr(result, name))
        cells = "".join(f"<td>{milliseconds(value)}</td>" for value in asdict(durations).values())
        rows.append(f"<tr><th>{name.replace('_', ' ')}</th>{cells}</tr>")
    return f"<table>{heading}{''.join(rows)}</table>"


def _counts(result: Result) -> Iterable[tuple[str, str]]:
    for name in ("scheduled", "sent", "dropped", "late", "answered", "failed", "throttled", "cold_starts", "processes"):
        yield name.replace("_", " "), f"{getattr(result, name):,}"
    for error, count in result.errors.items():
        yield f"failed with {error}", f"{count:,}"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def _percent(part: int | None, whole: int) -> float | None:
    return None if part is None else 100 * part / whole
