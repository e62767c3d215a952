"""The one place that decides which call runs where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent.errors import ServiceError, UnavailableError
from lambent_scheduler.core.actions import Bind, Start
from lambent_scheduler.core.call_book import CallBook
from lambent_scheduler.core.environments import Phase
from lambent_scheduler.core.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lambent_scheduler.core.actions import Action
    from lambent_scheduler.core.call import Call
    from lambent_scheduler.core.environments import Environment
    from lambent_scheduler.core.limits import Limits
    from lambent_scheduler.core.nodes import NodeState
    from lambent_scheduler.core.placement import NodeTable
    from lambent_scheduler.core.version import VersionKey, VersionSpec
    from lambent_scheduler.core.version_state import VersionState

# Looked up on every invocation; an attribute of the enum costs three times as much.
_IDLE = Phase.IDLE
_BUSY = Phase.BUSY


class Dispatcher(CallBook):
    """Admits calls, places environments, and brings both together.

    Pure: no clock, no I/O; one writer. Every method may append to `actions`; the shell carries them out in order, after
    `take_actions`. `now` is a monotonic clock in seconds, the same for all methods, and never goes back.

    Every call that was admitted has exactly one end: `finished` of its environment, an action Fail, or `cancel`.

    Args:
        limits: The bounds to keep.
        seed: Makes ids and samples. Ids are unique only as far as seeds are: give 128 random bits.

    Its counts are attributes: see `CallBook`.
    """

    def __init__(self, limits: Limits, seed: int) -> None:
        super().__init__(limits, seed)
        self._versions = self._fleet.versions
        self._idle_members = self._fleet.idle.members
        self._refusals = Refusals(limits.refusal_backoff_s)

    def take_actions(self) -> list[Action]:
        """Give the actions so far, and forget them."""
        taken = self.actions[:]
        self.actions.clear()
        return taken

    # Calls.

    def admit(
        self,
        call: Call,
        reserved: int | None,
        account_reserved: int,
        now: float,
    ) -> Environment | None:
        """Admit a call.

        Args:
            call: New.
            reserved: Reserved concurrency of its function; None when it has none.
            account_reserved: Sum of the reserved concurrency of the account's functions.
            now: See the class.

        Returns:
            The idle environment that was used last, now BUSY with the call; or None: the call waits for Bind or Fail.

        Raises:
            ThrottledError: A concurrency limit is reached. `details["Reason"]` is AWS's.
            NoCapacityError: No node could ever hold it, or too many calls wait. A call that raised is not admitted.
        """
        self._fleet.now = now
        version = self._versions.get(call.spec.key)
        if version is None:
            version = self._fleet.version(call.spec)
        function = version.function
        if reserved != function.reserved:
            function.set_reserved(reserved)
        account = function.account
        if (
            account.in_flight >= self._account_concurrency
            or (reserved is None and account.unreserved >= self._account_concurrency - account_reserved)
            or (reserved is not None and function.in_flight >= reserved)
        ):
            self._refuse_throttled(version, account_reserved)
        if version.idle:
            # The same as Fleet.take_free, written out: this is the path of most calls.
            environment, _ = version.idle.popitem()
            node = environment.node
            node.idle.subtract(environment.spec)
            if not node.reclaim_dirty:
                self._nodes.reclaim_changed(node)
        elif version.prepared:
            environment = self._fleet.take_free(version)
        else:
            self._admit_waiting(call, version)
            return None
        if function.learns:
            self._lifetimes.used_again(environment)
        function.in_flight += 1
        account.in_flight += 1
        if reserved is None:
            account.unreserved += 1
        self.in_flight += 1
        self.invocations += 1
        function.invocations += 1
        environment.phase = _BUSY
        environment.call = call
        call.environment = environment
        environment.served += 1
        if environment.served == 1:
            self._first_call(environment)
            self._preparation.look_at(version)
        return environment

    def finished(self, environment: Environment, now: float) -> Call | None:
        """The call of a BUSY environment has ended, in whatever way; its concurrency is free again.

        Returns:
            The call that the environment serves next, if one waits: send it, no Bind follows. None when the environment
            is idle or stops, or served nothing (it was stopped or lost before).
        """
        self._fleet.now = now
        if environment.phase is not _BUSY:
            return None
        call = environment.call
        version = environment.version
        node = environment.node
        if call is not None:
            self._end(call, version.function)
            environment.call = None
        environment.last_used = now
        if version.retired or environment.spent or node.draining or node.planned or now >= self._scaler.look_at:
            return self._finished_with_others_waiting(environment, now)
        if version.waiting:
            return self._bind_oldest(environment)
        # The same as Fleet.set_idle, written out: this is the path of most calls.
        environment.phase = _IDLE
        version.idle[environment] = None
        node.idle.add(environment.spec)
        if not node.reclaim_dirty:
            self._nodes.reclaim_changed(node)
        if environment not in self._idle_members:
            self._fleet.idle.add(environment)
        if environment not in node.idle_order.members:
            node.idle_order.add(environment)
        if self._scaler.line:
            self._scaler.room_changed()
        return None

    def returned(self, environment: Environment, now: float) -> bool:
        """A BUSY environment would not take the call that it was bound to: it is ending, and its node says so later.

        The environment is ordered to stop, and the call is served next of all that wait for its version.

        Returns:
            True when the call goes on. False when it has come back `Limits.start_attempts` times: it has ended here,
            and no action follows for it; or when the environment serves nothing.
        """
        self._fleet.now = now
        call = environment.call
        if environment.phase is not _BUSY or call is None:
            return False
        version = environment.version
        environment.call = call.environment = None
        self._scaler.stop(environment, "exited")
        call.failed_starts += 1
        goes_on = call.failed_starts < self._limits.start_attempts
        if not goes_on:
            self._end(call, version.function)
        else:
            self._waiting.add_first(call, version)
            if version.has_free:
                other = self._fleet.take_free(version)
                self.actions.append(Bind(self._bind_oldest(other), other))
        self._share_room(version)
        return goes_on

    def close(self, error: ServiceError) -> None:
        """End every call that waits; those that run go on."""
        for version in [version for version in self._versions.values() if version.waiting]:
            self._fail_waiting(version, error)
            self._scaler.demand_changed(version)
            self._fleet.forget_unused(version)

    def cancel(self, call: Call, now: float) -> bool:
        """Take a call out of the queue.

        Returns:
            True when it waited: it has ended, and no action follows for it. False when it runs, or has ended before.
        """
        self._fleet.now = now
        if not call.waiting:
            return False
        version = self._versions[call.spec.key]
        self._end_waiting(call, version)
        return True

    # Environments.

    def ready(self, environment_id: str, now: float, init_error: ServiceError | None = None) -> None:
        """An environment can serve: the call that has waited longest gets it (Bind), or it is idle or prepared.

        Args:
            environment_id: Which one.
            now: See the class.
            init_error: Why its init failed, which is then tried again in its first call. Nothing is prepared by that.
        """
        self._fleet.now = now
        environment = self._fleet.environments.get(environment_id)
        if environment is None:
            return
        if environment.phase is Phase.STARTING:
            self._fleet.set_ready(environment, now)
            version = environment.version
            if environment.start is not None:
                version.function.started(now - environment.start.ordered_at)
            if init_error is not None and version.spec.snap_start and not version.waiting:
                self._preparation.failed(version, init_error)
                self._scaler.stop(environment, "failed")
                self._share_room(version)
                return
            self._serve_or_rest(environment, now)
        elif environment.phase is _BUSY and environment.call is None:
            # Adopted while it served somebody else's call.
            self._serve_or_rest(environment, now)

    def spent(self, environment_id: str, now: float) -> None:
        """An environment has served as long as its node wants: it stops, after its call where it serves one."""
        self._fleet.now = now
        environment = self._fleet.environments.get(environment_id)
        if environment is None:
            return
        environment.spent = True
        if environment.phase in (_IDLE, Phase.PREPARED):
            self._scaler.stop(environment, "recycled")

    def stopped(self, environment_id: str, *, refused: bool, error: ServiceError | None, now: float) -> None:
        """An environment is gone; its memory is free again. Nothing happens when it is not known.

        Args:
            environment_id: Which one.
            refused: True when the node would not make it, so that another node is tried.
            error: Why it ended, unless its end was ordered. The call that it served fails with it, marked as
                dispatched. When it was still starting, the call that has waited longest is charged with the failure,
                and fails with it after `Limits.start_attempts` of them.
            now: See the class.
        """
        self._fleet.now = now
        environment = self._fleet.environments.get(environment_id)
        if environment is None or environment.phase is Phase.PLANNED:
            return
        version, node = environment.version, environment.node
        was_starting = environment.phase is Phase.STARTING
        self._fleet.remove(environment)
        if environment.call is not None:
            self._fail_running(environment, error or UnavailableError(f"environment {environment_id} is gone"))
        before = len(self.actions)
        if was_starting and refused:
            self._refusals.add(version, node.node_id, now)
        elif was_starting:
            node.failures += 1
            self._charge(version, error or UnavailableError(f"environment {environment_id} ended before it was ready"))
        self._scaler.node_settled(node)
        self._share_room(version)
        if was_starting and refused:
            self._go_on(environment, before)
        self._fleet.forget_unused(version)

    def retire_function(
        self,
        account: str,
        function_name: str,
        keep: Collection[VersionKey],
        reason: str,
        now: float,
        *,
        error: ServiceError | None = None,
    ) -> None:
        """Stop the environments of versions that were replaced or deleted; busy ones after their call.

        Args:
            account: Owner of the function.
            function_name: The function.
            keep: Versions that go on. When empty, the function's counts go with its last environment.
            reason: "superseded" or "deleted".
            now: See the class.
            error: Ends the calls that wait for those versions. Without it they still run, on the version they came for.
        """
        self._fleet.now = now
        function = self._fleet.functions.get((account, function_name))
        if function is None:
            return
        function.deleted = not keep
        for key, version in list(function.versions.items()):
            if key not in keep:
                self._retire(version, reason, error)
        if self._scaler.line:
            self._scaler.room_changed()  # what was still starting could not be evicted, and what stops will be gone
        if function.last_spec is not None and function.last_spec.key not in keep:
            function.last_spec = None
        self._fleet.forget_deleted(function)

    def keep_prepared(
        self,
        account: str,
        function_name: str,
        specs: Collection[VersionSpec],
        now: float,
    ) -> None:
        """Keep at least one environment prepared of each of these versions of a function, and of no other.

        Prepared follows for each version that was not kept before.
        """
        self._fleet.now = now
        self._preparation.keep(self._fleet.functions.get((account, function_name)), specs)

    def reservation_changed(self, account: str, function_name: str, reserved: int | None) -> None:
        """Take a new reservation before the function's next call does: its calls in flight change pools now."""
        function = self._fleet.functions.get((account, function_name))
        if function is not None:
            function.set_reserved(reserved)

    # Nodes.

    def node_joined(
        self,
        node_id: str,
        capacity: Mapping[str, int],
        labels: Mapping[str, str],
        runtimes: Collection[str],
        now: float,
        *,
        draining: bool = False,
        held: Sequence[tuple[Environment, bool]] = (),
        reserved: Mapping[str, int] | None = None,
    ) -> None:
        """A node takes orders from now on. For a known node: it is described anew, and its environments stay.

        Args:
            node_id: Unique in the cluster.
            capacity: "memory_mib", "cpu_millis", "disk_mib", as in NodeRecord. What is not stated is not bounded;
                memory must be.
            labels: The operator's.
            runtimes: For example "python3.11".
            now: See the class.
            draining: True when it takes no new environments.
            held: Environments that it has from an earlier scheduler, new here, with the ids that the node says, and
                `served` above 0 unless they are prepared; and whether each serves a call of nobody here, of which
                `ready` tells the end.
            reserved: NodeStatus.reserved. None: what `held` reserves, or as before.
        """
        self._fleet.now = now
        node = self._nodes.join(node_id, capacity, labels, runtimes, draining=draining)
        if draining:
            self._empty(node)
        # All have their memory before anybody who waits is given what is left.
        held = [pair for pair in held if pair[0].environment_id not in self._fleet.environments]
        for environment, _ in held:
            self._fleet.adopt(environment, node, now)
        if reserved is not None:
            self._nodes.set_foreign(node, reserved)
        for environment, is_busy in held:
            if not is_busy:
                self._serve_or_rest(environment, now)
        self._scaler.node_settled(node)
        self._scaler.room_changed()

    def node_changed(
        self,
        node_id: str,
        now: float,
        *,
        draining: bool | None = None,
        reserved: Mapping[str, int] | None = None,
    ) -> None:
        """A node says how it is. Nothing happens when it is not known.

        Args:
            node_id: Which one.
            now: See the class.
            draining: True closes the node: idle environments stop now, busy ones after their call. None: as before.
            reserved: NodeStatus.reserved; what exceeds our own reservations belongs to other schedulers. None: as
                before.
        """
        self._fleet.now = now
        node = self._nodes.get(node_id)
        if node is None:
            return
        if reserved is not None:
            self._nodes.set_foreign(node, reserved)
        if draining is not None and draining != node.draining:
            self._nodes.set_draining(node, draining)
            if draining:
                self._empty(node)
        self._scaler.node_settled(node)
        self._scaler.room_changed()

    def node_lost(self, node_id: str, error: ServiceError, now: float) -> None:
        """A node is gone with all its environments; their calls fail with `error`, marked as dispatched.

        Nothing happens when the node is not known.
        """
        self._fleet.now = now
        node = self._nodes.leave(node_id)
        if node is None:
            return
        versions: dict[VersionState, None] = {}
        for environment in list(node.environments.values()):
            self._fleet.remove(environment)
            versions[environment.version] = None
            if environment.call is not None:
                self._fail_running(environment, error)
        for version in versions:
            self._scaler.demand_changed(version)
            self._fleet.forget_unused(version)

    # Time.

    def tick(self, now: float) -> None:
        """Time has passed: end what has waited or idled long enough. To be called at `next_deadline` or soon after."""
        self._fleet.now = now
        self._expire_waiting(now)
        self._lifetimes.tick(now)
        self._preparation.tick(now)
        if self._refusals.forget_past(now):
            self._scaler.room_changed()

    def next_deadline(self) -> float | None:
        """Give the time at which `tick` has something to do, which may be past; None when it has nothing."""
        times = (
            self._waiting.next_expiry(),
            self._lifetimes.next_deadline(),
            self._refusals.next_end(),
            self._preparation.next_deadline(),
        )
        return min((time for time in times if time is not None), default=None)

    # Questions.

    def environment(self, environment_id: str) -> Environment | None:
        """Give an environment by its id; None when it is not known."""
        return self._fleet.environments.get(environment_id)

    @property
    def environment_count(self) -> int:
        """Environments ordered and not gone, planned ones included."""
        return len(self._fleet.environments)

    @property
    def nodes(self) -> NodeTable:
        """The nodes and what is reserved on them; to be read."""
        return self._nodes

    # Inside.

    def _serve_or_rest(self, environment: Environment, now: float) -> None:
        call = self._next_call(environment, now)
        if call is not None:
            self.actions.append(Bind(call, environment))

    def _finished_with_others_waiting(self, environment: Environment, now: float) -> Call | None:
        if not environment.node.draining and self._scaler.make_way(environment, now):
            self._share_room(environment.version)
            return None
        return self._next_call(environment, now)

    def _next_call(self, environment: Environment, now: float) -> Call | None:
        """Bind an environment that serves nothing to the next call of its version; or stop it, or let it idle."""
        version, node = environment.version, environment.node
        reason = "shutdown" if node.draining else "recycled" if environment.spent else ""
        if not reason and version.waiting:
            return self._bind_oldest(environment)
        reason = reason or version.retired or ("evicted" if node.missing() else "")
        if reason:
            self._scaler.stop(environment, reason)
            self._share_room(version)
            return None
        if version.spec.snap_start and not environment.served:
            self._preparation.prepared(environment, now)
        else:
            self._fleet.set_idle(environment, now)
        if self._scaler.line:
            self._scaler.room_changed()
        return None

    def _go_on(self, refused: Environment, before: int) -> None:
        """What is ordered of the same version at once is in the place of an environment that its node refused."""
        for action in self.actions[before:]:
            if isinstance(action, Start) and action.environment.version is refused.version:
                action.environment.start = refused.start
                return

    def _share_room(self, version: VersionState) -> None:
        """An environment of a version is leaving: first those in line have their turn, then its own calls."""
        if self._scaler.line:
            self._scaler.room_changed()
        self._scaler.demand_changed(version)

    def _retire(self, version: VersionState, reason: str, error: ServiceError | None) -> None:
        version.retired = reason
        if error is not None:
            self._fail_waiting(version, error)
        self._preparation.retire(version)
        self._scaler.demand_changed(version)
        for environment in [*version.idle, *version.prepared, *self._fleet.starting_for_nobody(version)]:
            self._scaler.stop(environment, reason)
        self._fleet.forget_unused(version)

    def _empty(self, node: NodeState) -> None:
        """A node drains: its idle environments stop, and what was planned on it is planned elsewhere."""
        planned = list(node.planned)
        for environment in planned:
            self._fleet.remove(environment)
        for environment in list(node.environments.values()):
            if environment.phase in (_IDLE, Phase.PREPARED):
                self._scaler.stop(environment, "shutdown")
        for environment in planned:
            self._scaler.demand_changed(environment.version)
