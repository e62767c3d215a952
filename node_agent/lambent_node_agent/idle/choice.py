"""Which idle environments are frozen, and which give memory back first; pure."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from lambent_node_agent.environment.model import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lambent_node_agent.environment.model import Environment

# AWS stops a function between any two invocations. Here those that follow each other within a second do not pay for it.
FREEZE_AFTER_S: Final = 1.0
# One takes 0.1 ms. A thaw is not before what has been asked for before it, so it waits 2 ms for these at most.
MOST_AT_ONCE: Final = 16
# Below this share of its memory a node is short of it: what is left is a reserve of the kernel and the daemons.
_SHORT_SHARE: Final = 0.1


def to_freeze(environments: Iterable[tuple[str, Environment]], now: float) -> list[str]:
    """Give the ids of those that have been idle long enough, longest first, at most `MOST_AT_ONCE`."""
    since = now - FREEZE_AFTER_S
    due = (
        (environment.idle_since, environment_id)
        for environment_id, environment in environments
        if environment.phase is Phase.IDLE and environment.idle_since <= since
    )
    return [environment_id for _, environment_id in heapq.nsmallest(MOST_AT_ONCE, due)]


def to_reclaim_from(environments: Iterable[tuple[str, Environment]], exhausted: Mapping[str, float]) -> list[str]:
    """Give the ids of the frozen ones that may have something to give, longest idle first.

    Args:
        environments: All of the node.
        exhausted: Since when those were idle that had nothing more to give: until they are used they have no more.
    """
    due = (
        (environment.idle_since, environment_id)
        for environment_id, environment in environments
        if environment.phase is Phase.FROZEN and exhausted.get(environment_id) != environment.idle_since
    )
    return [environment_id for _, environment_id in sorted(due)]


def is_short(available_bytes: int, total_bytes: int) -> bool:
    """Tell whether a node with so much memory left should give some back."""
    return available_bytes < total_bytes * _SHORT_SHARE
