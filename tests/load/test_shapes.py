"""When calls are due: the same seed gives the same times, and a shape has as many calls as the area under it."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_load import shapes
from lambent_load.plan import SHAPES, OpenLoop

RATES = st.sampled_from([0.0, 0.5, 1.0, 7.0, 100.0])
LOADS = st.builds(
    OpenLoop,
    shape=st.sampled_from(SHAPES),
    rate=st.sampled_from([0.5, 1.0, 7.0, 100.0]),
    to_rate=RATES,
    steps=st.integers(2, 5),
    period_s=st.sampled_from([1.0, 2.5, 10.0]),
    burst_s=st.sampled_from([0.25, 1.0]),
    poisson_arrivals=st.booleans(),
    seed=st.integers(0, 3),
)
DURATIONS_S = st.sampled_from([0.5, 1.0, 3.3, 10.0])


@given(LOADS, DURATIONS_S)
def test_send_times_are_within_the_run_and_never_fall(load: OpenLoop, duration_s: float) -> None:
    """The sender waits for one after another."""
    times = list(load.send_times(duration_s))
    assert all(0 <= time_s <= duration_s + 1e-9 for time_s in times)
    assert all(one <= next_one for one, next_one in itertools.pairwise(times))


@given(LOADS, DURATIONS_S)
def test_same_seed_gives_the_same_times(load: OpenLoop, duration_s: float) -> None:
    """Two runs, and all processes of one, mean the same load."""
    assert list(load.send_times(duration_s)) == list(load.send_times(duration_s))


@given(LOADS, DURATIONS_S)
def test_even_calls_are_as_many_as_the_area_under_the_rate(load: OpenLoop, duration_s: float) -> None:
    """At each moment, not only at the end, no call is missing or early."""
    segments = list(load._segments(duration_s))
    times = list(shapes.send_times(iter(segments), shapes.even()))
    assert sum(segment.duration_s for segment in segments) == pytest.approx(duration_s)
    begin_s = area = 0.0
    for segment in segments:
        begin_s, area = begin_s + segment.duration_s, area + segment.calls
        # One that is due at the very end of a segment may fall on either side of it.
        assert abs(sum(time_s < begin_s - 1e-9 for time_s in times) - math.ceil(area)) <= 1


@given(st.sampled_from([1.0, 10.0, 1000.0]), st.integers(0, 1000))
def test_constant_calls_come_at_equal_distances(rate: float, count: int) -> None:
    """Without an error that adds up."""
    times = itertools.islice(OpenLoop("constant", rate).send_times(math.inf), count)
    assert all(time_s == pytest.approx(number / rate, abs=1e-9) for number, time_s in enumerate(times))


@pytest.mark.parametrize("seed", range(20))
def test_poisson_calls_are_as_irregular_as_they_should_be(seed: int) -> None:
    """Their number varies as its root does, and so do the gaps as their mean; five standard deviations are allowed."""
    rate, duration_s = 200.0, 20.0
    times = list(OpenLoop("poisson", rate, seed=seed).send_times(duration_s))
    expected = rate * duration_s
    assert abs(len(times) - expected) < 5 * math.sqrt(expected)
    gaps = [later - one for one, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation / mean == pytest.approx(1.0, abs=5 / math.sqrt(len(gaps)))


def rate_in(load: OpenLoop, duration_s: float, begin_s: float, end_s: float) -> float:
    """Calls per second of a part of a run."""
    return sum(begin_s <= time_s < end_s for time_s in load.send_times(duration_s)) / (end_s - begin_s)


def test_shapes_are_what_they_are_called() -> None:
    """Each, looked at where it is to be high and low."""
    ramp = OpenLoop("ramp", 0, to_rate=1000)
    assert rate_in(ramp, 10, 0, 1) == pytest.approx(50, abs=2)
    assert rate_in(ramp, 10, 9, 10) == pytest.approx(950, abs=2)
    steps = OpenLoop("step", 100, to_rate=500, steps=5)
    assert [rate_in(steps, 10, second, second + 2) for second in range(0, 10, 2)] == pytest.approx(
        [100, 200, 300, 400, 500], abs=1
    )
    burst = OpenLoop("burst", 10, to_rate=1000, period_s=5, burst_s=1)
    assert rate_in(burst, 10, 0, 4) == pytest.approx(10, abs=1)
    assert rate_in(burst, 10, 9, 10) == pytest.approx(1000, abs=2)
    sine = OpenLoop("sine", 0, to_rate=1000, period_s=10)
    assert rate_in(sine, 10, 0, 1) == pytest.approx(32, abs=3)
    assert rate_in(sine, 10, 4.5, 5.5) == pytest.approx(992, abs=5)
