"""Calls one by one, each with its time and run time: what a simulation logs, and what a live cluster can record.

A file of lines of JSON. The first is an object:

    {"format": "lambent-calls-1", "minutes": 60, "functions": [{"name": "thumbnail", "memory_mib": 512}, ...]}

`minutes` is the length of the record; without it, it ends with the minute of the last call. Each other line is an array
that begins with a time in seconds from the beginning, never falling, and a word. For calls these are

    [12.25, "call", 3, 0.180]

the position of the function in `functions` and the run time in seconds. Lines with other words are passed over.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lambent_common.traces.errors import TraceError
from lambent_common.traces.model import SHORTEST_MS, Durations, TraceFunction

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

FORMAT = "lambent-calls-1"

_LONGEST_LINE = 64 * 1024 * 1024
"""The first line names every function: some hundred bytes each."""
_SHORTEST_S = SHORTEST_MS / 1e3


class MinuteOfCalls(NamedTuple):
    """The calls of one minute, by time.

    Attributes:
        minute: Which one, from the beginning of the window.
        times_s: When each comes, in seconds from the beginning of the window, never falling.
        functions: Position of the function that each calls.
        durations_s: How long each runs.
    """

    minute: int
    times_s: list[float]
    functions: list[int]
    durations_s: list[float]


@dataclass(frozen=True, slots=True, eq=False)
class RecordedCalls:
    """A file of calls.

    Attributes:
        path: The file.
        functions: The functions; their counts and durations are not known.
        minutes: Length of the record; None: to the last call.
        header: The whole first line.
    """

    path: Path
    functions: tuple[TraceFunction, ...]
    minutes: int | None
    header: Mapping[str, Any]

    @property
    def source(self) -> str:
        """Where the calls are from, for reports."""
        return str(self.path)

    def minutes_of_calls(self, *, first_minute: int = 0, minutes: int | None = None) -> Iterator[MinuteOfCalls]:
        """Give the calls of a window, a minute at a time; a minute without calls is given, too. Holds one minute.

        Raises:
            TraceError: A line cannot be read; it is named.
        """
        begin_s = 60.0 * first_minute
        end_s = math.inf if minutes is None else begin_s + 60.0 * minutes
        minute = MinuteOfCalls(0, [], [], [])
        for time_s, number, duration_s in self._calls():
            if time_s < begin_s:
                continue
            if time_s >= end_s:
                break
            while time_s - begin_s >= 60.0 * (minute.minute + 1):
                yield minute
                minute = MinuteOfCalls(minute.minute + 1, [], [], [])
            minute.times_s.append(time_s - begin_s)
            minute.functions.append(number)
            minute.durations_s.append(duration_s)
        yield minute
        left = (self.minutes or 0) - first_minute
        for empty in range(minute.minute + 1, left if minutes is None else min(left, minutes)):
            yield MinuteOfCalls(empty, [], [], [])

    def _calls(self) -> Iterator[tuple[float, int, float]]:
        latest_s = 0.0
        for line, text in read_lines(self.path):
            if line == 1 or '"call"' not in text:
                continue
            match _parse(self.path, line, text):
                case [int() | float() as time_s, "call", int() as number, int() | float() as duration_s] if (
                    latest_s <= time_s < math.inf and 0 <= number < len(self.functions) and 0 <= duration_s < math.inf
                ):
                    latest_s = time_s
                    yield time_s, number, max(duration_s, _SHORTEST_S)
                case _:
                    raise TraceError(
                        f'{text[:60].strip()!r} is not [TIME, "call", FUNCTION, RUN TIME] with a time not before '
                        f"{latest_s:g} s and one of {len(self.functions)} functions",
                        self.path,
                        line=line,
                    )


def read_recorded(path: Path) -> RecordedCalls:
    """Read the first line of a file of calls; the calls are read when they are asked for.

    Raises:
        TraceError: It is no such file.
    """
    line, text = next(read_lines(path), (0, ""))
    header = _parse(path, line, text) if line else None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise TraceError(f'does not begin with {{"format": "{FORMAT}", ...}}; or give the folder of a trace', path)
    minutes, functions = header.get("minutes"), header.get("functions")
    if not (minutes is None or (isinstance(minutes, int) and minutes > 0)) or not isinstance(functions, list):
        raise TraceError("its first line needs `functions`, and `minutes` as a whole number or none", path, line=1)
    return RecordedCalls(path, tuple(_function(path, one) for one in functions), minutes, header)


def describe(functions: Sequence[TraceFunction], *, minutes: int | None) -> dict[str, object]:
    """Give the first line of a file of calls, as an object; more may be added to it."""
    described = [{"name": one.name, "trigger": one.trigger, "memory_mib": one.memory_mib} for one in functions]
    return {"format": FORMAT, "minutes": minutes, "functions": described}


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines of a text file with their numbers, each bounded in length.

    Raises:
        TraceError: The file cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"cannot be read: {error}", path) from error


def _function(path: Path, described: object) -> TraceFunction:
    match described:
        case {"name": str() as name, "memory_mib": int() | float() as memory_mib, **more} if 0 <= memory_mib < math.inf:
            trigger = str(more.get("trigger", ""))
            return TraceFunction(name, trigger, (), (), Durations.constant(SHORTEST_MS), memory_mib)
        case _:
            raise TraceError(f"{str(described)[:60]!r} is no function with name and memory_mib", path, line=1)


def _parse(path: Path, line: int, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise TraceError(f"is not JSON: {error}", path, line=line) from error
