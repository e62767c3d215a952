"""A result for a person: a few lines, with colours where there is a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lambent_load.result import Durations
from lambent_load.tally import LATE_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lambent_load.assertions import Assertion
    from lambent_load.result import Result

_NOTABLE_LATE = 0.01
"""Share of late sends from which latencies say more about the generator than about the cluster."""

_BUSY = 0.8
"""Share of a CPU from which a generator process has no time to spare."""


def summary(result: Result, assertions: Sequence[Assertion] = ()) -> str:
    """Give the lines of a result. Colours are taken out by `click.echo` where there is no terminal."""
    lines = [
        _field("calls", _calls(result)),
        _field("answered", f"{result.answered:,} ({_share(result.answered, result.sent)}), {result.rate_per_s:,.1f}/s"),
        _field("failed", _failed(result)),
        *(_field("", f"{count:,} x {error}") for error, count in result.errors.items()),
        _field("cold starts", f"{result.cold_starts:,} ({_share(result.cold_starts, result.sent)})"),
        _field("latency", _durations(Durations.of(result.latency))),
        _field("start delay", _durations(Durations.of(result.start_delay))),
        _field("send delay", _durations(Durations.of(result.send_delay))),
        _field("generator", _generator(result)),
        *(_field("note", click.style(remark, fg="yellow")) for remark in remarks(result)),
    ]
    for assertion in assertions:
        holds = assertion.holds(result)
        verdict = click.style("holds " if holds else "FAILED", fg="green" if holds else "red", bold=not holds)
        lines.append(_field("assert", f"{verdict} {assertion.text}: {assertion.found(result)}"))
    return "\n".join(lines)


def milliseconds(value_ms: float | None) -> str:
    """Write a time with three digits that count."""
    if value_ms is None:
        return "-"
    if value_ms >= 10_000:
        return f"{value_ms / 1000:,.1f} s"
    if value_ms >= 100:
        return f"{value_ms:,.0f} ms"
    return f"{value_ms:.1f} ms" if value_ms >= 10 else f"{value_ms:.2f} ms"


def remarks(result: Result) -> list[str]:
    """Say what makes a result less than it seems."""
    found = []
    if result.dropped:
        found.append(
            f"{result.dropped:,} calls were due and not sent: --max-in-flight was reached. The latencies lack them."
        )
    if result.late > result.sent * _NOTABLE_LATE:
        found.append(
            f"{result.late:,} calls were sent more than {LATE_S * 1000:.0f} ms late, and latencies have that in them: "
            + (
                "the generator was busy, try --processes"
                if result.cpu_share > _BUSY
                else "the machine gave the generator its CPU too late, try another one than the cluster's"
            )
        )
    return found


def _field(name: str, text: str) -> str:
    return f"{click.style(name.ljust(11), bold=True)}  {text}"


def _calls(result: Result) -> str:
    lasted = f"{result.scheduled:,} in {result.duration_s:,.1f} s"
    return f"{lasted}, {click.style('interrupted', fg='yellow')}" if result.interrupted else lasted


def _failed(result: Result) -> str:
    text = f"{result.failed:,} ({_share(result.failed, result.sent)}), {result.throttled:,} of them throttled"
    return click.style(text, fg="red") if result.failed else text


def _durations(durations: Durations) -> str:
    named = (
        ("p50", durations.p50),
        ("p90", durations.p90),
        ("p99", durations.p99),
        ("p99.9", durations.p99_9),
        ("max", durations.max),
    )
    return ", ".join(f"{name} {milliseconds(value)}" for name, value in named)


def _generator(result: Result) -> str:
    each = " each" if result.processes > 1 else ""
    return f"{result.processes} process{'es' if each else ''}, {result.cpu_share:.0%} of a CPU{each}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"
