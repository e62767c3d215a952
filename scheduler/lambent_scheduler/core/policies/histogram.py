"""Hybrid histogram: keep-alive and pre-warming by a histogram of each function's idle times.

Shahrad et al., "Serverless in the Wild", ATC 2020, section 4.2. Nearly all idle times of a function lie between two of
its percentiles: before the lower one nobody comes, so nothing need be kept; after the upper one nobody comes any more.
Where the histogram says nothing yet the operator's keep-alive holds; where most idle times are longer than it reaches,
the last of them say when the next call is due.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from lambent_scheduler.core.policies.interfaces import Windows

BIN_S: Final = 60.0
"""As in the paper: minutes."""
BINS: Final = 240
"""Four hours, as in the paper."""
_HEAD, _TAIL = 0.05, 0.99
"""Percentiles of the paper: the cut-offs of the pre-warming and the keep-alive window."""
_MARGIN: Final = 0.10
"""Of the paper: both windows are widened by so much."""
_LEAST_SAMPLES: Final = 10
"""Fewer say nothing."""
_LEAST_VARIATION: Final = 2.0
"""Of the paper: a histogram whose bins' counts vary less (standard deviation by mean) has no peak to go by."""
_MOST_BEYOND: Final = 0.5
"""Of idle times beyond the histogram: when there are more, the last of them are gone by instead."""
_LAST: Final = 8
_FORGET_AT: Final = 4096
"""Samples at which all counts are halved: what a function does now counts more than what it did."""
LINGER_S: Final = 10.0
"""What is not needed before the next call is due stays for so long, since calls seldom come quite alone."""


class HistogramKeepAlive:
    """See KeepAlive.

    Args:
        keep_alive_s: Holds until the histogram says something.
    """

    __slots__ = ("_beyond", "_counts", "_keep_alive_s", "_last", "_samples", "_squares", "_stale", "_windows")

    learns = True

    def __init__(self, keep_alive_s: float) -> None:
        self._keep_alive_s = keep_alive_s
        self._counts: dict[int, int] = {}  # most functions have a few bins in use
        self._squares = 0  # sum of the counts' squares
        self._samples = 0  # in bins
        self._beyond = 0
        self._last: deque[float] = deque(maxlen=_LAST)  # of those beyond
        self._stale = False
        self._windows = Windows(keep_alive_s, math.inf, keep_alive_s)

    def called(self, quiet_s: float) -> None:
        """See KeepAlive."""
        self._stale = True
        number = int(quiet_s / BIN_S)
        if number >= BINS:
            self._beyond += 1
            self._last.append(quiet_s)
            return
        count = self._counts.get(number, 0)
        self._counts[number] = count + 1
        self._squares += 2 * count + 1
        self._samples += 1
        if self._samples >= _FORGET_AT:
            self._forget()

    def windows(self) -> Windows:
        """See KeepAlive."""
        if self._stale:
            self._stale = False
            self._windows = self._renewed()
        return self._windows

    def _renewed(self) -> Windows:
        if self._beyond > _MOST_BEYOND * (self._samples + self._beyond) and len(self._last) == _LAST:
            return self._by_last()
        if self._samples < _LEAST_SAMPLES or self._variation() < _LEAST_VARIATION:
            return Windows(self._keep_alive_s, math.inf, self._keep_alive_s)
        head, tail = self._percentile(_HEAD), self._percentile(_TAIL) + 1
        until_s = tail * BIN_S * (1 + _MARGIN)
        if head == 0:
            return Windows(until_s, math.inf, until_s)
        return Windows(LINGER_S, head * BIN_S * (1 - _MARGIN), until_s)

    def _by_last(self) -> Windows:
        """Expect the next call when the last ones have come, where they agree; else expect nothing."""
        soonest, latest = min(self._last), max(self._last)
        if latest > 2 * soonest:
            return Windows(self._keep_alive_s, math.inf, self._keep_alive_s)
        return Windows(LINGER_S, soonest * (1 - _MARGIN), latest * (1 + _MARGIN))

    def _variation(self) -> float:
        mean = self._samples / BINS
        return math.sqrt(max(0.0, self._squares / BINS - mean * mean)) / mean

    def _percentile(self, share: float) -> int:
        """Give the first bin at which so great a share of the samples is reached."""
        wanted, reached = share * self._samples, 0
        for number in sorted(self._counts):
            reached += self._counts[number]
            if reached >= wanted:
                return number
        raise AssertionError("there are samples")

    def _forget(self) -> None:
        self._counts = {number: half for number, count in self._counts.items() if (half := count // 2)}
        self._samples = sum(self._counts.values())
        self._squares = sum(count * count for count in self._counts.values())
        self._beyond //= 2
