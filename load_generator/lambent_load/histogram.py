"""A histogram of durations with a bounded relative error, in the manner of HdrHistogram, mergeable.

Of our own and sparse: a run keeps one for each second, and recording a value takes a fraction of a microsecond. The
`hdrhistogram` package has the same idea with dense counters, some 200 KiB for each second.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_BITS = 8
"""Each power of two is divided into 256 buckets, so that a bucket is narrower than 1/256 of its values."""

_LINEAR = 2 << _BITS
"""Below it every microsecond has a bucket of its own."""

RELATIVE_ERROR = 2.0**-_BITS
"""A percentile is never below the true one, and above it by less than this share (0.4 %)."""


class Histogram:
    """Counts of durations in whole microseconds; `count`, `sum_us` and `max_us` are exact."""

    __slots__ = ("_counts", "count", "max_us", "sum_us")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.sum_us = 0
        self.max_us = 0

    def record(self, seconds: float) -> None:
        """Count a duration; one below 0, which a clock's resolution may give, counts as 0."""
        value_us = max(0, round(seconds * 1e6))
        bucket = _bucket(value_us)
        counts = self._counts
        counts[bucket] = counts.get(bucket, 0) + 1
        self.count += 1
        self.sum_us += value_us
        self.max_us = max(self.max_us, value_us)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another; the order of merges changes nothing."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.count += other.count
        self.sum_us += other.sum_us
        self.max_us = max(self.max_us, other.max_us)

    def percentile_us(self, percent: float) -> int | None:
        """Give the value that `percent` in a hundred do not exceed (nearest rank); None without values.

        Args:
            percent: In (0, 100].
        """
        return next(self.percentiles_us((percent,)))

    def percentiles_us(self, percents: Iterable[float]) -> Iterator[int | None]:
        """Give several percentiles, for one sort; they must not fall."""
        counted = iter(sorted(self._counts.items()))
        bucket = seen = 0
        for percent in percents:
            if not 0 < percent <= 100:
                raise ValueError(f"percentile {percent} is not in (0, 100]")
            rank = math.ceil(self.count * percent / 100)
            while seen < rank:
                bucket, count = next(counted)
                seen += count
            yield min(_greatest(bucket), self.max_us) if self.count else None

    @property
    def mean_us(self) -> float | None:
        """The exact mean; None without values."""
        return self.sum_us / self.count if self.count else None

    def as_json(self) -> dict[str, object]:
        """Give it as plain values: how many values were at most so many microseconds and above the entry before."""
        return {
            "count": self.count,
            "sum_us": self.sum_us,
            "max_us": self.max_us,
            "counts": [[_greatest(bucket), count] for bucket, count in sorted(self._counts.items())],
        }

    @classmethod
    def from_json(cls, described: Mapping[str, object]) -> Histogram:
        """Read what `as_json` gave.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        histogram = cls()
        counts = described["counts"]
        if not isinstance(counts, list):
            raise TypeError(f"counts of a histogram are a list, not {type(counts).__name__}")
        for greatest_us, count in counts:
            histogram._counts[_bucket(int(greatest_us))] = int(count)
        histogram.count, histogram.sum_us, histogram.max_us = (
            int(str(described[name])) for name in ("count", "sum_us", "max_us")
        )
        return histogram


def _bucket(value_us: int) -> int:
    shift = value_us.bit_length() - _BITS - 1
    return value_us if shift <= 0 else (shift << _BITS) + (value_us >> shift)


def _greatest(bucket: int) -> int:
    """Give the greatest value of a bucket."""
    if bucket < _LINEAR:
        return bucket
    shift = (bucket >> _BITS) - 1
    return (((bucket & (1 << _BITS) - 1) + (1 << _BITS) + 1) << shift) - 1
