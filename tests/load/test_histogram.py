"""Percentiles of a histogram against those of the values themselves, and what merging keeps."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_load.histogram import RELATIVE_ERROR, Histogram

# Around the ends of buckets, where an error of one would show, and everywhere else up to an hour.
EDGES = st.sampled_from([0, 1, 255, 256, 511, 512, 513, 1023, 1024, 1026, 2**20 - 1, 2**20, 3_600_000_000])
VALUES_US = st.lists(EDGES | st.integers(0, 3_600_000_000), max_size=50)


def histogram_of(values_us: list[int]) -> Histogram:
    """Record them all."""
    histogram = Histogram()
    for value_us in values_us:
        histogram.record(value_us / 1e6)
    return histogram


@given(VALUES_US.filter(bool), st.floats(0.01, 100))
def test_percentile_is_the_true_one_or_slightly_above(values_us: list[int], percent: float) -> None:
    """So that a bound that is met was met; the error stated is the error made."""
    true_us = sorted(values_us)[math.ceil(len(values_us) * percent / 100) - 1]
    found_us = histogram_of(values_us).percentile_us(percent)
    assert found_us is not None
    assert true_us <= found_us <= true_us * (1 + RELATIVE_ERROR)


@given(VALUES_US.filter(bool))
def test_count_mean_and_maximum_are_exact(values_us: list[int]) -> None:
    """They are not read off the buckets."""
    histogram = histogram_of(values_us)
    assert (histogram.count, histogram.max_us) == (len(values_us), max(values_us))
    assert histogram.mean_us == pytest.approx(sum(values_us) / len(values_us))
    assert histogram.percentile_us(100) == max(values_us)


@given(VALUES_US, VALUES_US)
def test_merged_histograms_are_the_histogram_of_all(one: list[int], other: list[int]) -> None:
    """Several processes count as one would."""
    merged = histogram_of(one)
    merged.merge(histogram_of(other))
    assert merged.as_json() == histogram_of(one + other).as_json()


@given(VALUES_US)
def test_histogram_comes_back_from_json(values_us: list[int]) -> None:
    """It crosses processes and is kept in files."""
    histogram = histogram_of(values_us)
    assert Histogram.from_json(json.loads(json.dumps(histogram.as_json()))).as_json() == histogram.as_json()


def test_empty_histogram_has_no_values() -> None:
    """None, not a zero that would meet a bound."""
    assert Histogram().percentile_us(99) is None
    assert Histogram().mean_us is None


@pytest.mark.parametrize("percent", [0, -1, 100.1, math.nan])
def test_percentile_out_of_range_is_refused(percent: float) -> None:
    """There is none."""
    with pytest.raises(ValueError, match="percentile"):
        Histogram().percentile_us(percent)
