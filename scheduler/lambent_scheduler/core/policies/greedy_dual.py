"""Greedy-dual eviction: what is dear to make anew, small and often called stays longest.

Fuerst and Sharma, "FaasCache: Keeping Serverless Computing Alive with Greedy-Dual Caching", ASPLOS 2021. The value of
an environment is `clock + frequency * cost / size`: calls of its function, seconds that a start of it takes, and MiB.
The clock is the value of what was evicted last, as of the environment's last use: so what nobody uses grows old.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lambent_scheduler.core.environments import Environment

_REMEMBERED: Final = 4096
"""Evictions whose clock is known. What was last used before them has the clock of the first of them: more than it had,
so that it is evicted a little later."""


class GreedyDual:
    """See Eviction."""

    __slots__ = ("_clocks", "_since")

    def __init__(self) -> None:
        self._since = [-math.inf]  # from when on a clock holds; ascending
        self._clocks = [0.0]

    def value(self, environment: Environment) -> float:
        """See Eviction."""
        function = environment.version.function
        clock = self._clocks[max(0, bisect_right(self._since, environment.last_used) - 1)]
        return clock + function.frequency() * function.start_s / environment.spec.memory_mib

    def evicted(self, environment: Environment, now: float) -> None:
        """See Eviction."""
        clock = max(self._clocks[-1], self.value(environment))
        if self._since[-1] == now:
            self._clocks[-1] = clock
            return
        self._since.append(now)
        self._clocks.append(clock)
        if len(self._since) > 2 * _REMEMBERED:
            del self._since[:_REMEMBERED], self._clocks[:_REMEMBERED]
