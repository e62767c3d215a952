"""How a load changes over time, and when each call of it is to be sent. Pure: the same seed gives the same times.

A shape is a row of segments in which the rate is constant or changes evenly, so that one exact rule gives the send
times of every shape. The calls of a segment are the area under its rate.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_CHORDS = 128
"""Straight pieces of one period of a sine: the rate is off by at most 0.03 % of its amplitude."""

Shape = Callable[[], Iterator["Segment"]]


@dataclass(frozen=True, slots=True)
class Segment:
    """A time span in which the rate changes evenly.

    Attributes:
        duration_s: Above 0.
        start_rate: Calls per second at its beginning, at least 0.
        end_rate: At its end.
    """

    duration_s: float
    start_rate: float
    end_rate: float

    @property
    def calls(self) -> float:
        """How many calls fall into it."""
        return (self.start_rate + self.end_rate) / 2 * self.duration_s

    def time_of(self, calls: float) -> float:
        """Give the moment, from its beginning, until which `calls` of its calls are due; in [0, duration_s]."""
        slope = (self.end_rate - self.start_rate) / self.duration_s
        # The root of start_rate * t + slope / 2 * t * t = calls, in the form that loses no digits with a small slope.
        root = math.sqrt(max(0.0, self.start_rate**2 + 2 * slope * calls))
        divisor = self.start_rate + root
        return min(2 * calls / divisor, self.duration_s) if divisor else 0.0


def constant(duration_s: float, rate: float) -> Iterator[Segment]:
    """The same rate all the time."""
    yield Segment(duration_s, rate, rate)


def ramp(duration_s: float, rate: float, to_rate: float) -> Iterator[Segment]:
    """From one rate evenly to another."""
    yield Segment(duration_s, rate, to_rate)


def step(duration_s: float, rate: float, to_rate: float, steps: int) -> Iterator[Segment]:
    """From one rate to another on `steps` levels of equal length, at least 2."""
    for number in range(steps):
        level = rate + (to_rate - rate) * number / (steps - 1)
        yield Segment(duration_s / steps, level, level)


def burst(duration_s: float, rate: float, to_rate: float, period_s: float, burst_s: float) -> Iterator[Segment]:
    """One rate, and for the last `burst_s` of each period another."""
    left_s = duration_s
    for wanted_s, level in itertools.cycle(((period_s - burst_s, rate), (burst_s, to_rate))):
        length_s = min(wanted_s, left_s)
        if length_s > 0:
            yield Segment(length_s, level, level)
        left_s -= wanted_s
        if left_s <= 0:
            return


def sine(duration_s: float, rate: float, to_rate: float, period_s: float) -> Iterator[Segment]:
    """A wave that begins at its lowest rate, `rate`, and reaches `to_rate` in the middle of each period."""
    chord_s = period_s / _CHORDS
    mean, amplitude = (rate + to_rate) / 2, (to_rate - rate) / 2

    def rate_at(time_s: float) -> float:
        return max(0.0, mean - amplitude * math.cos(2 * math.pi * time_s / period_s))

    for number in itertools.count():
        begin_s = number * chord_s
        if begin_s >= duration_s:
            return
        end_s = min(begin_s + chord_s, duration_s)
        yield Segment(end_s - begin_s, rate_at(begin_s), rate_at(end_s))


def even() -> Iterator[float]:
    """Gaps of calls that come as evenly as the rate allows, the first at once."""
    yield 0.0
    yield from itertools.repeat(1.0)


def poisson(seed: int) -> Iterator[float]:
    """Gaps of calls that come independently of one another (a Poisson process)."""
    draw = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    while True:
        yield draw.expovariate(1.0)


def send_times(segments: Iterator[Segment], gaps: Iterator[float]) -> Iterator[float]:
    """Give the moments at which calls are to be sent, in seconds from the beginning; they never fall.

    Args:
        segments: The shape.
        gaps: Between one call and the next, in calls: 1 is the time in which one is due. From `even` or `poisson`.
    """
    begin_s = 0.0
    due = next(gaps)
    for segment in segments:
        calls = segment.calls
        while due < calls:
            yield begin_s + segment.time_of(due)
            due += next(gaps)
        due -= calls
        begin_s += segment.duration_s
