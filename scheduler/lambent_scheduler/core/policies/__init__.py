"""Policies of the scaler, each a pure class behind one small interface: see docs/scaling.md.

One module for each; a new one has its place in the table of its kind here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lambent.errors import InvalidParameterError
from lambent_scheduler.core.policies.break_even import BreakEvenKeepAlive
from lambent_scheduler.core.policies.fixed import FixedKeepAlive
from lambent_scheduler.core.policies.greedy_dual import GreedyDual
from lambent_scheduler.core.policies.histogram import HistogramKeepAlive
from lambent_scheduler.core.policies.interfaces import LEAST_PREWARM_S, Eviction, KeepAlive, PlacementPolicy, Windows
from lambent_scheduler.core.policies.least_recently_used import LeastRecentlyUsed
from lambent_scheduler.core.policies.placements import CodeFirst, LeastLoaded, PackThenSpread, TightPacking, TwoChoices

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    T = TypeVar("T")

__all__ = [
    "EVICTION",
    "KEEP_ALIVE",
    "LEAST_PREWARM_S",
    "LEAST_RECENTLY_USED",
    "PACK_THEN_SPREAD",
    "PLACEMENT",
    "Eviction",
    "KeepAlive",
    "PlacementPolicy",
    "Windows",
    "eviction",
    "keep_alive",
    "placement",
]

KEEP_ALIVE: Final[Mapping[str, Callable[[float], KeepAlive]]] = {
    "fixed": FixedKeepAlive,
    "histogram": HistogramKeepAlive,
    "break-even": BreakEvenKeepAlive,
}
"""Keep-alive policies by name; each is made for one function, with the operator's keep-alive in seconds."""

LEAST_RECENTLY_USED: Final = LeastRecentlyUsed()
PACK_THEN_SPREAD: Final = PackThenSpread()

EVICTION: Final[Mapping[str, Callable[[], Eviction]]] = {
    "least-recently-used": LeastRecentlyUsed,
    "greedy-dual": GreedyDual,
}
"""Eviction policies by name; each is made for one scheduler."""

PLACEMENT: Final[Mapping[str, Callable[[], PlacementPolicy]]] = {
    "pack-then-spread": PackThenSpread,
    "tight": TightPacking,
    "least-loaded": LeastLoaded,
    "two-choices": TwoChoices,
    "code-first": CodeFirst,
}
"""Placement policies by name; each is made for one scheduler."""


def keep_alive(name: str) -> Callable[[float], KeepAlive]:
    """Give the keep-alive policy of this name.

    Raises:
        InvalidParameterError: There is none.
    """
    return _chosen("keep-alive", KEEP_ALIVE, name)


def eviction(name: str) -> Callable[[], Eviction]:
    """Give the eviction policy of this name.

    Raises:
        InvalidParameterError: There is none.
    """
    return _chosen("eviction", EVICTION, name)


def placement(name: str) -> Callable[[], PlacementPolicy]:
    """Give the placement policy of this name.

    Raises:
        InvalidParameterError: There is none.
    """
    return _chosen("placement", PLACEMENT, name)


def _chosen(kind: str, policies: Mapping[str, T], name: str) -> T:
    try:
        return policies[name]
    except KeyError:
        raise InvalidParameterError(f"there is no {kind} policy {name!r}; there are {', '.join(policies)}") from None
