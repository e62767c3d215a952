"""How many invocations run or wait, and whether one more may.

AWS Lambda's rules: a function with reserved concurrency is capped at it and keeps it for itself; all others share what
the account has left.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from lambent.errors import ThrottledError

if TYPE_CHECKING:
    from lambent_scheduler.core.policies import KeepAlive
    from lambent_scheduler.core.version import VersionSpec
    from lambent_scheduler.core.version_state import VersionState

_UNKNOWN_START_S = 0.1
"""Taken for the time that a start takes before there has been one: an interpreter with a few imports."""
_START_WEIGHT = 0.3
"""Of the last start in the mean: a change shows after three."""

_GONE_REMEMBERED = 64
"""Of one function: more come back at once seldom."""


class Gone(NamedTuple):
    """An idle environment that is gone.

    Attributes:
        last_used: When its last call ended.
        expected: False once another one has waited in its place for nothing.
    """

    last_used: float
    expected: bool


class AccountState:
    """Invocations of one account.

    Attributes:
        in_flight: Running or waiting.
        unreserved: Those of functions without reserved concurrency.
    """

    __slots__ = ("in_flight", "unreserved")

    def __init__(self) -> None:
        self.in_flight = 0
        self.unreserved = 0


class FunctionState:
    """What one function has in flight and in memory.

    Attributes:
        reserved: Its reserved concurrency, as of the last call.
        in_flight: Calls running or waiting.
        waiting: Calls that wait.
        waiting_bytes: Their payloads.
        environments: Environments in any phase, planned ones included.
        held_mib: Memory of those.
        throttles, invocations, cold_starts: Since the scheduler knows the function.
        versions: Its versions with environments or waiting calls, by key.
        ticket: Place in the line for memory: the lower, the sooner.
        queued: Versions of it that stand in that line.
        deleted: True when the function exists no more and its counts go with its last environment.
        keep_alive: Decides how long its environments stay idle.
        learns: Whether that is told of calls, and so those below are kept.
        gone: Idle environments that are gone, the one used last at the end: calls come that they could have served.
        last_spec: The version whose environment became idle last; None when that is not wanted any more.
        start_s: What making an environment takes, in seconds.
    """

    __slots__ = (
        "account",
        "account_id",
        "cold_starts",
        "deleted",
        "environments",
        "function_name",
        "gone",
        "held_mib",
        "in_flight",
        "invocations",
        "invocations_before",
        "keep_alive",
        "last_spec",
        "learns",
        "partition",
        "queued",
        "reserved",
        "start_s",
        "throttles",
        "ticket",
        "versions",
        "waiting",
        "waiting_bytes",
    )

    def __init__(
        self, account_id: str, function_name: str, partition: int, account: AccountState, keep_alive: KeepAlive
    ) -> None:
        self.account_id = account_id
        self.function_name = function_name
        self.partition = partition
        self.account = account
        self.reserved: int | None = None
        self.in_flight = 0
        self.waiting = 0
        self.waiting_bytes = 0
        self.environments = 0
        self.held_mib = 0
        self.throttles = 0
        self.invocations = 0
        self.cold_starts = 0
        self.versions: dict[tuple[str, str, str, str], VersionState] = {}
        self.ticket = 0
        self.queued = 0
        self.deleted = False
        self.keep_alive = keep_alive
        self.learns = keep_alive.learns
        self.gone: deque[Gone] = deque(maxlen=_GONE_REMEMBERED)
        self.last_spec: VersionSpec | None = None
        self.start_s = _UNKNOWN_START_S
        self.invocations_before = 0  # its environments of now

    def frequency(self) -> int:
        """Give the number of its calls since it has had environments."""
        return self.invocations - self.invocations_before

    def started(self, start_s: float) -> None:
        """Making an environment of it has taken so long."""
        self.start_s += (start_s - self.start_s) * _START_WEIGHT

    def set_reserved(self, reserved: int | None) -> None:
        """Take a new reservation: what is in flight moves to the pool that it now belongs to."""
        if (reserved is None) != (self.reserved is None):
            self.account.unreserved += self.in_flight if reserved is None else -self.in_flight
        self.reserved = reserved

    def release(self) -> None:
        """Count one invocation less."""
        self.in_flight -= 1
        self.account.in_flight -= 1
        if self.reserved is None:
            self.account.unreserved -= 1


class FunctionCounts(NamedTuple):
    """Figures of one function, for metrics and for etcd. `throttles` and those after it count from the start."""

    account: str
    function_name: str
    partition: int
    in_flight: int
    waiting: int
    environments: int
    throttles: int
    invocations: int
    cold_starts: int


def counts_of(function: FunctionState) -> FunctionCounts:
    """Give the figures of a function."""
    return FunctionCounts(
        account=function.account_id,
        function_name=function.function_name,
        partition=function.partition,
        in_flight=function.in_flight,
        waiting=function.waiting,
        environments=function.environments,
        throttles=function.throttles,
        invocations=function.invocations,
        cold_starts=function.cold_starts,
    )


def throttle(function: FunctionState, account_concurrency: int, account_reserved: int) -> ThrottledError | None:
    """Give the refusal of one more invocation, or None when it may come in.

    Args:
        function: With its present reservation.
        account_concurrency: Most invocations of the account that run or wait at once.
        account_reserved: Sum of all reservations of the account.
    """
    account = function.account
    if function.reserved is not None:
        if function.in_flight >= function.reserved:
            return _throttled("ReservedFunctionConcurrentInvocationLimitExceeded")
    elif account.unreserved >= account_concurrency - account_reserved:
        return _throttled("ConcurrentInvocationLimitExceeded")
    # Only while a reservation is new can the parts exceed the whole.
    if account.in_flight >= account_concurrency:
        return _throttled("ConcurrentInvocationLimitExceeded")
    return None


def _throttled(reason: str) -> ThrottledError:
    return ThrottledError("Rate Exceeded.", details={"Reason": reason})
