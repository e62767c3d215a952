"""What a policy is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from lambent_scheduler.core.environments import Environment

LEAST_PREWARM_S: Final = 30.0
"""A call that is expected sooner is better waited for by the environment that there is."""


class Windows(NamedTuple):
    """How long environments of a function stay idle, in seconds.

    Attributes:
        stay_s: From the end of an environment's last call to its own end.
        prewarm_s: From the end of the function's last call to the start of an environment for the next one, if there is
            none; at least `LEAST_PREWARM_S`, infinity when none is started ahead of calls.
        expect_s: From the end of the function's last call to the end of an environment that has been started ahead and
            that no call has come for.
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

    def called(self, quiet_s: float) -> None:
        """A call has come after none has run or waited for so long; asked of every such call, so of constant cost."""

    def windows(self) -> Windows:
        """Give what is best now; asked seldom."""


class Eviction(Protocol):
    """Decides which idle environment makes room for another one: the one with the lowest value."""

    def value(self, environment: Environment) -> float:
        """Give what an idle or prepared environment is worth. While it is idle that does not fall."""

    def evicted(self, environment: Environment, now: float) -> None:
        """It had the lowest value, and has to make room."""
