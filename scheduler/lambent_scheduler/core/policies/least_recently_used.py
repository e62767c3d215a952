"""Eviction of what has not been used for longest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambent_scheduler.core.environments import Environment


class LeastRecentlyUsed:
    """See Eviction."""

    __slots__ = ()

    def value(self, environment: Environment) -> float:
        """See Eviction."""
        return environment.last_used

    def evicted(self, environment: Environment, now: float) -> None:
        """See Eviction."""
