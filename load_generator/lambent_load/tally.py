"""What became of the calls: counts and histograms, over all and for each interval, mergeable in any order."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from lambent_load.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

LATE_S = 0.010
"""A call sent later than this after its time is counted as late: the generator, not the cluster, was slow."""

_MOST_INTERVALS = 3600
"""Seconds of a run are told one by one up to an hour; of a longer one in longer intervals, to bound the memory."""

_MOST_ERROR_TYPES = 100
"""Functions name their own errors: what comes after this many names is counted as OTHER_ERRORS."""

OTHER_ERRORS = "(other)"

LONGEST_NAME = 80
"""Characters of an error's type that are kept, for the same reason."""


def interval_s_of(duration_s: float) -> int:
    """Give the length of an interval for a run of this length, in whole seconds."""
    return max(1, math.ceil(duration_s / _MOST_INTERVALS))


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended.

    Attributes:
        error: Empty for an answer of the function; otherwise what failed, such as `FunctionError KeyError`.
        throttled: True when a concurrency limit refused it.
        cold_start: True when its environment had served nothing before.
        start_delay_s: How long it waited for an environment; None when it got none.
    """

    error: str = ""
    throttled: bool = False
    cold_start: bool = False
    start_delay_s: float | None = None


NO_ANSWER = Answer("NoAnswer")
"""Of a call that nobody answered within its timeout."""

UNANSWERED = Answer("Unanswered")
"""Of a call that was still running when the run was stopped."""


@dataclass(slots=True)
class Interval:
    """Counts of one interval: sends by when they were due, answers by when they came.

    Attributes:
        sent: Calls sent.
        late: Of these, later than LATE_S.
        dropped: Calls due that were not sent, since too many were in flight.
        answered: Calls that ended, however.
        failed: Of these, without an answer of the function.
        throttled: Of these, refused by a concurrency limit.
        cold_starts: Calls that ended whose environment was new.
        latency: From when a call was due to its end, of those with an answer of the function.
    """

    sent: int = 0
    late: int = 0
    dropped: int = 0
    answered: int = 0
    failed: int = 0
    throttled: int = 0
    cold_starts: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def merge(self, other: Interval) -> None:
        """Add another's counts."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.latency.merge(other.latency)

    def as_json(self) -> dict[str, object]:
        """Give it as plain values."""
        return {name: getattr(self, name) for name in COUNTS} | {"latency": self.latency.as_json()}


COUNTS = tuple(one.name for one in fields(Interval) if one.name != "latency")


@dataclass(slots=True)
class Tally:
    """Everything that a generator process has counted.

    Attributes:
        interval_s: Length of an interval.
        intervals: By number from 0, the first beginning with the run; those in which nothing happened may lack.
        errors: Failed calls by what failed.
        send_delay: From when a call was due until it was sent: the generator's own share of each latency.
        start_delay: How long calls waited for an environment.
    """

    interval_s: int
    intervals: dict[int, Interval] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    send_delay: Histogram = field(default_factory=Histogram)
    start_delay: Histogram = field(default_factory=Histogram)

    def sent(self, due_s: float, delay_s: float) -> None:
        """Count a call that is sent `delay_s` after `due_s`, seconds since the run began."""
        interval = self._interval(due_s)
        interval.sent += 1
        if delay_s > LATE_S:
            interval.late += 1
        self.send_delay.record(delay_s)

    def dropped(self, due_s: float) -> None:
        """Count a call that was due and is not sent."""
        self._interval(due_s).dropped += 1

    def answered(self, end_s: float, latency_s: float, answer: Answer) -> None:
        """Count the end of a call, `end_s` seconds after the run began and `latency_s` after the call was due."""
        interval = self._interval(end_s)
        interval.answered += 1
        if answer.error:
            interval.failed += 1
            interval.throttled += answer.throttled
            self._count_error(answer.error, 1)
        else:
            interval.latency.record(latency_s)
        interval.cold_starts += answer.cold_start
        if answer.start_delay_s is not None:
            self.start_delay.record(answer.start_delay_s)

    def merge(self, other: Tally) -> None:
        """Add what another process, or the same one since, has counted."""
        assert other.interval_s == self.interval_s
        for number, interval in other.intervals.items():
            self.intervals.setdefault(number, Interval()).merge(interval)
        for error, count in other.errors.items():
            self._count_error(error, count)
        self.send_delay.merge(other.send_delay)
        self.start_delay.merge(other.start_delay)

    def total(self) -> Interval:
        """Give the counts of all intervals together."""
        total = Interval()
        for interval in self.intervals.values():
            total.merge(interval)
        return total

    def as_json(self) -> dict[str, object]:
        """Give it as plain values, for another process."""
        return {
            "interval_s": self.interval_s,
            "intervals": {str(number): interval.as_json() for number, interval in self.intervals.items()},
            "errors": dict(self.errors),
            "send_delay": self.send_delay.as_json(),
            "start_delay": self.start_delay.as_json(),
        }

    @classmethod
    def from_json(cls, described: Mapping[str, object]) -> Tally:
        """Read what `as_json` gave."""
        intervals, errors = described["intervals"], described["errors"]
        delays = described["send_delay"], described["start_delay"]
        assert isinstance(intervals, dict)
        assert isinstance(errors, dict)
        assert isinstance(delays[0], dict)
        assert isinstance(delays[1], dict)
        return cls(
            int(str(described["interval_s"])),
            {
                int(number): Interval(**(counts | {"latency": Histogram.from_json(counts["latency"])}))
                for number, counts in intervals.items()
            },
            Counter(errors),
            Histogram.from_json(delays[0]),
            Histogram.from_json(delays[1]),
        )

    def _interval(self, time_s: float) -> Interval:
        number = max(0, int(time_s / self.interval_s))
        interval = self.intervals.get(number)
        if interval is None:
            interval = self.intervals[number] = Interval()
        return interval

    def _count_error(self, error: str, count: int) -> None:
        known = error in self.errors or len(self.errors) < _MOST_ERROR_TYPES
        self.errors[error if known else OTHER_ERRORS] += count
