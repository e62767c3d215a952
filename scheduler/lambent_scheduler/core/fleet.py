"""Every environment there is, and what each of them holds. Keeps the books; decides nothing."""

from __future__ import annotations

import random
import uuid
from functools import partial
from typing import TYPE_CHECKING

from lambent_scheduler.core import policies
from lambent_scheduler.core.concurrency import AccountState, FunctionState, Gone
from lambent_scheduler.core.environments import Environment, Phase, idle_since
from lambent_scheduler.core.heaps import LazyHeap
from lambent_scheduler.core.version_state import VersionState

if TYPE_CHECKING:
    from lambent_scheduler.core.limits import Limits
    from lambent_scheduler.core.nodes import NodeState
    from lambent_scheduler.core.placement import NodeTable
    from lambent_scheduler.core.version import VersionKey, VersionSpec


class Fleet:
    """Nodes, functions, versions and environments, each with its reservations.

    Attributes:
        nodes: The nodes, with what is reserved on them.
        environments: Environments by id, planned ones included.
        versions: Versions with environments or waiting calls.
        functions: Functions seen, by account and name.
        idle: Idle environments, the one that is to end first in front.
        prepared: Prepared environments, the one longest out of use first.
        now: Time of the event that is being answered.
    """

    def __init__(self, nodes: NodeTable, limits: Limits, seed: int) -> None:
        self.nodes = nodes
        self.environments: dict[str, Environment] = {}
        self.versions: dict[VersionKey, VersionState] = {}
        self.functions: dict[tuple[str, str], FunctionState] = {}
        self.idle: LazyHeap[Environment] = LazyHeap(idle_end)
        self.prepared: LazyHeap[Environment] = LazyHeap(idle_since)
        self.now = 0.0
        self._new_keep_alive = partial(policies.keep_alive(limits.keep_alive), limits.keep_alive_s)
        self._accounts: dict[str, AccountState] = {}
        self._random = random.Random(seed)  # noqa: S311 - ids and samples, not secrets

    def draw(self) -> int:
        """Give a seed for one placement."""
        return self._random.getrandbits(64)

    # Functions and versions.

    def version(self, spec: VersionSpec) -> VersionState:
        """Give the state of a version, made now if need be."""
        version = self.versions.get(spec.key)
        if version is None:
            function = self._function(spec)
            function.deleted = False
            version = self.versions[spec.key] = function.versions[spec.key] = VersionState(spec, function)
        return version

    def _function(self, spec: VersionSpec) -> FunctionState:
        name = (spec.account, spec.function_name)
        function = self.functions.get(name)
        if function is None:
            account = self._accounts.setdefault(spec.account, AccountState())
            function = self.functions[name] = FunctionState(*name, spec.partition, account, self._new_keep_alive())
        return function

    def starting_for_nobody(self, version: VersionState) -> list[Environment]:
        """Give what is being made of a version that no call waits for: an init may take minutes."""
        if version.waiting or not version.starting:
            return []
        environments = self.environments.values()
        return [one for one in environments if one.version is version and one.phase is Phase.STARTING]

    def forget_unused(self, version: VersionState) -> None:
        """Drop a version that has nothing and is to have nothing, and its function when that was deleted."""
        if version.environments or version.waiting or version.kept:
            return
        function = version.function
        if self.versions.get(version.spec.key) is version:
            del self.versions[version.spec.key]
            del function.versions[version.spec.key]
        self.forget_deleted(function)

    def forget_deleted(self, function: FunctionState) -> None:
        """Drop a function that was deleted and has nothing left."""
        if function.deleted and not function.versions and not function.in_flight:
            self.functions.pop((function.account_id, function.function_name), None)

    # The life of an environment, in order.

    def plan(self, version: VersionState, node: NodeState) -> Environment:
        """Promise memory of a node to a new environment, which waits until others have gone."""
        environment = self._make(version, node)
        environment.phase = Phase.PLANNED
        version.planned[environment] = None
        node.promised.add(version.spec)
        node.planned.append(environment)
        return environment

    def order_planned(self, environment: Environment) -> None:
        """A planned environment has its room: it is ordered now."""
        self._unplan(environment)
        environment.phase = Phase.STARTING

    def start(self, version: VersionState, node: NodeState) -> Environment:
        """Reserve memory of a node for a new environment, which is ordered now."""
        environment = self._make(version, node)
        environment.phase = Phase.STARTING
        return environment

    def adopt(self, environment: Environment, node: NodeState, now: float) -> None:
        """Take an environment that exists, BUSY with a call that is not ours."""
        self._take(environment, self.version(environment.spec), node)
        environment.phase = Phase.BUSY
        environment.ready_at = environment.last_used = now

    def set_idle(self, environment: Environment, now: float) -> None:
        """A STARTING or BUSY environment serves nothing now."""
        version, node = environment.version, environment.node
        environment.phase = Phase.IDLE
        environment.last_used = now if environment.in_place_of is None else environment.in_place_of.last_used
        version.idle[environment] = None
        node.idle.add(environment.spec)
        if not node.reclaim_dirty:
            self.nodes.reclaim_changed(node)
        if environment not in self.idle.members:
            self.idle.add(environment)
        if environment not in node.idle_order.members:
            node.idle_order.add(environment)

    def set_prepared(self, environment: Environment, now: float) -> None:
        """A STARTING environment of a version with SnapStart is ready before a call has come for it."""
        version, node = environment.version, environment.node
        environment.phase = Phase.PREPARED
        environment.last_used = now
        version.prepared[environment] = None
        node.idle.add(environment.spec)
        self.nodes.reclaim_changed(node)
        self.prepared.add(environment)
        node.idle_order.add(environment)

    def take_free(self, version: VersionState) -> Environment:
        """Take the idle environment of a version that was used last, or else a prepared one; BUSY from now on.

        There must be one.
        """
        environment, _ = (version.idle or version.prepared).popitem()
        self.prepared.discard(environment)
        environment.phase = Phase.BUSY
        environment.node.idle.subtract(environment.spec)
        self.nodes.reclaim_changed(environment.node)
        return environment

    def set_ready(self, environment: Environment, now: float) -> None:
        """A STARTING environment can serve: BUSY until it is bound or set idle."""
        environment.version.starting -= 1
        environment.node.starting -= 1
        environment.node.failures = 0
        environment.phase = Phase.BUSY
        environment.ready_at = environment.last_used = now

    def stop(self, environment: Environment) -> None:
        """An environment is ordered to end. Its memory stays reserved until `remove`."""
        assert environment.phase is not Phase.PLANNED
        self._leave_phase(environment)
        environment.phase = Phase.STOPPING
        environment.node.stopping.add(environment.spec)
        self.nodes.reclaim_changed(environment.node)

    def remove(self, environment: Environment) -> None:
        """An environment is gone, in whatever phase it was."""
        node, version = environment.node, environment.version
        self._leave_phase(environment)
        environment.phase = Phase.STOPPING
        self.idle.discard(environment)
        self.prepared.discard(environment)
        node.idle_order.discard(environment)
        del self.environments[environment.environment_id]
        del node.environments[environment.environment_id]
        version.environments -= 1
        function = version.function
        function.environments -= 1
        function.held_mib -= environment.spec.memory_mib
        if not function.environments:
            function.invocations_before = function.invocations
        self.nodes.release(node, environment.spec)

    def _make(self, version: VersionState, node: NodeState) -> Environment:
        environment_id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        environment = Environment(environment_id, version.spec, node.node_id)
        self._take(environment, version, node)
        version.starting += 1
        node.starting += 1
        return environment

    def _take(self, environment: Environment, version: VersionState, node: NodeState) -> None:
        spec = environment.spec
        environment.version = version
        environment.node = node
        self.environments[environment.environment_id] = environment
        node.environments[environment.environment_id] = environment
        version.environments += 1
        version.function.environments += 1
        version.function.held_mib += spec.memory_mib
        self.nodes.reserve(node, spec)
        self.nodes.remember_package(node, spec.code_sha256)

    def _leave_phase(self, environment: Environment) -> None:
        version, node, spec = environment.version, environment.node, environment.spec
        match environment.phase:
            case Phase.PLANNED:
                self._unplan(environment)
                version.starting -= 1
                node.starting -= 1
            case Phase.STARTING:
                version.starting -= 1
                node.starting -= 1
            case Phase.IDLE:
                del version.idle[environment]
                node.idle.subtract(spec)
                self.nodes.reclaim_changed(node)
                if version.function.learns:
                    version.function.gone.append(Gone(environment.last_used, environment.in_place_of is None))
            case Phase.PREPARED:
                del version.prepared[environment]
                node.idle.subtract(spec)
                self.nodes.reclaim_changed(node)
            case Phase.STOPPING:
                node.stopping.subtract(spec)
                self.nodes.reclaim_changed(node)
            case Phase.BUSY:
                pass

    def _unplan(self, environment: Environment) -> None:
        del environment.version.planned[environment]
        environment.node.promised.subtract(environment.spec)
        environment.node.planned.remove(environment)


def idle_end(environment: Environment) -> float | None:
    """Give the time at which an idle environment is to end; None for one that is not idle.

    What the policy learns may bring the end forward; where others are idle it is then found at the time it had before.
    """
    if environment.phase is not Phase.IDLE:
        return None
    windows = environment.version.function.keep_alive.windows()
    return environment.last_used + (windows.stay_s if environment.in_place_of is None else windows.expect_s)
