"""The calls that a dispatcher has admitted: who waits, who runs, and what each beginning and end does to the counts."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from lambent.errors import NoCapacityError
from lambent_scheduler.core import policies
from lambent_scheduler.core.actions import Fail
from lambent_scheduler.core.concurrency import counts_of, throttle
from lambent_scheduler.core.environments import Phase
from lambent_scheduler.core.fleet import Fleet
from lambent_scheduler.core.lifetimes import Lifetimes
from lambent_scheduler.core.placement import NodeTable
from lambent_scheduler.core.reasons import expired, impossible
from lambent_scheduler.core.scaling import Scaler
from lambent_scheduler.core.waiting import WaitingRoom

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lambent.errors import ServiceError
    from lambent_scheduler.core.actions import Action
    from lambent_scheduler.core.call import Call
    from lambent_scheduler.core.concurrency import FunctionCounts, FunctionState
    from lambent_scheduler.core.environments import Environment
    from lambent_scheduler.core.limits import Limits
    from lambent_scheduler.core.version_state import VersionState


class CallBook:
    """Keeps the books of calls. `Dispatcher` is one, and decides.

    Args:
        limits: The bounds to keep.
        seed: Makes ids and samples.

    Attributes:
        actions: What the shell has to do.
        invocations: Calls admitted since the start, throttled and refused ones not counted.
        throttles: Calls refused by a concurrency limit.
        refusals: Calls refused for want of capacity, when they came or after they had waited.
        cold_starts: Calls that were the first of their environment.
        in_flight: Calls that run or wait.
    """

    def __init__(self, limits: Limits, seed: int) -> None:
        self.actions: list[Action] = []
        self.invocations = 0
        self.throttles = 0
        self.refusals = 0
        self.cold_starts = 0
        self.in_flight = 0
        self._limits = limits
        self._account_concurrency = limits.account_concurrency
        eviction = policies.eviction(limits.eviction)()
        self._nodes = NodeTable(
            limits.cpu_overcommit, limits.disk_overcommit, eviction, policies.placement(limits.placement)()
        )
        self._fleet = Fleet(self._nodes, limits, seed)
        self._waiting = WaitingRoom(limits)
        self._scaler = Scaler(self._fleet, limits, self.actions, eviction)
        self._preparation = self._scaler.preparation
        self._lifetimes = Lifetimes(self._fleet, self.actions, self._scaler.line)

    @property
    def waiting_calls(self) -> int:
        """Calls that wait for an environment."""
        return self._waiting.calls

    @property
    def waiting_bytes(self) -> int:
        """Payload bytes of the calls that wait."""
        return self._waiting.payload_bytes

    def function_counts(self) -> Iterator[FunctionCounts]:
        """Give the figures of each function seen by now, each as it is when it is asked for."""
        return map(counts_of, tuple(self._fleet.functions.values()))

    # Beginnings.

    def _refuse_throttled(self, version: VersionState, account_reserved: int) -> None:
        function = version.function
        error = throttle(function, self._account_concurrency, account_reserved)
        assert error is not None
        self.throttles += 1
        function.throttles += 1
        self._fleet.forget_unused(version)
        raise error

    def _admit_waiting(self, call: Call, version: VersionState) -> None:
        function = version.function
        error = self._waiting.refusal(call, function) or impossible(self._nodes, version)
        if error is not None:
            self.refusals += 1
            self._fleet.forget_unused(version)
            raise error
        if function.gone:
            self._lifetimes.missed(function)
        function.in_flight += 1
        function.account.in_flight += 1
        if function.reserved is None:
            function.account.unreserved += 1
        self.in_flight += 1
        self.invocations += 1
        function.invocations += 1
        self._waiting.add(call, version)
        if version.spec.snap_start:
            self._preparation.missed(version)
        self._scaler.demand_changed(version)

    def _bind_oldest(self, environment: Environment) -> Call:
        version = environment.version
        call = self._waiting.take(version)
        environment.phase = Phase.BUSY
        environment.call = call
        environment.in_place_of = None
        call.environment = environment
        environment.served += 1
        if environment.served == 1:
            self._first_call(environment)
        self._scaler.demand_changed(version)
        return call

    def _first_call(self, environment: Environment) -> None:
        self.cold_starts += 1
        environment.version.function.cold_starts += 1
        # Without a call it would have stayed until one had been expected, which may be later than what holds now.
        self._fleet.idle.discard(environment)

    # Ends.

    def _end(self, call: Call, function: FunctionState) -> None:
        call.environment = None
        self.in_flight -= 1
        function.release()

    def _end_waiting(self, call: Call, version: VersionState) -> None:
        self._waiting.remove(call, version)
        self._end(call, version.function)
        self._scaler.demand_changed(version)
        self._fleet.forget_unused(version)

    def _expire_waiting(self, now: float) -> None:
        for call in self._waiting.expired(now):
            version = self._fleet.versions[call.spec.key]
            if now < call.deadline and _is_started_for(call, version):
                self._waiting.hold(call, now)
                continue
            error = expired(self._nodes, call, version, now)
            if isinstance(error, NoCapacityError):
                self.refusals += 1
            self.actions.append(Fail(call, error))
            self._end_waiting(call, version)

    def _fail_waiting(self, version: VersionState, error: ServiceError) -> None:
        while version.waiting:
            call = self._waiting.take(version)
            self._end(call, version.function)
            self.actions.append(Fail(call, error))

    def _fail_running(self, environment: Environment, error: ServiceError) -> None:
        call = environment.call
        assert call is not None
        environment.call = None
        error.dispatched = True
        self._end(call, environment.version.function)
        self.actions.append(Fail(call, error))

    def _charge(self, version: VersionState, error: ServiceError) -> None:
        """A start failed: somebody must bear it, or a version that cannot start would be started for ever."""
        if not version.waiting:
            if version.prepared_target:
                # What keeps the nodes from it may pass, and says nothing of the version's code.
                self._preparation.failed(version, NoCapacityError(f"no environment could be made: {error.message}"))
            return
        call = next(iter(version.waiting))
        call.failed_starts += 1
        if call.failed_starts >= self._limits.start_attempts:
            self._waiting.remove(call, version)
            self._end(call, version.function)
            self.actions.append(Fail(call, error))


def _is_started_for(call: Call, version: VersionState) -> bool:
    """Tell whether a waiting call will have one of the environments that nodes are making, and not only promised.

    It has found its capacity, and an init may take longer than anybody should wait for that.
    """
    return call in islice(version.waiting, version.starting - len(version.planned))
