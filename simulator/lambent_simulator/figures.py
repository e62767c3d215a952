"""What a simulation counts, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambent_simulator.histogram import LogHistogram

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lambent_common.traces import TraceFunction

_LEAST_MS = 0.01


@dataclass(frozen=True, slots=True)
class FunctionFigures:
    """One function of a run; the terms are those of Report.

    Percentiles are None where none of its calls was served.
    """

    name: str
    invocations: int
    cold_starts: int
    throttled: int
    refused: int
    failed: int
    slowdown_mean: float | None
    slowdown_p50: float | None
    slowdown_p99: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """A run in figures.

    Every call has one end: `invocations == served + throttled + refused + failed`.

    Attributes:
        invocations: Calls that came.
        served: Calls that were answered.
        cold_starts: Calls that waited for an environment and were its first; not of one that was started ahead of them.
        cold_start_share: Of all calls.
        slowdown_p50: From arrival to answer, divided by the time of the run itself; over all calls that were served.
        slowdown_p99: As above.
        function_slowdown_p50: Over functions, of the mean of each: a function that is called once a day counts as much
            as one that makes half of all calls.
        function_slowdown_p99: As above.
        fairness: Jain's index over the functions' mean slowdowns: 1 when all are slowed alike, 1/n when one is alone.
        latency_p50_ms: From arrival to answer.
        latency_p99_ms: As above.
        queued: Calls that waited for an environment.
        queue_p50_ms: How long these waited.
        queue_p99_ms: As above.
        throttled: Calls over a concurrency limit.
        refused: Calls for which there was no capacity, when they came or after they had waited.
        failed: Calls that had been given to a node, and were lost with it.
        causes: Those throttled, refused and failed, by the name of their error.
        wasted_memory_mib_s: Memory times time of environments, less that of the runs of calls that were served.
        used_memory_mib_s: Memory times time of those runs.
        environments_created: Starts that nodes began.
        environments_created_per_s_peak: Most of them in one second.
        environments_evicted: Ended before their time, since their memory was wanted.
        peak_environments: Most that there were at once.
        peak_memory_mib: Most memory that they held at once.
        nodes_lost: How often a node was given up.
        simulated_s: From the beginning to the end of the window, or of the last call where that is later.
        wall_s: How long the simulation took.
    """

    invocations: int
    served: int
    cold_starts: int
    cold_start_share: float
    slowdown_p50: float | None
    slowdown_p99: float | None
    function_slowdown_p50: float | None
    function_slowdown_p99: float | None
    fairness: float | None
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    queued: int
    queue_p50_ms: float | None
    queue_p99_ms: float | None
    throttled: int
    refused: int
    failed: int
    causes: Mapping[str, int]
    wasted_memory_mib_s: float
    used_memory_mib_s: float
    environments_created: int
    environments_created_per_s_peak: int
    environments_evicted: int
    peak_environments: int
    peak_memory_mib: int
    nodes_lost: int
    simulated_s: float
    wall_s: float


class FunctionTally:
    """What is counted of one function. `slowdowns` are buckets of a LogHistogram from 1 on."""

    __slots__ = ("cold_starts", "failed", "invocations", "refused", "slowdown_sum", "slowdowns", "throttled")

    def __init__(self) -> None:
        self.invocations = 0
        self.cold_starts = 0
        self.throttled = 0
        self.refused = 0
        self.failed = 0
        self.slowdowns: dict[int, int] = {}
        self.slowdown_sum = 0.0

    def figures(self, function: TraceFunction) -> FunctionFigures:
        """Give them for a report."""
        slowdowns = LogHistogram(1.0, self.slowdowns)
        return FunctionFigures(
            name=function.name,
            invocations=self.invocations,
            cold_starts=self.cold_starts,
            throttled=self.throttled,
            refused=self.refused,
            failed=self.failed,
            slowdown_mean=self.slowdown_mean,
            slowdown_p50=slowdowns.percentile(50),
            slowdown_p99=slowdowns.percentile(99),
        )

    @property
    def slowdown_mean(self) -> float | None:
        """Of the calls that were served; None when none was."""
        served = sum(self.slowdowns.values())
        return self.slowdown_sum / served if served else None


class MemoryTally:
    """Environments and their memory over time."""

    __slots__ = (
        "_created_in",
        "_second",
        "_since_s",
        "created",
        "created_per_s_peak",
        "environments",
        "held_mib",
        "held_mib_s",
        "peak_environments",
        "peak_mib",
    )

    def __init__(self) -> None:
        self.created = 0
        self.created_per_s_peak = 0
        self.environments = 0
        self.peak_environments = 0
        self.held_mib = 0
        self.peak_mib = 0
        self.held_mib_s = 0.0
        self._since_s = 0.0
        self._second = -1
        self._created_in = 0

    def begin(self, memory_mib: int, now: float) -> None:
        """An environment holds memory from now on."""
        self.advance(now)
        self.created += 1
        self.environments += 1
        self.held_mib += memory_mib
        self.peak_environments = max(self.peak_environments, self.environments)
        self.peak_mib = max(self.peak_mib, self.held_mib)
        if self._second != int(now):
            self._second, self._created_in = int(now), 0
        self._created_in += 1
        self.created_per_s_peak = max(self.created_per_s_peak, self._created_in)

    def end(self, memory_mib: int, now: float) -> None:
        """An environment is gone."""
        self.advance(now)
        self.environments -= 1
        self.held_mib -= memory_mib

    def advance(self, now: float) -> None:
        """Count the memory that was held until now."""
        self.held_mib_s += self.held_mib * (now - self._since_s)
        self._since_s = now


class Tally:
    """What is counted of a whole run."""

    def __init__(self, functions: Sequence[TraceFunction]) -> None:
        self.by_function = [FunctionTally() for _ in functions]
        self.memory = MemoryTally()
        self.latencies_ms = LogHistogram(_LEAST_MS)
        self.queue_ms = LogHistogram(_LEAST_MS)
        self.used_memory_mib_s = 0.0
        self.causes: dict[str, int] = {}
        self.evicted = 0
        self.nodes_lost = 0

    def report(self, simulated_s: float, wall_s: float) -> Report:
        """Give the figures."""
        functions = self.by_function
        slowdowns = LogHistogram(1.0)
        slowdowns.merge(LogHistogram(1.0, one.slowdowns) for one in functions)
        means = [mean for one in functions if (mean := one.slowdown_mean) is not None]
        by_function = LogHistogram(1.0)
        for mean in means:
            by_function.add(mean)
        invocations = sum(one.invocations for one in functions)
        cold_starts = sum(one.cold_starts for one in functions)
        return Report(
            invocations=invocations,
            served=len(slowdowns),
            cold_starts=cold_starts,
            cold_start_share=cold_starts / invocations if invocations else 0.0,
            slowdown_p50=slowdowns.percentile(50),
            slowdown_p99=slowdowns.percentile(99),
            function_slowdown_p50=by_function.percentile(50),
            function_slowdown_p99=by_function.percentile(99),
            fairness=sum(means) ** 2 / (len(means) * sum(mean * mean for mean in means)) if means else None,
            latency_p50_ms=self.latencies_ms.percentile(50),
            latency_p99_ms=self.latencies_ms.percentile(99),
            queued=len(self.queue_ms),
            queue_p50_ms=self.queue_ms.percentile(50),
            queue_p99_ms=self.queue_ms.percentile(99),
            throttled=sum(one.throttled for one in functions),
            refused=sum(one.refused for one in functions),
            failed=sum(one.failed for one in functions),
            causes=dict(sorted(self.causes.items())),
            wasted_memory_mib_s=self.memory.held_mib_s - self.used_memory_mib_s,
            used_memory_mib_s=self.used_memory_mib_s,
            environments_created=self.memory.created,
            environments_created_per_s_peak=self.memory.created_per_s_peak,
            environments_evicted=self.evicted,
            peak_environments=self.memory.peak_environments,
            peak_memory_mib=self.memory.peak_mib,
            nodes_lost=self.nodes_lost,
            simulated_s=simulated_s,
            wall_s=wall_s,
        )
