"""A recorded load as calls to send: a window of a trace, faster or slower, more or less of it."""

from __future__ import annotations

import dataclasses
import math
import random
from array import array
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lambent_common.traces import Arrivals, Trace, TraceFunction, arrivals, read_trace
from lambent_load.targets import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAST_MEMORY_MIB, _MOST_MEMORY_MIB = 128, 10_240
"""AWS Lambda quotas."""

_HASH_CHARACTERS = 8
"""Of the traced name in the function's; its number makes the name unique."""


@dataclass(frozen=True)
class Replay:
    """A window of a trace, and how it is replayed.

    Run times stay as recorded whatever the speed, so that `speed` times as many calls run at once as in the trace, and
    `scale` times as many: speed 10 with scale 0.1 has the trace's own concurrency.

    Attributes:
        trace: Folder in the Azure schema.
        first_minute: Where the window begins, from the trace's beginning.
        minutes: Its length.
        speed: Minutes of the trace in a minute; above 0.
        scale: Share of the calls that is sent, above 0; above 1 they are multiplied.
        assumption: Where in its minute a call comes, which is not recorded.
        seed: Makes the times, the run times and the choice of calls.
        prefix: Of the functions' names.
        longest_run_s: Longer runs are cut to it.
    """

    trace: str
    first_minute: int
    minutes: int
    speed: float = 1.0
    scale: float = 1.0
    assumption: str = Arrivals.POISSON.value
    seed: int = 0
    prefix: str = "replay"
    longest_run_s: float = 30.0

    @property
    def duration_s(self) -> float:
        """How long the replay sends."""
        return self.minutes * 60 / self.speed

    @cached_property
    def loaded(self) -> Trace:
        """The trace with the calls of the window that are sent, and the functions that have some.

        Raises:
            TraceError: It cannot be read.
        """
        return scaled(
            read_trace(Path(self.trace)), self.scale, self.seed, first_minute=self.first_minute, minutes=self.minutes
        )

    def names(self) -> list[str]:
        """Give the name of the deployed function of each traced one."""
        return [
            f"{self.prefix}-{number}-{''.join(filter(str.isalnum, traced.name))[:_HASH_CHARACTERS]}"
            for number, traced in enumerate(self.loaded.functions)
        ]

    def arrivals(self) -> Iterator[tuple[float, Request]]:
        """Give the calls with their times, in seconds from the beginning; each has its run time in its event."""
        source = random.Random(f"run times {self.seed}")  # noqa: S311 - a simulated load, not secrets
        functions = list(zip(self.names(), self.loaded.functions, strict=True))
        for time_s, number in arrivals(self.loaded, Arrivals(self.assumption), self.seed):
            name, traced = functions[number]
            run_ms = min(traced.durations.sample(source), self.longest_run_s * 1000)
            yield time_s / self.speed, Request(name, b'{"run_ms": %.3f}' % run_ms)


def scaled(trace: Trace, scale: float, seed: int, *, first_minute: int, minutes: int) -> Trace:
    """Give a window of a trace with `scale` times its calls, and without functions that have none.

    What is left of a call after scaling is sent with that probability, so that functions that are called rarely are
    neither lost nor multiplied.
    """
    source = random.Random(f"scale {seed}")  # noqa: S311 - a simulated load, not secrets
    functions = []
    for function in trace.functions:
        kept_minutes, counts = array("H"), array("I")
        for minute, count in zip(function.minutes, function.counts, strict=True):
            if first_minute <= minute < first_minute + minutes:
                part, whole = math.modf(count * scale)
                if sent := int(whole) + (source.random() < part):
                    kept_minutes.append(minute - first_minute)
                    counts.append(sent)
        if counts:
            functions.append(dataclasses.replace(function, minutes=kept_minutes, counts=counts))
    return dataclasses.replace(trace, minutes=min(minutes, trace.minutes - first_minute), functions=tuple(functions))


def memory_mib(function: TraceFunction) -> int:
    """Give the memory that a function's environments get: what it held at most, within AWS's limits."""
    return min(max(math.ceil(function.memory_mib), _LEAST_MEMORY_MIB), _MOST_MEMORY_MIB)
