"""Files of calls: what is read, and what is said of one that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.traces.files import write

from lambent_common.traces import TraceError, read_recorded

HEADER = json.dumps(
    {"format": "lambent-calls-1", "functions": [{"name": "f", "memory_mib": 128}, {"name": "g", "memory_mib": 1}]}
)


def record(tmp_path: Path, *lines: str, header: str = HEADER) -> Path:
    """Write a file of calls."""
    write(tmp_path / "calls.jsonl", header, *lines)
    return tmp_path / "calls.jsonl"


def test_calls_are_given_by_minute(tmp_path: Path) -> None:
    """Also the minutes between them; what is no call is passed over."""
    lines = [
        '[1.5, "call", 0, 0.25]',
        '[1.5, "start", "f", "e-1", "node-1"]',
        '[3, "call", 1, 2]',
        '[130.5, "call", 0, 0]',
    ]
    recorded = read_recorded(record(tmp_path, *lines))
    assert [(one.name, one.memory_mib) for one in recorded.functions] == [("f", 128), ("g", 1)]
    assert list(recorded.minutes_of_calls()) == [
        (0, [1.5, 3], [0, 1], [0.25, 2]),
        (1, [], [], []),
        (2, [130.5], [0], [0.0005]),
    ]


def test_a_record_may_be_longer_than_its_calls(tmp_path: Path) -> None:
    """A quiet hour is an hour; a window is that part of it."""
    header = json.dumps(json.loads(HEADER) | {"minutes": 4})
    recorded = read_recorded(record(tmp_path, '[70, "call", 0, 1]', header=header))
    assert [minute.minute for minute in recorded.minutes_of_calls()] == [0, 1, 2, 3]
    assert list(recorded.minutes_of_calls(first_minute=1, minutes=2)) == [(0, [10], [0], [1]), (1, [], [], [])]
    assert list(recorded.minutes_of_calls(minutes=1)) == [(0, [], [], [])]


@pytest.mark.parametrize(
    "header",
    ["", "[]", "{}", "text", '{"format": "lambent-calls-1"}', '{"format": "lambent-calls-1", "functions": [1]}'],
)
def test_what_is_no_file_of_calls_is_refused(tmp_path: Path, header: str) -> None:
    """A trace is a folder; a file is something else, and may be anything."""
    with pytest.raises(TraceError, match=r"calls\.jsonl"):
        read_recorded(record(tmp_path, header=header))


@pytest.mark.parametrize(
    "line",
    [
        '[1, "call", 2, 1]',
        '[1, "call", 0, -1]',
        '[1, "call", 0]',
        '["1", "call", 0, 1]',
        '[NaN, "call", 0, 1]',
        '["call"',
    ],
)
def test_a_call_that_cannot_be_read_is_named(tmp_path: Path, line: str) -> None:
    """One line of a million."""
    with pytest.raises(TraceError, match="line 3: "):
        list(read_recorded(record(tmp_path, '[5, "call", 0, 1]', line)).minutes_of_calls())


def test_time_does_not_go_back(tmp_path: Path) -> None:
    """The order of calls is what a replay is about."""
    with pytest.raises(TraceError, match=r"line 3: .* with a time not before 5 s"):
        list(read_recorded(record(tmp_path, '[5, "call", 0, 1]', '[4, "call", 0, 1]')).minutes_of_calls())
