"""How many blank sandboxes a pool is to hold: what the last starts say of the next ones.

Pure: no clock and no I/O; times are arguments, in seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

WINDOW_S = 1.0
"""Starts that are no further apart draw on the same pool: it is not filled again in between on a busy machine."""
MADE_IN_A_WINDOW = 20
"""Where sandboxes take long to make, the window is as long as these many take."""
MAX_WINDOW_S = 10.0
"""A machine that is slower than that is out of order, and not in need of a larger pool."""
HALF_LIFE_S = 30.0
"""What was asked for comes again within a minute, or is not worth its memory: a pool of 50 is one of 12 by then."""

BLANK_MIB = 4
"""Memory that a blank sandbox takes, by its proportional set size, rounded up."""
MEMORY_SHARE = 0.05
"""Of a node's memory for functions that each runtime's pool may take, over and above what the operator wants kept."""
MAX_SIZE = 100
"""However much memory there is: the starts of a second, on two cores as on many, and no more."""

_FORGOTTEN = 0.05  # what is left of a start after three windows is no start any more


@dataclass(frozen=True, slots=True)
class Demand:
    """Starts of one runtime, summed up.

    Attributes:
        recent: Starts, of which each has been forgotten in the measure of its age: by the factor `e` a window.
        burst: Highest `recent`, halved every `HALF_LIFE_S`.
        at: Time of the last start.
    """

    recent: float = 0.0
    burst: float = 0.0
    at: float = 0.0

    def started(self, now: float, making_s: float) -> Demand:
        """Count a start.

        Args:
            now: Its time; not before the last one's.
            making_s: What making one sandbox takes at present.
        """
        window_s = min(max(WINDOW_S, MADE_IN_A_WINDOW * making_s), MAX_WINDOW_S)
        recent = self.recent * math.exp(-(now - self.at) / window_s) + 1
        return replace(self, recent=recent, burst=max(recent, self._burst(now)), at=now)

    def size(self, now: float, bounds: Bounds) -> int:
        """Return how many blank sandboxes are to be ready."""
        return min(max(bounds.least, math.ceil(self._burst(now) - _FORGOTTEN)), bounds.most)

    def _burst(self, now: float) -> float:
        return self.burst * 2 ** (-(now - self.at) / HALF_LIFE_S)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Least and most blank sandboxes of a pool."""

    least: int
    most: int

    @classmethod
    def of(cls, least: int, memory_mib: int) -> Bounds:
        """Return the bounds of a pool on a node with so much memory for functions."""
        return cls(least, max(least, min(MAX_SIZE, int(memory_mib * MEMORY_SHARE / BLANK_MIB))))
