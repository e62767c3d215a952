"""Break-even: an environment is there whenever the starts that it saves are worth the memory that it idles in.

Our own. It knows what the hybrid histogram knows, each function's idle times by the minute, and asks of each minute
after an environment's last call: of those who are still away by then, how many come back within it? Staying through it
saves as many starts, and costs each of them a minute of idle memory. The stretch with the largest balance is kept: from
the beginning, or, where that is clearly better, from a later minute on, before which one is started ahead of the call.
Percentiles do not weigh the two against each other: they keep an environment for hours because one call in a hundred
comes so late.
"""

from __future__ import annotations

import math
from typing import Final

from lambent_scheduler.core.policies.idle_times import BIN_S, IdleTimes
from lambent_scheduler.core.policies.interfaces import LEAST_PREWARM_S, LINGER_S, Windows

_WORTH: Final = 4.0
"""What a start is worth, in multiples of the operator's keep-alive: forty minutes of idling for ten. Found by
simulation: it leaves as much memory idle as that fixed time does (docs/scaling.md)."""
_AHEAD: Final = 0.05
"""What a start ahead of a call costs, in starts that a call waits for: CPU, but nobody's time."""
_LEAST_SAMPLES: Final = 3
"""Fewer say nothing."""
_MARGIN_S: Final = BIN_S / 10
"""By which an expected stretch begins sooner and ends later: arrivals jitter."""


class BreakEvenKeepAlive:
    """See KeepAlive.

    Args:
        keep_alive_s: Holds until the idle times say something, and says what a start is worth.
    """

    __slots__ = ("_idle_times", "_stale", "_unknown", "_windows", "_worth_s")

    learns = True

    def __init__(self, keep_alive_s: float) -> None:
        self._idle_times = IdleTimes()
        self._worth_s = max(_WORTH * keep_alive_s, BIN_S)
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
        if times.samples + times.beyond < _LEAST_SAMPLES:
            return self._unknown
        balances = self._balances(times)
        stay = max(range(len(balances)), key=balances.__getitem__)
        first, last = _best_stretch(balances)
        ahead = _AHEAD * (times.samples + times.beyond)
        if first and balances[last] - balances[first] - ahead > balances[stay]:
            begin_s = max(LEAST_PREWARM_S, first * BIN_S - _MARGIN_S)
            return Windows(LINGER_S, begin_s, last * BIN_S + _MARGIN_S)
        until_s = max(LINGER_S, stay * BIN_S + _MARGIN_S)
        return Windows(until_s, math.inf, until_s)

    def _balances(self, times: IdleTimes) -> list[float]:
        """Give, for each number of minutes, what staying so long saves and costs in all, in starts."""
        minute = BIN_S / self._worth_s
        away, balances = times.samples + times.beyond, [0.0]
        for number in range(max(times.counts, default=-1) + 1):
            back = times.counts.get(number, 0)
            balances.append(balances[-1] + back - minute * (away - back / 2))
            away -= back
        return balances


def _best_stretch(balances: list[float]) -> tuple[int, int]:
    """Give the two places, the first before the last, between which the balance rises most; (0, 0) when it never does.

    Kadane's algorithm, on the sums.
    """
    lowest, best = 0, (0, 0)
    for place, balance in enumerate(balances):
        if balance < balances[lowest]:
            lowest = place
        elif balance - balances[lowest] > balances[best[1]] - balances[best[0]]:
            best = (lowest, place)
    return best
