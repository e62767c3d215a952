"""Histograms of equal ratio: properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_simulator import LogHistogram

LEAST = 0.01
values = st.lists(st.floats(0, 1e9), min_size=1, max_size=50)


def filled(numbers: list[float]) -> LogHistogram:
    """A histogram of these numbers."""
    histogram = LogHistogram(LEAST)
    for number in numbers:
        histogram.add(number)
    return histogram


@given(values, st.floats(0.1, 100))
def test_a_percentile_is_within_a_thousandth_of_the_exact_one(numbers: list[float], percent: float) -> None:
    """Buckets of two thousandths, read in the middle."""
    exact = sorted(numbers)[math.ceil(len(numbers) * percent / 100) - 1]
    assert filled(numbers).percentile(percent) == pytest.approx(max(exact, LEAST), rel=0.00101)


@given(values, values)
def test_merged_histograms_are_the_histogram_of_all(one: list[float], other: list[float]) -> None:
    """The figures of a run are those of its functions together."""
    merged = filled(one)
    merged.merge([filled(other)])
    assert merged.counts == filled(one + other).counts
    assert len(merged) == len(one) + len(other)


def test_of_nothing_there_is_no_percentile() -> None:
    """A function that was never served has no slowdown, not one of 0."""
    assert LogHistogram(1.0).percentile(50) is None
