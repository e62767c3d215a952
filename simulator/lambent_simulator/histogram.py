"""Counts of values in buckets of equal ratio: as small for three million values as for three."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RATIO = 1.002
"""Of one bucket's bounds: what is read from a histogram is within 0.1 % of a value that was put in."""
PER_E = 1 / math.log(RATIO)
"""Buckets to a factor of e. The bucket of a value above the least is `1 + int(log(value / least) * PER_E)`."""


class LogHistogram:
    """How often values came, by buckets whose bounds grow by `RATIO`.

    Values up to `least` are in bucket 0 and are read as `least` itself. Buckets are made when they are needed.

    Attributes:
        least: The value below which nothing is told apart. More than 0.
        counts: Values by bucket; may be counted in directly.
    """

    __slots__ = ("counts", "least")

    def __init__(self, least: float, counts: Mapping[int, int] = {}) -> None:
        self.least = least
        self.counts = dict(counts)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def add(self, value: float, times: int = 1) -> None:
        """Count a value."""
        bucket = 0 if value <= self.least else 1 + int(math.log(value / self.least) * PER_E)
        self.counts[bucket] = self.counts.get(bucket, 0) + times

    def merge(self, others: Iterable[LogHistogram]) -> None:
        """Count what others have counted; their `least` must be the same."""
        counts = self.counts
        for other in others:
            assert other.least == self.least
            for bucket, count in other.counts.items():
                counts[bucket] = counts.get(bucket, 0) + count

    def percentile(self, percent: float) -> float | None:
        """Give the value that `percent` in a hundred do not exceed (nearest rank); None when there is none.

        Args:
            percent: In (0, 100].
        """
        rank = math.ceil(len(self) * percent / 100)
        for bucket in sorted(self.counts):
            rank -= self.counts[bucket]
            if rank <= 0:
                return self._middle(bucket)
        return None

    def _middle(self, bucket: int) -> float:
        return self.least if bucket == 0 else self.least * float(RATIO ** (bucket - 0.5))
