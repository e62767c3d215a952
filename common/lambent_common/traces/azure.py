"""Reads folders in the schema of the Azure Functions trace of 2019.

M. Shahrad et al., "Serverless in the Wild", USENIX ATC 2020; the schema is described in
`Azure/AzurePublicDataset:AzureFunctionsDataset2019.md`. A folder holds three tables: calls per minute, durations in
milliseconds, memory in MB. The published files, the samples made of them and their copies name columns differently:
`480`, `minute_480`; names are compared without regard to case, and columns that are not needed are passed over.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from array import array
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from lambent_common.traces.errors import TraceError
from lambent_common.traces.model import SHORTEST_MS, Durations, Trace, TraceFunction

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import TextIO

# The whole published trace has some 80,000 functions a day, and 14 days.
_MOST_FUNCTIONS = 1_000_000
_MOST_MINUTES = 14 * 1440
# A count for each minute of 14 days, of seven digits and a comma each, and the hashes.
_LONGEST_LINE = 256 * 1024
# Six bytes each: 300 MB. A published day has some 10 million.
_MOST_COUNTS = 50_000_000
_MOST_CALLS_A_MINUTE = 10_000_000

# For what has calls, and no line in the other tables. Half of Azure's functions run for less than 1 s on average, and
# half of its applications hold at most 170 MB (Serverless in the Wild, 5.2 and 5.4).
_DEFAULT_DURATION_MS = 1000.0
_DEFAULT_MEMORY_MIB = 170.0

_MINUTE_COLUMN = re.compile(r"(?:min(?:ute)?[_ ]?)?(\d{1,9})")
_PERCENTILE_COLUMN = re.compile(r".*(?:percentile|pct|_p)(?:_average)?_?(\d+(?:\.\d+)?)")


def read_trace(folder: Path) -> Trace:
    """Read a folder with `invocations.csv`, `durations.csv` and `memory.csv`.

    A published file name, such as `function_durations_percentiles.anon.d01.csv`, does as well, where it is the only one
    of its kind. Lines of the same function are one function: its counts are added. Counts are kept, not calls, and
    those of minutes without calls not even that.

    Raises:
        TraceError: A file or column is missing or cannot be read, or the trace is larger than what can be kept; it
            names file, line and column.
    """
    if not folder.is_dir():
        raise TraceError("is no folder; a trace is a folder with invocations.csv, durations.csv and memory.csv", folder)
    invocations = _read_invocations(_find(folder, "invocations"))
    durations = _read_durations(_find(folder, "durations"))
    memory = _read_memory(_find(folder, "memory"))
    functions = []
    without_durations = without_memory = 0
    for name, calls in invocations.by_function.items():
        runs = durations.get(name) or durations.get(calls.app)
        memory_mib = memory.get(name) or memory.get(calls.app)
        without_durations += runs is None
        without_memory += memory_mib is None
        functions.append(
            TraceFunction(
                name=name,
                trigger=calls.trigger,
                minutes=calls.minutes,
                counts=calls.counts,
                durations=runs or Durations.constant(_DEFAULT_DURATION_MS),
                memory_mib=memory_mib or _DEFAULT_MEMORY_MIB,
            )
        )
    return Trace(str(folder), invocations.minutes, tuple(functions), without_durations, without_memory)


class _Calls(NamedTuple):
    app: str
    trigger: str
    minutes: Sequence[int]
    counts: Sequence[int]


class _Invocations(NamedTuple):
    minutes: int
    by_function: dict[str, _Calls]


def _find(folder: Path, kind: str) -> Path:
    exact = folder / f"{kind}.csv"
    if exact.is_file():
        return exact
    others = sorted(path for path in folder.glob("*.csv") if kind in path.name)
    if len(others) == 1:
        return others[0]
    if others:
        names = ", ".join(path.name for path in others[:5])
        raise TraceError(f"has several files of {kind} and no {kind}.csv: {names}; leave one of them", folder)
    raise TraceError(f"has no {kind}.csv, nor any other file of {kind}", folder)


# Tables.


class _Table:
    """A CSV file with a heading: names of columns in lower case, lines of the same length, each bounded."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self._rows = csv.reader(_lines(path, file), strict=True)
        heading = self._next()
        if heading is None:
            raise TraceError("is empty; its first line names the columns", path)
        self.columns = [name.strip() for name in heading]
        self._at: dict[str, int] = {}
        for position, name in enumerate(self.columns):
            if self._at.setdefault(name.lower(), position) != position:
                raise TraceError("there are two columns of this name", path, line=1, column=name)

    def find(self, name: str) -> int | None:
        """Give the position of a column; None when there is none of this name."""
        return self._at.get(name)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Give each line that is not blank, with its number."""
        while (row := self._next()) is not None:
            if not row:
                continue
            line = self._rows.line_num
            if len(row) != len(self.columns):
                raise TraceError(f"has {len(row)} fields, and the heading {len(self.columns)}", self.path, line=line)
            yield line, row

    def number(self, line: int, row: list[str], position: int) -> float:
        """Give a finite number that is not negative."""
        text = row[position]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0 <= value < math.inf):
            raise self._wrong(f"{text[:40]!r} is not a number of 0 or more", line, position)
        return value

    def count(self, line: int, row: list[str], position: int) -> int:
        """Give a whole number; blank means 0."""
        text = row[position]
        if not text.strip():
            return 0
        value = self.number(line, row, position)
        if value != int(value) or value > _MOST_CALLS_A_MINUTE:
            raise self._wrong(f"{text[:40]!r} is not a whole number up to {_MOST_CALLS_A_MINUTE}", line, position)
        return int(value)

    def percentiles(self) -> list[tuple[float, int]]:
        """Give the columns of percentiles: share in [0, 1] and position, by share."""
        found = [
            (float(match[1]) / 100, position)
            for name, position in self._at.items()
            if (match := _PERCENTILE_COLUMN.fullmatch(name)) is not None and float(match[1]) <= 100
        ]
        return sorted(found)

    def _wrong(self, message: str, line: int, position: int) -> TraceError:
        return TraceError(message, self.path, line=line, column=self.columns[position])

    def _next(self) -> list[str] | None:
        try:
            return next(self._rows, None)
        except csv.Error as error:
            raise TraceError(f"is not CSV: {error}", self.path, line=self._rows.line_num) from error
        except UnicodeDecodeError as error:
            raise TraceError(f"is not UTF-8: {error.reason}", self.path, line=self._rows.line_num + 1) from error


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE and not line.endswith("\n"):
            raise TraceError(f"is longer than {_LONGEST_LINE} characters", path, line=number)
        yield line


# The three files.


def _read_invocations(path: Path) -> _Invocations:
    with _open(path) as file:
        table = _Table(path, file)
        name_at = table.find("hashfunction")
        if name_at is None:
            raise TraceError("there is no such column", path, line=1, column="HashFunction")
        app_at, trigger_at = table.find("hashapp"), table.find("trigger")
        minutes = _minute_columns(table)
        found: dict[str, _Calls] = {}
        kept = 0
        for line, row in table.rows():
            name = row[name_at]
            calls = _Calls(
                "" if app_at is None else row[app_at],
                "" if trigger_at is None else row[trigger_at],
                *_counts(table, line, row, minutes),
            )
            kept += len(calls.minutes)
            found[name] = calls if name not in found else _together(found[name], calls)
            if len(found) > _MOST_FUNCTIONS or kept > _MOST_COUNTS:
                raise TraceError(
                    f"there are more than {_MOST_FUNCTIONS:,} functions or {_MOST_COUNTS:,} minutes with calls; take "
                    "some of the functions",
                    path,
                    line=line,
                )
    if not found:
        raise TraceError("has no function", path)
    return _Invocations(minutes[-1][0] + 1, found)


def _minute_columns(table: _Table) -> list[tuple[int, int]]:
    """Give each minute, from the first one, and the position of its column; by minute."""
    found = []
    for position, name in enumerate(table.columns):
        match = _MINUTE_COLUMN.fullmatch(name.lower())
        if match is not None:
            found.append((int(match[1]), position))
    if not found:
        raise TraceError("there is no column of a minute, such as 480 or minute_480", table.path, line=1)
    found.sort()
    first, last = found[0][0], found[-1][0]
    for (minute, _), (following, position) in itertools.pairwise(found):
        if minute == following:
            raise TraceError(f"minute {minute} has two columns", table.path, line=1, column=table.columns[position])
    if last - first >= _MOST_MINUTES:
        raise TraceError(f"from minute {first} to {last} is more than {_MOST_MINUTES} minutes", table.path, line=1)
    return [(minute - first, position) for minute, position in found]


def _counts(table: _Table, line: int, row: list[str], minutes: list[tuple[int, int]]) -> tuple[array[int], array[int]]:
    called, counts = array("H"), array("I")
    for minute, position in minutes:
        if row[position] != "0" and (count := table.count(line, row, position)):
            called.append(minute)
            counts.append(count)
    return called, counts


def _together(one: _Calls, other: _Calls) -> _Calls:
    counts = Counter(dict(zip(one.minutes, one.counts, strict=True)))
    counts.update(dict(zip(other.minutes, other.counts, strict=True)))
    minutes = sorted(counts)
    return one._replace(minutes=array("H", minutes), counts=array("I", (counts[minute] for minute in minutes)))


def _read_durations(path: Path) -> Mapping[str, Durations]:
    with _open(path) as file:
        table = _Table(path, file)
        name_at = _name_column(table)
        columns = table.percentiles() or _average_column(table, "average")
        found: dict[str, Durations] = {}
        for line, row in table.rows():
            if row[name_at] in found or len(found) >= _MOST_FUNCTIONS:
                continue
            points: list[tuple[float, float]] = []
            for share, position in columns:
                longest_ms = max(table.number(line, row, position), SHORTEST_MS)
                # Rounded averages may be a little out of order; a percentile never is.
                points.append((share, max(longest_ms, points[-1][1]) if points else longest_ms))
            if points[0][0] > 0:
                points.insert(0, (0.0, points[0][1]))
            if points[-1][0] < 1:
                points.append((1.0, points[-1][1]))
            found[row[name_at]] = Durations(tuple(share for share, _ in points), tuple(ms for _, ms in points))
    return found


def _read_memory(path: Path) -> Mapping[str, float]:
    """Give the most that each function or application held: an environment is given what it needs at its peak."""
    with _open(path) as file:
        table = _Table(path, file)
        name_at = _name_column(table)
        _, peak_at = (table.percentiles() or _average_column(table, "averageallocatedmb"))[-1]
        found: dict[str, float] = {}
        for line, row in table.rows():
            memory_mib = table.number(line, row, peak_at)
            if len(found) < _MOST_FUNCTIONS and memory_mib:
                found.setdefault(row[name_at], memory_mib)
    return found


def _name_column(table: _Table) -> int:
    for name in ("hashfunction", "hashapp"):
        if (position := table.find(name)) is not None:
            return position
    raise TraceError("there is neither this column nor HashApp", table.path, line=1, column="HashFunction")


def _average_column(table: _Table, name: str) -> list[tuple[float, int]]:
    position = table.find(name)
    if position is None:
        raise TraceError(f"there is neither a column of a percentile nor one named {name}", table.path, line=1)
    return [(0.5, position)]


def _open(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", path) from error
