"""The result of a run: what is printed, written, asserted and compared."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from lambent.errors import InvalidParameterError
from lambent_load.tally import Interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from pathlib import Path

    from lambent_load.histogram import Histogram
    from lambent_load.nodes import NodeSample
    from lambent_load.tally import Tally

FORMAT = "lambent.load/1"
"""Names the form of the JSON file; another number means that fields have changed their meaning."""

PERCENTS = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Durations:
    """A distribution in milliseconds; None where there is nothing to tell of."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    p99_9: float | None
    max: float | None

    @classmethod
    def of(cls, histogram: Histogram) -> Durations:
        """Read them off a histogram."""
        maximum = histogram.max_us if histogram.count else None
        return cls(*map(_ms, (histogram.mean_us, *histogram.percentiles_us(PERCENTS), maximum)))


@dataclass(frozen=True, slots=True)
class Row:
    """One interval of the run. Sends are counted when they were due, answers when they came.

    Attributes:
        time_s: Its beginning, since the run began.
        in_flight: Calls running at its end.
        p50_ms: Of the answers that came in it; None when none did. The same of the others.
        environments: Environments alive in the cluster when it began, of all functions; None where that is not known,
            as in what follows.
        memory_reserved_mib: Memory reserved on all nodes.
        cpu_reserved_millis: CPU reserved on all nodes, in thousandths.
    """

    time_s: int
    sent: int
    late: int
    dropped: int
    answered: int
    failed: int
    throttled: int
    cold_starts: int
    in_flight: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    environments: int | None
    memory_reserved_mib: int | None
    cpu_reserved_millis: int | None


@dataclass(frozen=True, slots=True)
class Result:
    """A whole run.

    Attributes:
        started: Wall time of its beginning.
        settings: What was asked for, by the names of the command's options.
        interrupted: True when it was stopped before its end.
        duration_s: For which calls were to be sent, or were until the interruption.
        elapsed_s: Until the last answer.
        processes: Generator processes.
        cpu_s: CPU seconds that they used.
        scheduled: Calls that were due.
        sent: Of these, sent.
        dropped: Of these, not sent because too many were in flight.
        late: Of those sent, by more than 10 ms.
        answered: With an answer of the function.
        failed: Sent, and without one.
        throttled: Of these, refused by a concurrency limit.
        cold_starts: Calls whose environment was new.
        errors: Failed calls by what failed.
        latency: Of the answered calls, from when each was due.
        start_delay: How long calls waited for an environment.
        send_delay: How long after its time a call was sent: the generator's own share of its latency.
        memory_mib: Memory of all nodes for functions; None where that is not known.
        cpu_millis: CPU of all nodes for functions, in thousandths.
        interval_s: Length of a row.
        rows: The run, interval by interval.
    """

    started: datetime
    settings: Mapping[str, object]
    interrupted: bool
    duration_s: float
    elapsed_s: float
    processes: int
    cpu_s: float
    sent: int
    dropped: int
    late: int
    answered: int
    failed: int
    throttled: int
    cold_starts: int
    errors: Mapping[str, int]
    latency: Histogram
    start_delay: Histogram
    send_delay: Histogram
    memory_mib: int | None
    cpu_millis: int | None
    interval_s: int
    rows: tuple[Row, ...]

    @property
    def scheduled(self) -> int:
        """Calls that were due."""
        return self.sent + self.dropped

    @property
    def rate_per_s(self) -> float:
        """Answered calls per second, from the beginning to the last answer."""
        return self.answered / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def cpu_share(self) -> float:
        """How busy a generator process was, on average: 1 is a whole CPU, and no process has more."""
        return self.cpu_s / self.elapsed_s / self.processes if self.elapsed_s else 0.0

    def as_json(self) -> dict[str, object]:
        """Give it as plain values, figures first."""
        return {
            "format": FORMAT,
            "started": self.started.isoformat(),
            "settings": dict(self.settings),
            "interrupted": self.interrupted,
            "duration_s": self.duration_s,
            "elapsed_s": round(self.elapsed_s, 3),
            "processes": self.processes,
            "cpu_s": round(self.cpu_s, 3),
            "scheduled": self.scheduled,
            "sent": self.sent,
            "dropped": self.dropped,
            "late": self.late,
            "answered": self.answered,
            "failed": self.failed,
            "throttled": self.throttled,
            "cold_starts": self.cold_starts,
            "errors": dict(self.errors),
            "scheduled_per_s": round(self.scheduled / self.duration_s, 3) if self.duration_s else 0.0,
            "answered_per_s": round(self.rate_per_s, 3),
            "latency_ms": asdict(Durations.of(self.latency)),
            "start_delay_ms": asdict(Durations.of(self.start_delay)),
            "send_delay_ms": asdict(Durations.of(self.send_delay)),
            "memory_mib": self.memory_mib,
            "cpu_millis": self.cpu_millis,
            "interval_s": self.interval_s,
            "series": [asdict(row) for row in self.rows],
            "histograms": {name: getattr(self, name).as_json() for name in _HISTOGRAMS},
        }


_HISTOGRAMS = ("latency", "start_delay", "send_delay")


def make_result(
    tally: Tally,
    samples: Iterable[NodeSample],
    *,
    started: datetime,
    settings: Mapping[str, object],
    interrupted: bool,
    duration_s: float,
    elapsed_s: float,
    processes: int,
    cpu_s: float,
) -> Result:
    """Put a run's counts together."""
    by_interval = {int(sample.time_s / tally.interval_s): sample for sample in samples}
    last = max(by_interval.values(), key=lambda sample: sample.time_s, default=None)
    total = tally.total()
    return Result(
        started=started,
        settings=settings,
        interrupted=interrupted,
        duration_s=min(duration_s, elapsed_s) if interrupted else duration_s,
        elapsed_s=elapsed_s,
        processes=processes,
        cpu_s=cpu_s,
        sent=total.sent,
        dropped=total.dropped,
        late=total.late,
        answered=total.answered - total.failed,
        failed=total.failed,
        throttled=total.throttled,
        cold_starts=total.cold_starts,
        errors=dict(tally.errors.most_common()),
        latency=total.latency,
        start_delay=tally.start_delay,
        send_delay=tally.send_delay,
        memory_mib=last.memory_mib if last else None,
        cpu_millis=last.cpu_millis if last else None,
        interval_s=tally.interval_s,
        rows=tuple(_rows(tally, by_interval)),
    )


def _rows(tally: Tally, samples: Mapping[int, NodeSample]) -> Iterable[Row]:
    in_flight = 0
    for number in range(max(tally.intervals, default=-1) + 1):
        interval = tally.intervals.get(number) or Interval()
        in_flight += interval.sent - interval.answered
        p50_us, p99_us = interval.latency.percentiles_us((50, 99))
        sample = samples.get(number)
        yield Row(
            time_s=number * tally.interval_s,
            sent=interval.sent,
            late=interval.late,
            dropped=interval.dropped,
            answered=interval.answered - interval.failed,
            failed=interval.failed,
            throttled=interval.throttled,
            cold_starts=interval.cold_starts,
            in_flight=in_flight,
            p50_ms=_ms(p50_us),
            p99_ms=_ms(p99_us),
            max_ms=_ms(interval.latency.max_us) if interval.latency.count else None,
            environments=sample.environments if sample else None,
            memory_reserved_mib=sample.memory_reserved_mib if sample else None,
            cpu_reserved_millis=sample.cpu_reserved_millis if sample else None,
        )


def read_result(path: Path) -> Mapping[str, Any]:
    """Read a result's JSON file.

    Raises:
        InvalidParameterError: It cannot be read, or is not what `lambent load` wrote.
    """
    try:
        described = json.loads(path.read_text())
    except OSError as error:
        raise InvalidParameterError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidParameterError(f"{path} is not JSON: {error}") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise InvalidParameterError(f"{path} is no result of this version's `lambent load` (format {FORMAT})")
    return described


ROW_FIELDS = tuple(field.name for field in fields(Row))


def _ms(value_us: float | None) -> float | None:
    return None if value_us is None or math.isnan(value_us) else round(value_us / 1000, 3)
