"""When the calls of a trace come, minute by minute.

A trace has counts per minute. Where in the minute the calls were is not recorded, so it is assumed, and said.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import defaultdict
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lambent_common.traces.model import Trace

# An arrival is one integer while it is sorted, its time above the number of its function: integers compare several
# times faster than tuples.
_FUNCTION_BITS = 24
_FUNCTION_MASK = (1 << _FUNCTION_BITS) - 1
_UNITS_PER_S = 1_000_000_000  # nanoseconds
_MINUTE = 60 * _UNITS_PER_S


class Arrivals(Enum):
    """Where in its minute a call comes."""

    POISSON = "poisson"
    """Anywhere, each on its own: a Poisson process of which the count is known."""
    UNIFORM = "uniform"
    """Evenly spaced, each function with a phase of its own that stays: what comes once a minute comes every 60 s."""
    START = "start"
    """All at once, with the minute: the hardest for a scheduler."""


class MinuteOfArrivals(NamedTuple):
    """The calls of one minute, by time.

    Attributes:
        minute: Which one, from the beginning of the window.
        times_s: When each comes, in seconds from the beginning of the window, never falling.
        functions: Position in `Trace.functions` of the function that each calls.
    """

    minute: int
    times_s: list[float]
    functions: list[int]


def minutes_of_arrivals(
    trace: Trace, assumption: Arrivals, seed: int, *, first_minute: int = 0, minutes: int | None = None
) -> Iterator[MinuteOfArrivals]:
    """Give the calls of a window of a trace, a minute at a time; a minute without calls is given, too.

    Holds one minute of calls. The same arguments give the same calls.

    Args:
        trace: The counts.
        assumption: Where in its minute a call comes.
        seed: Makes times and phases.
        first_minute: Where the window begins.
        minutes: Its length; None: to the end of the trace.
    """
    end = trace.minutes if minutes is None else min(trace.minutes, first_minute + minutes)
    source = random.Random(seed)  # noqa: S311 - a simulated load, not secrets
    phases = [source.random() for _ in trace.functions]
    for minute, called in _calls(trace, first_minute, end):
        if assumption is Arrivals.POISSON:
            drawn = source.random
            keys = [int(drawn() * _MINUTE) << _FUNCTION_BITS | number for number, count in called for _ in range(count)]
        elif assumption is Arrivals.UNIFORM:
            keys = [
                int((step + phases[number]) / count * _MINUTE) << _FUNCTION_BITS | number
                for number, count in called
                for step in range(count)
            ]
        else:
            keys = [number for number, count in called for _ in range(count)]
        keys.sort()
        start_s = 60.0 * (minute - first_minute)
        yield MinuteOfArrivals(
            minute - first_minute,
            [start_s + (key >> _FUNCTION_BITS) / _UNITS_PER_S for key in keys],
            [key & _FUNCTION_MASK for key in keys],
        )


def arrivals(
    trace: Trace, assumption: Arrivals, seed: int, *, first_minute: int = 0, minutes: int | None = None
) -> Iterator[tuple[float, int]]:
    """Give the calls of a window of a trace one by one: seconds from its beginning, position in `Trace.functions`.

    For the arguments and what is held see `minutes_of_arrivals`.
    """
    for _, times_s, functions in minutes_of_arrivals(
        trace, assumption, seed, first_minute=first_minute, minutes=minutes
    ):
        yield from zip(times_s, functions, strict=True)


def _calls(trace: Trace, first: int, end: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Give each minute with the functions that are called in it, by position, and how often.

    Every function stands in the list of the next minute in which it is called, so that no minute looks at all.
    """
    due: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, function in enumerate(trace.functions):
        position = bisect_left(function.minutes, first)
        if position < len(function.minutes):
            due[function.minutes[position]].append((number, position))
    for minute in range(first, end):
        entries = sorted(due.pop(minute, ()))
        called = []
        for number, position in entries:
            function = trace.functions[number]
            called.append((number, function.counts[position]))
            if position + 1 < len(function.minutes):
                due[function.minutes[position + 1]].append((number, position + 1))
        yield minute, called
