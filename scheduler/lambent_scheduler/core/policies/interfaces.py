"""What a policy is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection

    from lambent_scheduler.core.environments import Environment
    from lambent_scheduler.core.nodes import NodeState
    from lambent_scheduler.core.placement import PlacementRequest

LEAST_PREWARM_S: Final = 30.0
"""A call that is expected sooner is better waited for by the environment that there is."""

LINGER_S: Final = 10.0
"""What is not needed before the next call is due stays for so long, since calls seldom come quite alone."""


class Windows(NamedTuple):
    """When an environment of a function is to be there, in seconds since its last call ended.

    Attributes:
        stay_s: Until then it stays idle.
        prewarm_s: Then another one is started in its place, ahead of the call that is expected; at least
            `LEAST_PREWARM_S`, infinity when none is.
        expect_s: Until then that one waits for the call.
    """

    stay_s: float
    prewarm_s: float
    expect_s: float


class KeepAlive(Protocol):
    """Decides for one function how long its environments stay idle. No clock: durations are arguments.

    Attributes:
        learns: Whether it wants to be told of calls.
    """

    learns: bool

    def wanted_again(self, idle_s: float) -> None:
        """A call has come for an environment that had been idle for so long, or would have been had it stayed.

        Of constant cost: every warm call tells so.
        """

    def windows(self) -> Windows:
        """Give what is best now; asked seldom."""


class Eviction(Protocol):
    """Decides which idle environment makes room for another one: the one with the lowest value."""

    def value(self, environment: Environment) -> float:
        """Give what an idle or prepared environment is worth.

        Should it fall while the environment is idle, the former value counts until its turn has come by that.
        """

    def evicted(self, environment: Environment, now: float) -> None:
        """It had the lowest value, and has to make room."""


Rank: TypeAlias = tuple[bool, bool, bool, float, int]
"""A place in an order of preference; the smallest is best."""


class PlacementPolicy(Protocol):
    """Decides which of the nodes that can take a new environment gets it.

    Attributes:
        holders: How many random ones of those that have the code are looked at beside the sample.
    """

    holders: int

    def sample(self, by_memory: int, by_cpu: int, excluded: int, draw: int) -> Collection[int]:
        """Give which nodes to look at: positions in two lists that follow one another.

        Args:
            by_memory: Length of the first list: nodes that are bound by memory, the one with least room first.
            by_cpu: Length of the second list: nodes that are bound by CPU, in the same order.
            excluded: So many nodes may be struck out afterwards; look at as many more, so that one remains.
            draw: 64 random bits.
        """

    def rank(self, node: NodeState, request: PlacementRequest) -> Rank:
        """Give the place of a node in the order of preference."""
