"""Hybrid histogram: keep-alive and pre-warming by percentiles of a function's idle times.

Shahrad et al., "Serverless in the Wild", ATC 2020, section 4.2. Nearly all idle times of a function lie between two of
its percentiles: before the lower one nobody comes, so nothing need be kept; after the upper one nobody comes any more.
Where the histogram says nothing yet the operator's keep-alive holds; where most idle times are longer than it reaches,
the last of them say when the next call is due.
"""

from __future__ import annotations

import math
from typing import Final

from lambent_scheduler.core.policies.idle_times import BIN_S, BINS, LAST, IdleTimes
from lambent_scheduler.core.policies.interfaces import LINGER_S, Windows

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


class HistogramKeepAlive:
    """See KeepAlive.

    Args:
        keep_alive_s: Holds until the histogram says something.
    """

    __slots__ = ("_idle_times", "_stale", "_unknown", "_windows")

    learns = True

    def __init__(self, keep_alive_s: float) -> None:
        self._idle_times = IdleTimes()
        self._stale = False
        self._unknown = self._windows = Windows(keep_alive_s, math.inf, keep_alive_s)

    def wanted_again(self, idle_s: float) -> None:
        """See KeepAlive."""
        self._idle_times.add(idle_s)
        self._stale = True

    def windows(self) -> Windows:
        """See KeepAlive."""
        if self._stale:
            self._stale = False
            self._windows = self._renewed(self._idle_times)
        return self._windows

    def _renewed(self, times: IdleTimes) -> Windows:
        if times.beyond > _MOST_BEYOND * (times.samples + times.beyond) and len(times.last) == LAST:
            return self._by_last(min(times.last), max(times.last))
        if times.samples < _LEAST_SAMPLES or _variation(times) < _LEAST_VARIATION:
            return self._unknown
        head, tail = times.percentile(_HEAD), times.percentile(_TAIL) + 1
        until_s = tail * BIN_S * (1 + _MARGIN)
        if head == 0:
            return Windows(until_s, math.inf, until_s)
        return Windows(LINGER_S, head * BIN_S * (1 - _MARGIN), until_s)

    def _by_last(self, soonest_s: float, latest_s: float) -> Windows:
        """Expect the next call when the last ones have come, where they agree; else expect nothing."""
        if latest_s > 2 * soonest_s:
            return self._unknown
        return Windows(LINGER_S, soonest_s * (1 - _MARGIN), latest_s * (1 + _MARGIN))


def _variation(times: IdleTimes) -> float:
    mean = times.samples / BINS
    return math.sqrt(max(0.0, times.squares / BINS - mean * mean)) / mean
