"""Folders in the Azure schema: what is read, and what is said of one that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.traces.files import write, write_trace

from lambent_common.traces import TraceError, read_trace


@pytest.mark.parametrize(("column", "first"), [("{}", 480), ("minute_{}", 1), ("Minute{}", 0)])
def test_minutes_are_found_however_their_columns_are_named(tmp_path: Path, column: str, first: int) -> None:
    """The published files, the samples and their copies name them differently; minutes count from the first."""
    trace = read_trace(write_trace(tmp_path, {"f": [2, 0, 5]}, minute_column=column, first_minute=first))
    (function,) = trace.functions
    assert trace.minutes == 3
    assert [function.count_in(minute) for minute in range(3)] == [2, 0, 5]
    assert (list(function.minutes), list(function.counts)) == ([0, 2], [2, 5])
    assert function.invocations == trace.invocations == sum(trace.per_minute()) == 7


def test_tables_are_joined_by_application_where_they_have_no_function(tmp_path: Path) -> None:
    """The published memory is per application."""
    (function,) = read_trace(write_trace(tmp_path, {"f": [1]}, duration_ms=250, memory_mib=512.5)).functions
    assert (function.name, function.trigger, function.memory_mib) == ("f", "http", 512.5)
    assert function.durations.at(0.3) == 250


def test_a_function_without_duration_or_memory_gets_a_default_and_is_counted(tmp_path: Path) -> None:
    """Many functions of the published trace have no line in the other tables."""
    write_trace(tmp_path, {"f": [1], "g": [1]})
    write(tmp_path / "durations.csv", "HashFunction,Average", "f,20")
    write(tmp_path / "memory.csv", "HashFunction,AverageAllocatedMb", "f,64")
    trace = read_trace(tmp_path)
    f, g = trace.functions
    assert (f.durations.at(1.0), f.memory_mib) == (20, 64)
    assert (g.durations.at(0.5), g.memory_mib) == (1000, 170)
    assert (trace.without_durations, trace.without_memory) == (1, 1)


def test_lines_of_the_same_function_are_one_function(tmp_path: Path) -> None:
    """What a table says twice is not simulated twice."""
    write_trace(tmp_path, {"f": [1, 0, 3]})
    with (tmp_path / "invocations.csv").open("a") as file:
        file.write("owner,app-f,f,http,4,1,0\n")
    (function,) = read_trace(tmp_path).functions
    assert (list(function.minutes), list(function.counts)) == ([0, 1, 2], [5, 1, 3])


def test_published_names_of_files_do_as_well(tmp_path: Path) -> None:
    """Somebody has downloaded the trace, and not renamed it; of two days one has to be chosen."""
    write_trace(tmp_path, {"f": [1]})
    (tmp_path / "invocations.csv").rename(tmp_path / "invocations_per_function_md.anon.d01.csv")
    assert read_trace(tmp_path).invocations == 1
    write(tmp_path / "invocations_per_function_md.anon.d02.csv", "HashFunction,1", "f,1")
    with pytest.raises(TraceError, match=r"several files of invocations.*d01\.csv.*d02\.csv"):
        read_trace(tmp_path)


@pytest.mark.parametrize(
    ("file", "lines", "error"),
    [
        ("invocations.csv", ["HashFunction,1,2", "f,1,-3"], r"invocations\.csv, line 2, column 2: '-3'"),
        ("invocations.csv", ["HashFunction,1", "f,1.5"], "line 2, column 1: '1.5' is not a whole number"),
        ("invocations.csv", ["HashFunction,1", "", "f,nan"], "line 3, column 1: 'nan'"),
        ("invocations.csv", ["HashFunction,1", "f,99999999"], "line 2, column 1: '99999999' is not"),
        ("invocations.csv", ["HashFunction,1", "f,1,2"], "line 2: has 3 fields, and the heading 2"),
        ("invocations.csv", ["HashFunction,Trigger", "f,http"], "no column of a minute"),
        ("invocations.csv", ["HashFunction,1,minute_1", "f,1,1"], "minute 1 has two columns"),
        ("invocations.csv", ["HashFunction,1,99999", "f,1,1"], "more than 20160 minutes"),
        ("invocations.csv", ["HashFunction,a,A", "f,1,1"], "column A: there are two columns of this name"),
        ("invocations.csv", ["Function,1", "f,1"], "column HashFunction: there is no such column"),
        ("invocations.csv", ["HashFunction,1"], "has no function"),
        ("invocations.csv", ["x" * 300_000], "line 1: is longer than 262144 characters"),
        ("invocations.csv", ["HashFunction,1", '"f"g,1'], "line 2: is not CSV"),
        ("durations.csv", ["HashFunction,percentile_Average_50", "f,long"], r"durations\.csv, line 2, column perc.*50"),
        ("durations.csv", ["HashFunction,Count", "f,1"], "neither a column of a percentile nor one named average"),
        ("memory.csv", ["Owner,AverageAllocatedMb", "f,1"], r"memory\.csv, line 1, column HashFunction"),
    ],
)
def test_what_cannot_be_read_is_named_with_file_line_and_column(
    tmp_path: Path, file: str, lines: list[str], error: str
) -> None:
    """A table has hundreds of columns and thousands of lines; nobody looks for one cell without being told where."""
    write_trace(tmp_path, {"f": [1]})
    write(tmp_path / file, *lines)
    with pytest.raises(TraceError, match=error):
        read_trace(tmp_path)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    """The commonest mistake is a wrong folder."""
    with pytest.raises(TraceError, match=r"nowhere: is no folder"):
        read_trace(tmp_path / "nowhere")
    with pytest.raises(TraceError, match=r"has no invocations\.csv"):
        read_trace(tmp_path)
    write_trace(tmp_path, {"f": [1]})
    (tmp_path / "memory.csv").write_bytes(b"HashFunction,AverageAllocatedMb\nf\xff,1\n")
    with pytest.raises(TraceError, match=r"memory\.csv, line \d: is not UTF-8"):
        read_trace(tmp_path)
    (tmp_path / "memory.csv").write_bytes(b"")
    with pytest.raises(TraceError, match=r"memory\.csv: is empty"):
        read_trace(tmp_path)
