"""A report for people: the same figures with units a person reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent_common.traces import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lambent_simulator.figures import FunctionFigures, Report
    from lambent_simulator.scenario import Scenario
    from lambent_simulator.simulation import Load
    from lambent_simulator.sweep import Run

_MIB_S_PER_GIB_H = 1024 * 3600


def fields_of(load: Load, scenario: Scenario, report: Report) -> dict[str, str]:
    """Give a run, a line per figure."""
    fields = {
        "trace": f"{load.source}, {len(load.functions):,} functions"
        + (f", arrivals {scenario.arrivals.value}" if isinstance(load, Trace) else ""),
        "cluster": f"{scenario.nodes:,} nodes of {scenario.memory_mib:,} MiB, policy {scenario.policy}, "
        f"placement {scenario.placement}, eviction {scenario.eviction}, seed {scenario.seed}",
        "invocations": f"{report.invocations:,}",
        "cold starts": f"{report.cold_starts:,} ({report.cold_start_share:.3%})",
        "slowdown": f"p50 {_number(report.slowdown_p50)}, p99 {_number(report.slowdown_p99)}",
        "slowdown by function": f"p50 {_number(report.function_slowdown_p50)}, "
        f"p99 {_number(report.function_slowdown_p99)}, fairness {_number(report.fairness)}",
        "latency": f"p50 {_number(report.latency_p50_ms)} ms, p99 {_number(report.latency_p99_ms)} ms",
        "queued": f"{report.queued:,}, p50 {_number(report.queue_p50_ms)} ms, p99 {_number(report.queue_p99_ms)} ms",
        "not served": f"{report.throttled:,} throttled, {report.refused:,} refused, {report.failed:,} failed",
        "memory-time": f"{report.used_memory_mib_s / _MIB_S_PER_GIB_H:,.1f} GiB h used, "
        f"{report.wasted_memory_mib_s / _MIB_S_PER_GIB_H:,.1f} GiB h wasted",
        "environments": f"{report.environments_created:,} made, {report.environments_evicted:,} evicted, at most "
        f"{report.peak_environments:,} at once and {report.environments_created_per_s_peak:,} made in a second",
        "time": f"{report.simulated_s:,.0f} s simulated in {report.wall_s:,.1f} s: "
        f"{report.simulated_s / report.wall_s:,.0f} x real time",
    }
    if isinstance(load, Trace) and (load.without_durations or load.without_memory):
        fields["defaults"] = (
            f"{load.without_durations:,} functions without durations, {load.without_memory:,} without memory"
        )
    return fields


def functions_table(functions: Sequence[FunctionFigures]) -> tuple[list[str], list[list[str]]]:
    """Give heading and lines, the function with most calls first."""
    heading = ["FUNCTION", "INVOCATIONS", "COLD", "SLOWDOWN MEAN", "P50", "P99", "THROTTLED", "REFUSED", "FAILED"]
    lines = [
        [
            one.name[:16],
            str(one.invocations),
            str(one.cold_starts),
            *map(_number, (one.slowdown_mean, one.slowdown_p50, one.slowdown_p99)),
            *map(str, (one.throttled, one.refused, one.failed)),
        ]
        for one in sorted(functions, key=lambda one: -one.invocations)
    ]
    return heading, lines


def runs_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Give heading and lines of a sweep, in the order of its runs."""
    varied = list(runs[0].settings) if runs else []
    heading = [
        *(name.upper() for name in varied),
        *("COLD %", "SLOWDOWN P50", "P99", "WASTED GiB h", "PEAK ENVIRONMENTS", "THROTTLED", "REFUSED", "FAILED"),
    ]
    lines = []
    for run in runs:
        report = run.outcome.report
        lines.append(
            [
                *run.settings.values(),
                f"{100 * report.cold_start_share:.3f}",
                *map(_number, (report.slowdown_p50, report.slowdown_p99)),
                f"{report.wasted_memory_mib_s / _MIB_S_PER_GIB_H:,.1f}",
                *map(str, (report.peak_environments, report.throttled, report.refused, report.failed)),
            ]
        )
    return heading, lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if value < 10_000 else f"{value:,.0f}"
