"""A trace as calls: how many, when, and of whom."""

from __future__ import annotations

import dataclasses
import json
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_common.traces import Durations, Trace, TraceFunction
from lambent_load.traced import Replay, memory_mib, scaled

MINUTES = 10


def function(counts: list[int], memory_mib: float = 170.0) -> TraceFunction:
    """One with these calls in its minutes."""
    called = [minute for minute, count in enumerate(counts) if count]
    return TraceFunction(
        "a1b2c3d4e5", "", array("H", called), array("I", filter(None, counts)), Durations.constant(20.0), memory_mib
    )


TRACES = st.lists(
    st.lists(st.sampled_from([0, 0, 1, 3, 50]), min_size=MINUTES, max_size=MINUTES), min_size=1, max_size=5
).map(lambda rows: Trace("test", MINUTES, tuple(function(row) for row in rows)))


@given(TRACES, st.sampled_from([0.1, 0.5, 1.0, 2.5]), st.integers(0, 5), st.integers(0, 9), st.integers(1, 10))
def test_window_has_the_calls_of_its_minutes_times_the_scale(
    trace: Trace, scale: float, seed: int, first_minute: int, minutes: int
) -> None:
    """To within one call for each minute of each function; where the trace has none, there is none."""
    window = scaled(trace, scale, seed, first_minute=first_minute, minutes=minutes)
    assert window.minutes == min(minutes, MINUTES - first_minute)
    assert all(one.minutes[-1] < window.minutes for one in window.functions)
    recorded = [
        count
        for one in trace.functions
        for minute in range(first_minute, first_minute + window.minutes)
        if (count := one.count_in(minute))
    ]
    assert abs(window.invocations - scale * sum(recorded)) <= len(recorded)
    if scale == int(scale):
        assert window.invocations == scale * sum(recorded)


@pytest.mark.parametrize("seed", range(10))
def test_rare_functions_keep_their_share_of_the_calls(seed: int) -> None:
    """A tenth of functions that are called once a minute is a tenth of the calls, not none and not all."""
    trace = Trace("test", MINUTES, tuple(function([1] * MINUTES) for _ in range(400)))
    kept = scaled(trace, 0.1, seed, first_minute=0, minutes=MINUTES).invocations
    assert 400 - 5 * 19 < kept < 400 + 5 * 19  # five standard deviations of a binomial of 4,000


def test_calls_come_at_their_times_divided_by_the_speed(trace_folder: Path) -> None:
    """The same calls in the same order, with the same run times."""
    replay = Replay(str(trace_folder), first_minute=0, minutes=2)
    slow, fast = (list(one.arrivals()) for one in (replay, dataclasses.replace(replay, speed=10.0)))
    assert [request for _, request in fast] == [request for _, request in slow]
    assert [time_s for time_s, _ in fast] == pytest.approx([time_s / 10 for time_s, _ in slow])
    assert slow == list(replay.arrivals())
    assert all(0 <= time_s < 120 for time_s, _ in slow)


def test_each_call_carries_its_run_time_cut_to_the_longest(trace_folder: Path) -> None:
    """What the stand-in sleeps; a run of an hour would outlast the replay."""
    replay = Replay(str(trace_folder), first_minute=0, minutes=2, longest_run_s=0.03)
    runs_ms = [json.loads(request.payload)["run_ms"] for _, request in replay.arrivals()]
    assert max(runs_ms) == 30.0
    assert min(runs_ms) < 30.0
    assert {request.function for _, request in replay.arrivals()} == set(replay.names())


def test_memory_is_within_what_a_function_may_have() -> None:
    """Traces have less and more."""
    assert [memory_mib(function([1], held)) for held in (3.0, 170.2, 99_999.0)] == [128, 171, 10_240]
