"""From counts per minute to calls, and from percentiles to run times: properties."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_common.traces import Arrivals, Durations, Trace, TraceFunction, arrivals, minutes_of_arrivals

MINUTES = 6


def function(counts: list[int]) -> TraceFunction:
    """A function with these counts."""
    called = [minute for minute, count in enumerate(counts) if count]
    return TraceFunction("f", "", called, [counts[minute] for minute in called], Durations.constant(1), 128)


traces = st.lists(st.lists(st.integers(0, 4), min_size=MINUTES, max_size=MINUTES), min_size=1, max_size=5).map(
    lambda rows: Trace("t", MINUTES, tuple(map(function, rows)))
)
assumptions = st.sampled_from(Arrivals)
durations = st.lists(st.floats(0.5, 1e6), min_size=2, max_size=7).map(
    lambda times: Durations(tuple(step / (len(times) - 1) for step in range(len(times))), tuple(sorted(times)))
)


@given(traces, assumptions, st.integers(0, 3), st.integers(0, MINUTES), st.integers(1, MINUTES))
def test_every_counted_call_comes_in_its_minute(
    trace: Trace, assumption: Arrivals, seed: int, first: int, minutes: int
) -> None:
    """Whatever is assumed, the counts stay; a window is that part of the trace, with its times from its beginning."""
    calls = list(arrivals(trace, assumption, seed, first_minute=first, minutes=minutes))
    assert calls == sorted(calls, key=lambda call: call[0])
    found = Counter((int(time_s // 60), number) for time_s, number in calls)
    wanted = {
        (minute - first, number): count
        for number, one in enumerate(trace.functions)
        for minute in range(first, min(first + minutes, MINUTES))
        if (count := one.count_in(minute))
    }
    assert found == wanted


@given(traces, assumptions, st.integers(0, 3))
def test_the_same_seed_gives_the_same_calls(trace: Trace, assumption: Arrivals, seed: int) -> None:
    """A run is repeated by its seed."""
    assert list(arrivals(trace, assumption, seed)) == list(arrivals(trace, assumption, seed))


@given(traces)
def test_each_minute_is_given_once(trace: Trace) -> None:
    """A minute without calls is given as well: who counts minutes counts them all."""
    assert [one.minute for one in minutes_of_arrivals(trace, Arrivals.START, 0)] == list(range(MINUTES))


def test_uniform_calls_are_evenly_spaced() -> None:
    """What comes once a minute comes every 60 s, so that a timer looks like one."""
    trace = Trace("t", 3, (function([1, 1, 1]), function([0, 4, 0])))
    calls = list(arrivals(trace, Arrivals.UNIFORM, 7))
    timer = [time_s for time_s, number in calls if number == 0]
    four = [time_s for time_s, number in calls if number == 1]
    assert [later - earlier for earlier, later in itertools.pairwise(timer)] == pytest.approx([60, 60])
    assert [later - earlier for earlier, later in itertools.pairwise(four)] == pytest.approx([15] * 3)


@given(durations, st.floats(0, 1), st.floats(0, 1))
def test_a_greater_share_never_has_a_shorter_run(recorded: Durations, one: float, other: float) -> None:
    """The inverse of a distribution never falls, and stays between its ends."""
    shorter, longer = recorded.at(min(one, other)), recorded.at(max(one, other))
    least, most = recorded.longest_ms[0], recorded.longest_ms[-1]
    assert least * (1 - 1e-9) <= shorter <= longer * (1 + 1e-9) <= most * (1 + 1e-8)


@given(durations)
def test_recorded_percentiles_are_met(recorded: Durations) -> None:
    """The line goes through what was recorded."""
    for step, share in enumerate(recorded.shares):
        assert math.isclose(recorded.at(share), recorded.longest_ms[step], rel_tol=1e-9)


def test_drawn_run_times_have_the_recorded_percentiles() -> None:
    """Half of what is drawn is below the median."""
    recorded = Durations((0.0, 0.5, 1.0), (1.0, 10.0, 10_000.0))
    source = random.Random(1)
    drawn = [recorded.sample(source) for _ in range(4000)]
    assert sum(time_ms <= 10 for time_ms in drawn) == pytest.approx(2000, rel=0.05)
    assert 1 <= min(drawn) <= max(drawn) <= 10_000
