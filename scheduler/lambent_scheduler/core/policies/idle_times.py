"""How long a function's environments were idle before they were wanted again: a histogram by the minute."""

from __future__ import annotations

from collections import deque
from typing import Final

BIN_S: Final = 60.0
"""As in "Serverless in the Wild" (ATC 2020): minutes."""
BINS: Final = 240
"""Four hours, as there."""
LAST: Final = 8
"""How many of those that are longer are remembered."""
_FORGET_AT: Final = 4096
"""Samples at which all counts are halved: what a function does now counts more than what it did."""


class IdleTimes:
    """The histogram.

    Attributes:
        counts: Idle times by bin; most functions have a few bins in use.
        samples: How many those are.
        squares: Sum of the counts' squares.
        beyond: Idle times that are longer than the histogram reaches.
        last: The last of those, in seconds.
    """

    __slots__ = ("beyond", "counts", "last", "samples", "squares")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.samples = 0
        self.squares = 0
        self.beyond = 0
        self.last: deque[float] = deque(maxlen=LAST)

    def add(self, idle_s: float) -> None:
        """Count an idle time. Of constant cost."""
        number = int(idle_s / BIN_S)
        if number >= BINS:
            self.beyond += 1
            self.last.append(idle_s)
            return
        count = self.counts.get(number, 0)
        self.counts[number] = count + 1
        self.squares += 2 * count + 1
        self.samples += 1
        if self.samples >= _FORGET_AT:
            self._forget()

    def percentile(self, share: float) -> int:
        """Give the first bin at which so great a share of the samples is reached. There must be samples."""
        wanted, reached, number = share * self.samples, 0, 0
        for number in sorted(self.counts):
            reached += self.counts[number]
            if reached >= wanted:
                break
        return number

    def _forget(self) -> None:
        self.counts = {number: half for number, count in self.counts.items() if (half := count // 2)}
        self.samples = sum(self.counts.values())
        self.squares = sum(count * count for count in self.counts.values())
        self.beyond //= 2
