"""A whole cluster under a virtual clock: one dispatcher, simulated nodes, callers and an operator, all by one seed."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tests.core.specs import RUNTIME, make_capacity, make_spec

from lambent.errors import NoCapacityError, NodeLostError, ServiceError, ThrottledError, UnavailableError
from lambent_scheduler.core import (
    Bind,
    Call,
    Dispatcher,
    Environment,
    Fail,
    Limits,
    Phase,
    Placement,
    Prepared,
    Start,
    Stop,
    VersionSpec,
    place,
    policies,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lambent_scheduler.core.version_state import VersionState

# So small that every bound is met.
LIMITS = Limits(
    account_concurrency=25,
    keep_alive_s=20.0,
    max_queue_wait_s=5.0,
    waiting_calls_per_function=12,
    waiting_calls=18,
    waiting_bytes_per_function=1200,
    waiting_bytes=2000,
    cpu_overcommit=2.0,
    disk_overcommit=1.0,
)
# From few values, so that ties are common.
_MEMORY_MIB = (128, 128, 256, 512)
_NODE_MEMORY_MIB = (512, 512, 1024, 2048)
_FREE = (Phase.IDLE, Phase.PREPARED)


@dataclass
class Agent:
    """A node as it really is. It arbitrates: others may use a part of it, of which the scheduler does not know."""

    node_id: str
    memory_mib: int
    taken_by_others_mib: int
    cpu_millis: int
    slowness: float
    failure_share: float
    held: dict[str, VersionSpec] = field(default_factory=dict)
    alive: bool = True

    def used_mib(self) -> int:
        """Memory that environments hold."""
        return sum(spec.memory_mib for spec in self.held.values())


class World:
    """Draws a cluster and a load from a seed, and checks every rule after every step."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.limits = replace(
            LIMITS,
            keep_alive=self.random.choice(list(policies.KEEP_ALIVE)),
            eviction=self.random.choice(list(policies.EVICTION)),
            placement=self.random.choice(list(policies.PLACEMENT)),
        )
        self.dispatcher = Dispatcher(self.limits, seed)
        self.prewarmed = 0
        self.agents: dict[str, Agent] = {}
        self.calls: list[Call] = []
        self.ends: dict[Call, list[str]] = {}
        self.reserved: dict[str, int] = {}
        self.started_in_step: list[Environment] = []
        self.cold_starts = 0
        self.throttles = 0
        self.admitted = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        names = [f"f{number}" for number in range(self.random.randint(1, 5))]
        self.specs = {
            name: make_spec(name, self.random.choice(_MEMORY_MIB), snap_start=self.random.random() < 0.4)
            for name in names
        }
        for number in range(self.random.randint(1, 4)):
            self._join(f"n{number}")
        if self.random.random() < 0.3:
            self.reserved[self.random.choice(names)] = self.random.randint(0, 6)
        for _ in range(self.random.randint(2, 8)):
            self.after(self.random.uniform(0, 15), self._burst)
        for _ in range(self.random.randint(0, 4)):
            self.after(
                self.random.uniform(0, 20), self.random.choice((self._update, self._drain, self._kill, self._spend))
            )
        self.after(self.random.uniform(0, 20), self._reserve)
        if self.random.random() < 0.3:
            self._call_regularly(self.random.choice(names))
        for name in names:
            for _ in range(2):
                self.after(self.random.uniform(0, 15), lambda name=name: self._keep(name))
            self.after(60.0, lambda name=name: self._keep(name, kept=False))

    # The clock.

    def after(self, delay_s: float, event: Callable[[], None]) -> None:
        """Let something happen later."""
        self._sequence += 1
        heapq.heappush(self._events, (self.now + delay_s, self._sequence, event))

    def run(self) -> int:
        """Run until nothing is left to happen; give the number of steps."""
        steps = 0
        while True:
            deadline = self.dispatcher.next_deadline()
            at = self._events[0][0] if self._events else math.inf
            if deadline is None and at == math.inf:
                return steps
            if deadline is not None and deadline <= at:
                self.now = max(self.now, deadline)
                self.dispatcher.tick(self.now)
                deadline = self.dispatcher.next_deadline()
                assert deadline is None or deadline > self.now, "a tick left something to do"
            else:
                self.now, _, event = heapq.heappop(self._events)
                event()
            self._act()
            self.check()
            steps += 1
            assert steps < 20_000, "the world does not come to rest"

    # The callers.

    def _burst(self) -> None:
        spec = self.random.choice(list(self.specs.values()))
        spread_s = self.random.choice((0.0, 0.1, 3.0))
        for _ in range(self.random.randint(1, 20)):
            self.after(self.random.uniform(0, spread_s), lambda: self._call(spec.function_name))

    def _call_regularly(self, name: str) -> None:
        """Often enough that a policy that learns expects the last of them."""
        every_s, times = self.random.choice((70.0, 130.0, 400.0)), 2 * self.random.randint(6, 10)
        for number in range(times):
            self.after(60 + every_s * number, lambda: self._call(name))

    def _call(self, name: str) -> None:
        spec = self.specs[name]
        timeout_s = self.random.choice((math.inf, math.inf, 1.0, 8.0))
        call = Call(
            f"r{len(self.calls)}",
            spec,
            payload_bytes=self.random.choice((10, 100, 400)),
            arrived=self.now,
            deadline=self.now + timeout_s,
        )
        reserved = self.reserved.get(name)
        in_flight = self._in_flight(name)
        try:
            environment = self.dispatcher.admit(call, reserved, sum(self.reserved.values()), self.now)
        except ThrottledError as error:
            self.throttles += 1
            self._check_throttle(error.details["Reason"], reserved, in_flight)
            return
        except NoCapacityError:
            return
        self.admitted += 1
        self.calls.append(call)
        self.ends[call] = []
        if reserved is not None:
            assert in_flight < reserved, "a function went over its reserved concurrency"
        assert self._in_flight() <= LIMITS.account_concurrency, "an account went over its limit"
        if environment is not None:
            assert environment.call is call
            self._run(call, environment)
        if self.random.random() < 0.15:
            self.after(self.random.uniform(0, 6), lambda: self._cancel(call))

    def _check_throttle(self, reason: str, reserved: int | None, in_flight: int) -> None:
        if reason == "ReservedFunctionConcurrentInvocationLimitExceeded":
            assert reserved is not None
            assert in_flight >= reserved
        else:
            room = LIMITS.account_concurrency - sum(self.reserved.values())
            unreserved = sum(self._in_flight(name) for name in self.specs if name not in self.reserved)
            # A reservation that is new counts from the function's next call on.
            assert unreserved >= room or self._in_flight() >= room

    def _in_flight(self, name: str | None = None) -> int:
        return sum(
            1 for call, ends in self.ends.items() if not ends and (name is None or call.spec.function_name == name)
        )

    def _cancel(self, call: Call) -> None:
        if self.dispatcher.cancel(call, self.now):
            self.ends[call].append("cancelled")

    # The operator.

    def _update(self) -> None:
        name = self.random.choice(list(self.specs))
        old = self.specs[name]
        spec = make_spec(
            name, self.random.choice(_MEMORY_MIB), revision=old.revision_id + "1", snap_start=old.snap_start
        )
        self.specs[name] = spec
        error = UnavailableError("deleted") if self.random.random() < 0.3 else None
        self.dispatcher.retire_function("default", name, {spec.key}, "superseded", self.now, error=error)

    def _spend(self) -> None:
        """A node's operator wants its environments to be replaced after a while."""
        for environment_id in list(self.random.choice(list(self.agents.values())).held):
            self.dispatcher.spent(environment_id, self.now)

    def _keep(self, name: str, *, kept: bool = True) -> None:
        """Publish a version, or take the last of them away."""
        spec = self.specs[name]
        self.dispatcher.keep_prepared("default", name, [spec] if kept and spec.snap_start else [], self.now)

    def _drain(self) -> None:
        node_id = self.random.choice(list(self.agents))
        self.dispatcher.node_changed(node_id, self.now, draining=True)
        self.after(self.random.uniform(1, 10), lambda: self._undrain(node_id))

    def _undrain(self, node_id: str) -> None:
        self.dispatcher.node_changed(node_id, self.now, draining=False)

    def _reserve(self) -> None:
        name = self.random.choice(list(self.specs))
        if self.random.random() < 0.5:
            self.reserved[name] = self.random.randint(0, 8)
        else:
            self.reserved.pop(name, None)
        if self.random.random() < 0.5:
            self.dispatcher.reservation_changed("default", name, self.reserved.get(name))

    # The nodes.

    def _join(self, node_id: str) -> None:
        memory_mib = self.random.choice(_NODE_MEMORY_MIB)
        agent = Agent(
            node_id,
            memory_mib,
            taken_by_others_mib=self.random.choice((0, 0, 256, 384)),
            cpu_millis=self.random.choice((100, 500, 4000)),
            slowness=self.random.choice((0.005, 0.1, 2.0)),
            failure_share=self.random.choice((0.0, 0.0, 0.1, 0.6)),
        )
        self.agents[node_id] = agent
        capacity = make_capacity(memory_mib, agent.cpu_millis, self.random.choice((1024, 100_000)))
        self.dispatcher.node_joined(node_id, capacity, {}, [RUNTIME], self.now)
        for _ in range(self.random.randint(0, 8)):
            self.after(self.random.uniform(0, 20), lambda: self._report(agent))

    def _report(self, agent: Agent) -> None:
        """Tell the scheduler what is reserved, with as much delay as any other word of a node."""
        cpu_millis = sum(spec.cpu_millis for spec in agent.held.values())
        used = {"memory_mib": agent.used_mib() + agent.taken_by_others_mib, "cpu_millis": cpu_millis}
        self._later(agent, 0.01, lambda: self.dispatcher.node_changed(agent.node_id, self.now, reserved=used))

    def _kill(self) -> None:
        node_id = self.random.choice(list(self.agents))
        agent = self.agents[node_id]
        if not agent.alive:
            return
        agent.alive = False
        self.dispatcher.node_lost(node_id, NodeLostError(f"node {node_id} is lost"), self.now)
        self.after(self.random.uniform(0, 10), lambda: self._join(node_id))

    def _act(self) -> None:
        self.started_in_step.clear()
        for action in self.dispatcher.take_actions():
            match action:
                case Start(environment):
                    self.started_in_step.append(environment)
                    self._start(self.agents[environment.node_id], environment)
                case Stop(environment):
                    self._stop(self.agents[environment.node_id], environment)
                case Bind(call, environment):
                    self._run(call, environment)
                case Fail(call, error):
                    assert isinstance(error, ServiceError)
                    self.ends[call].append("failed")
                case Prepared(spec, _):
                    assert spec.snap_start

    def _start(self, agent: Agent, environment: Environment) -> None:
        spec = environment.spec
        own_mib = agent.used_mib()
        assert own_mib + spec.memory_mib <= agent.memory_mib, "an order went over the node's memory"
        if own_mib + spec.memory_mib + agent.taken_by_others_mib > agent.memory_mib:
            self._later(agent, 0.001, lambda: self._gone(agent, environment, refused=True))
            return
        agent.held[environment.environment_id] = spec
        delay_s = self.random.uniform(0, agent.slowness)
        if self.random.random() < agent.failure_share:
            self._later(agent, delay_s, lambda: self._gone(agent, environment, refused=False))
        else:
            self._later(agent, delay_s, lambda: self._ready(agent, environment))

    def _ready(self, agent: Agent, environment: Environment) -> None:
        if environment.environment_id not in agent.held:
            return
        init_error = UnavailableError("its init failed") if self.random.random() < agent.failure_share / 2 else None
        self.dispatcher.ready(environment.environment_id, self.now, init_error)
        if self.random.random() < 0.05:
            self._later(agent, self.random.uniform(0, 10), lambda: self._gone(agent, environment, refused=False))

    def _stop(self, agent: Agent, environment: Environment) -> None:
        assert environment.call is None, "an environment was stopped under its call"
        self._later(
            agent, self.random.uniform(0, 0.2), lambda: self._gone(agent, environment, refused=False, ordered=True)
        )

    def _gone(self, agent: Agent, environment: Environment, *, refused: bool, ordered: bool = False) -> None:
        held = agent.held.pop(environment.environment_id, None)
        if held is None and not refused:
            return
        error = None if refused or ordered else UnavailableError("it exited")
        self.dispatcher.stopped(environment.environment_id, refused=refused, error=error, now=self.now)

    def _run(self, call: Call, environment: Environment) -> None:
        assert environment.phase is Phase.BUSY
        assert call.environment is environment
        assert call.spec.key == environment.spec.key, "a call ran on another version"
        self.cold_starts += environment.served == 1
        agent = self.agents[environment.node_id]
        if self.random.random() < 0.05:
            # It is ending: the call comes back, and the node's word that it is gone follows.
            self._later(agent, 0.001, lambda: self._give_back(agent, call, environment))
            return
        duration_s = self.random.choice((0.0, 0.01, 0.5, self.random.uniform(0, 6)))
        self._later(agent, duration_s, lambda: self._finish(agent, call, environment))

    def _finish(self, agent: Agent, call: Call, environment: Environment) -> None:
        if environment.environment_id not in agent.held:
            return
        assert call.environment is environment
        self.ends[call].append("finished")
        following = self.dispatcher.finished(environment, self.now)
        if following is not None:
            self._run(following, environment)

    def _give_back(self, agent: Agent, call: Call, environment: Environment) -> None:
        if environment.environment_id not in agent.held:
            return
        if not self.dispatcher.returned(environment, self.now):
            self.ends[call].append("came back too often")
        self._later(agent, self.random.uniform(0, 0.2), lambda: self._gone(agent, environment, refused=False))

    def _later(self, agent: Agent, delay_s: float, event: Callable[[], None]) -> None:
        """Let something happen on a node, unless it has died by then."""
        self.after(delay_s, lambda: event() if agent.alive else None)

    # The rules.

    def check(self) -> None:
        """Check every rule against a recount from nothing but the environments and calls."""
        self._check_ends()
        self._check_starts()
        self._check_spent()
        self._check_nodes()
        self._check_counters()
        self._check_nobody_waits_in_vain()

    def _check_ends(self) -> None:
        for call, ends in self.ends.items():
            assert len(ends) <= 1, f"{call} ended twice: {ends}"
            assert ends or call.waiting or call.environment is not None, f"{call} was lost"
            if ends:
                assert call.environment is None
                assert not call.waiting
            elif call.environment is not None:
                assert call.environment.call is call
                assert call.environment.phase is Phase.BUSY
                assert not call.waiting

    def _check_starts(self) -> None:
        for environment in self.started_in_step:
            version = environment.version
            if environment.environment_id in self.dispatcher._fleet.environments:
                expected = sum(one.in_place_of is not None for one in self._starting(version))
                self.prewarmed += environment.in_place_of is not None
                ahead = version.prepared_target + expected
                assert version.starting <= len(version.waiting) + ahead, "more environments start than are wanted"
                assert environment.in_place_of is None or self._is_due(environment)
                assert version.prepared_target == 0 or version.spec.snap_start

    def _starting(self, version: VersionState) -> list[Environment]:
        environments = self.dispatcher._fleet.environments.values()
        return [one for one in environments if one.version is version and one.phase is Phase.STARTING]

    def _is_due(self, environment: Environment) -> bool:
        """Whether a call is expected for it, of a function that still has that version."""
        gone = environment.in_place_of
        assert gone is not None
        windows = environment.version.function.keep_alive.windows()
        due = gone.last_used + windows.prewarm_s <= self.now < gone.last_used + windows.expect_s
        return due and gone.expected and not environment.version.retired

    def _check_spent(self) -> None:
        for environment in self.dispatcher._fleet.environments.values():
            assert not (environment.spent and environment.phase is Phase.IDLE), "a spent environment waits for a call"

    def _check_nodes(self) -> None:
        for node in self.dispatcher.nodes:
            environments = [env for env in node.environments.values() if env.phase is not Phase.PLANNED]
            planned = [env for env in node.environments.values() if env.phase is Phase.PLANNED]
            capacity = node.capacity
            assert sum(env.spec.memory_mib for env in environments) <= capacity.memory_mib, "over the memory"
            assert sum(env.spec.cpu_millis for env in environments) <= capacity.cpu_millis, "over the CPU"
            assert sum(env.spec.ephemeral_storage_mib for env in environments) <= capacity.disk_mib, "over the disk"
            for amounts, members in (
                (node.reserved, environments + planned),
                (node.promised, planned),
                (node.idle, [env for env in environments if env.phase in _FREE]),
                (node.stopping, [env for env in environments if env.phase is Phase.STOPPING]),
            ):
                assert amounts.memory_mib == sum(env.spec.memory_mib for env in members)
                assert amounts.cpu_millis == sum(env.spec.cpu_millis for env in members)
                assert amounts.disk_mib == sum(env.spec.ephemeral_storage_mib for env in members)
            assert node.starting == sum(
                env.phase in (Phase.PLANNED, Phase.STARTING) for env in node.environments.values()
            )
            assert sorted(env.environment_id for env in node.planned) == sorted(env.environment_id for env in planned)
            if node.planned and node.missing():
                assert not any(env.phase in _FREE for env in environments), "a planned environment waits for nothing"
            if node.draining:
                assert not any(env.phase in (*_FREE, Phase.PLANNED) for env in node.environments.values())

    def _check_counters(self) -> None:
        dispatcher = self.dispatcher
        fleet = dispatcher._fleet
        open_calls = [call for call, ends in self.ends.items() if not ends]
        waiting = [call for call in open_calls if call.waiting]
        assert dispatcher.in_flight == len(open_calls)
        assert dispatcher.waiting_calls == len(waiting)
        assert dispatcher.waiting_bytes == sum(call.payload_bytes for call in waiting)
        assert dispatcher.invocations == self.admitted
        assert dispatcher.cold_starts == self.cold_starts
        assert dispatcher.throttles == self.throttles
        # What came back from an environment that would not take it was admitted before, and is refused no more.
        new = [call for call in waiting if not call.failed_starts]
        assert len(new) <= LIMITS.waiting_calls
        assert sum(call.payload_bytes for call in new) <= LIMITS.waiting_bytes
        for counts in dispatcher.function_counts():
            name = counts.function_name
            assert counts.in_flight == self._in_flight(name)
            assert counts.waiting == sum(1 for call in waiting if call.spec.function_name == name)
            assert sum(call.spec.function_name == name for call in new) <= LIMITS.waiting_calls_per_function
            held = [env for env in fleet.environments.values() if env.spec.function_name == name]
            assert counts.environments == len(held)
            assert fleet.functions["default", name].held_mib == sum(env.spec.memory_mib for env in held)
        unreserved = sum(f.in_flight for f in fleet.functions.values() if f.reserved is None)
        for account in fleet._accounts.values():
            assert (account.in_flight, account.unreserved) == (len(open_calls), unreserved)
        for version in fleet.versions.values():
            own = [env for env in fleet.environments.values() if env.version is version]
            assert version.environments == len(own)
            assert set(version.idle) == {env for env in own if env.phase is Phase.IDLE}
            assert set(version.prepared) == {env for env in own if env.phase is Phase.PREPARED}
            assert all(env.served == 0 for env in version.prepared)
            assert version.starting == sum(env.phase in (Phase.PLANNED, Phase.STARTING) for env in own)
            assert own or version.waiting or version.kept, "a version without anything is remembered"

    def _check_nobody_waits_in_vain(self) -> None:
        """Who waits with no environment on its way stands in line, and no node could take it, even by eviction."""
        for version in self.dispatcher._fleet.versions.values():
            assert version.queued == (version.unmet() > 0)
            if not version.waiting:
                self._check_prepared(version)
                continue
            assert not version.has_free, "a call waits beside an environment that is free"
            if version.unmet() > 0:
                assert not isinstance(place(self.dispatcher.nodes, version.request, 1), Placement)
                assert not self.dispatcher.nodes.sample_reclaimable(version.request, 1)

    def _check_prepared(self, version: VersionState) -> None:
        """A version that is kept has an environment, or is looked at again."""
        if version.kept and not version.environments:
            preparation = self.dispatcher._preparation
            assert version in preparation._lacking or version in preparation._due

    def check_rest(self) -> None:
        """When all is over nothing is left: scale to zero."""
        assert all(len(ends) == 1 for ends in self.ends.values())
        assert self.dispatcher.environment_count == 0
        assert self.dispatcher._fleet.versions == {}
        for agent in self.agents.values():
            assert not agent.alive or agent.held == {}
        for node in self.dispatcher.nodes:
            assert node.reserved.memory_mib == node.reserved.cpu_millis == node.reserved.disk_mib == 0
