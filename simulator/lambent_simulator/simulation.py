"""The virtual clock: calls come, nodes answer, time passes, and the dispatcher decides."""

from __future__ import annotations

import functools
import math
import random
import time
from bisect import bisect_right
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from lambent.errors import NoCapacityError, ThrottledError
from lambent_common.traces import MinuteOfCalls, RecordedCalls, minutes_of_arrivals
from lambent_scheduler.core import Bind, Call, Dispatcher, Environment, Fail, Start, Stop, VersionSpec
from lambent_simulator.figures import FunctionFigures, Report, Tally
from lambent_simulator.histogram import PER_E
from lambent_simulator.node import SimulatedNode
from lambent_simulator.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lambent_common.traces import Trace, TraceFunction
    from lambent_simulator.event_log import Log
    from lambent_simulator.scenario import Scenario

_RUNTIME = "python3.11"

# As the scheduler's own: scheduler/lambent_scheduler/invocation/relay.py, `_TICK_S`.
_TICKS_PER_S = 10

# From the order to the word that an environment is gone, and its memory free.
_STOP_S = 0.005

# AWS Lambda quotas: memory of a function.
_LEAST_MEMORY_MIB = 128
_MOST_MEMORY_MIB = 10_240


class SimulatedCall(Call):
    """A call that knows how long its run will take.

    Attributes:
        number: Position of its function in the trace.
        duration_s: The run alone.
    """

    __slots__ = ("duration_s", "number")

    def __init__(self, spec: VersionSpec, arrived: float, number: int, duration_s: float) -> None:
        super().__init__("", spec, payload_bytes=0, arrived=arrived, deadline=math.inf)
        self.number = number
        self.duration_s = duration_s


class Outcome(NamedTuple):
    """What a simulation gives: the run in figures, and each function in the order of the trace."""

    report: Report
    functions: tuple[FunctionFigures, ...]


Load: TypeAlias = "Trace | RecordedCalls"
"""What is simulated: counts per minute, or calls one by one."""

Progress: TypeAlias = "Callable[[int, int | None, int], None]"
"""Told after each simulated minute: how many are over, how many there are where that is known, and the calls so far."""

# Time, number, and the end of a call on an environment, or whatever else is to happen.
_Event: TypeAlias = "tuple[float, int, Environment | None, SimulatedCall | Callable[[], None]]"


def simulate(load: Load, scenario: Scenario, progress: Progress | None = None, log: Log | None = None) -> Outcome:
    """Run a load on a simulated cluster.

    The same load and scenario give the same figures, but for the wall time, and the same log.
    """
    return Simulation(load, scenario, log).run(progress)


def calls_of(load: Load, scenario: Scenario) -> Iterator[MinuteOfCalls]:
    """Give the calls of the scenario's window; where the load has counts alone they are drawn."""
    first, minutes = scenario.first_minute, scenario.minutes
    if isinstance(load, RecordedCalls):
        yield from load.minutes_of_calls(first_minute=first, minutes=minutes)
        return
    # Each kind of draw has a source of its own: with other arrivals the run times are of the same kind.
    source = random.Random(f"durations {scenario.seed}")  # noqa: S311 - a simulation, not secrets
    durations = [function.durations for function in load.functions]
    for minute in minutes_of_arrivals(load, scenario.arrivals, scenario.seed, first_minute=first, minutes=minutes):
        yield MinuteOfCalls(*minute, [durations[number].sample(source) / 1e3 for number in minute.functions])


def window_of(load: Load, scenario: Scenario) -> int | None:
    """Give the length of the scenario's window in minutes; None when it is known only at its end."""
    if load.minutes is None:
        return None
    left = load.minutes - scenario.first_minute
    return max(0, left if scenario.minutes is None else min(left, scenario.minutes))


def spec_of(function: TraceFunction) -> VersionSpec:
    """Give a function of a trace as the scheduler knows functions."""
    memory_mib = min(max(math.ceil(function.memory_mib), _LEAST_MEMORY_MIB), _MOST_MEMORY_MIB)
    return VersionSpec(
        account="default",
        function_name=function.name,
        version="$LATEST",
        revision_id="1",
        runtime=_RUNTIME,
        handler="app.handler",
        code_sha256=function.name,
        code_size_bytes=0,
        environment_variables={},
        memory_mib=memory_mib,
        ephemeral_storage_mib=512,
        timeout_us=900_000_000,
        function_arn="",
        partition=0,
    )


class Simulation:
    """One run. Used once.

    Attributes:
        now: The virtual time, in seconds from the beginning of the window.
        dispatcher: What decides.
        nodes: The machines, by id.
        tally: What is counted.
    """

    def __init__(self, load: Load, scenario: Scenario, log: Log | None = None) -> None:
        self.now = 0.0
        self.dispatcher = Dispatcher(scenario.limits, scenario.seed)
        self.nodes = {f"node-{number}": SimulatedNode(f"node-{number}") for number in range(scenario.nodes)}
        self.tally = Tally(load.functions)
        self._load = load
        self._log = log
        self._scenario = scenario
        self._specs = [spec_of(function) for function in load.functions]
        self._call_s = scenario.call_ms / 1e3
        self._starts = random.Random(f"starts {scenario.seed}")  # noqa: S311 - a simulation, not secrets
        self._heap: list[_Event] = []
        self._sequence = count()
        self._times_s: list[float] = []
        self._minute_end_s = 0.0
        for node_id in self.nodes:
            self.join(node_id)
        self._trouble = Trouble(self, scenario)
        self._cut = self._trouble.cut

    def run(self, progress: Progress | None) -> Outcome:
        """Run the window, and what is still under way when it ends."""
        began = time.perf_counter()
        minutes = window_of(self._load, self._scenario)
        self.at(1 / _TICKS_PER_S, self._tick)
        for minute in calls_of(self._load, self._scenario):
            self._run_minute(minute)
            if progress is not None:
                progress(minute.minute + 1, minutes, self.dispatcher.invocations)
        self._times_s = []
        end_s = max(60.0 * (minutes or 0), self._minute_end_s)
        while self._heap[0][0] <= end_s or self.dispatcher.in_flight:
            self._step()
        self.now = max(self.now, end_s)
        self.tally.memory.advance(self.now)
        functions = tuple(
            one.figures(function) for one, function in zip(self.tally.by_function, self._load.functions, strict=True)
        )
        return Outcome(self.tally.report(self.now, time.perf_counter() - began), functions)

    # The clock.

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        """Let something happen at a time."""
        heappush(self._heap, (time_s, next(self._sequence), None, event))

    def _step(self) -> None:
        """Let the next thing happen."""
        self.now, _, environment, what = heappop(self._heap)
        if environment is None:
            what()  # type: ignore[operator]  # without an environment it is an event
        else:
            self._finished(environment, what)  # type: ignore[arg-type]  # with one it is its call
        self.act()

    def _run_minute(self, minute: MinuteOfCalls) -> None:
        """Let the calls of one minute come, and all that happens between them."""
        self._times_s, self._minute_end_s = minute.times_s, 60.0 * (minute.minute + 1)
        heap, dispatcher, specs, tallies = self._heap, self.dispatcher, self._specs, self.tally.by_function
        admit, actions, log = dispatcher.admit, dispatcher.actions, self._log
        for time_s, number, duration_s in zip(minute.times_s, minute.functions, minute.durations_s, strict=True):
            while heap[0][0] <= time_s:
                self._step()
            self.now = time_s
            tally = tallies[number]
            tally.invocations += 1
            call = SimulatedCall(specs[number], time_s, number, duration_s)
            if log is not None:
                log.call(call)
            try:
                environment = admit(call, None, 0, time_s)
            except (ThrottledError, NoCapacityError) as error:
                self._not_served(call, error)
                continue
            if environment is not None:
                self._begin(call, environment)
            if actions:
                self.act()

    def _tick(self) -> None:
        """Let time pass for the dispatcher, as its shell does: at whole tenths of a second.

        Tenths in which nothing can have changed since the last one are left out.
        """
        self.dispatcher.tick(self.now)
        self.act()
        position = bisect_right(self._times_s, self.now)
        wake_s = self._times_s[position] if position < len(self._times_s) else self._minute_end_s
        if self._heap:
            wake_s = min(wake_s, self._heap[0][0])
        deadline_s = self.dispatcher.next_deadline()
        if deadline_s is not None:
            wake_s = min(wake_s, deadline_s)
        tick = max(round(self.now * _TICKS_PER_S) + 1, math.ceil(wake_s * _TICKS_PER_S))
        self.at(tick / _TICKS_PER_S, self._tick)

    # What the dispatcher asks for.

    def act(self) -> None:
        """Carry out what the dispatcher wants done."""
        dispatcher = self.dispatcher
        while dispatcher.actions:
            for action in dispatcher.take_actions():
                match action:
                    case Start(environment):
                        self._start(environment)
                    case Stop(environment, reason):
                        if self._log is not None:
                            self._log.write(self.now, "stop", environment.environment_id, reason)
                        self.tally.evicted += reason == "evicted"
                        self._send(environment, functools.partial(self._stop, environment))
                    case Bind(call, environment):
                        assert isinstance(call, SimulatedCall)
                        self._begin(call, environment)
                    case Fail(call, error):
                        assert isinstance(call, SimulatedCall)
                        self._not_served(call, error)

    def _send(self, environment: Environment, deliver: Callable[[], None]) -> None:
        """Let a message pass between the scheduler and the node of an environment, in either direction."""
        node = self.nodes[environment.node_id]
        if not node.cut:
            deliver()
        elif not node.dead:
            node.held_back.append(deliver)

    def _start(self, environment: Environment) -> None:
        if self._log is not None:
            names = environment.spec.function_name, environment.environment_id, environment.node_id
            self._log.write(self.now, "start", *names)
        start_s = self._scenario.cold_start.sample(self._starts) / 1e3
        self._send(environment, functools.partial(self._make, environment, start_s))

    def _make(self, environment: Environment, start_s: float) -> None:
        node = self.nodes[environment.node_id]
        node.environments[environment.environment_id] = environment
        self.tally.memory.begin(environment.spec.memory_mib, self.now)
        self.at(self.now + start_s * node.slowness, functools.partial(self._made, environment))

    def _made(self, environment: Environment) -> None:
        node = self.nodes[environment.node_id]
        if environment.environment_id not in node.environments:
            return
        node.serving.discard(environment.environment_id)
        self._send(environment, lambda: self.dispatcher.ready(environment.environment_id, self.now))

    def _stop(self, environment: Environment) -> None:
        self.at(self.now + _STOP_S, functools.partial(self._stopped, environment))

    def _stopped(self, environment: Environment) -> None:
        environment_id = environment.environment_id
        if self.nodes[environment.node_id].environments.pop(environment_id, None) is None:
            return
        self.tally.memory.end(environment.spec.memory_mib, self.now)
        self._send(
            environment,
            lambda: self.dispatcher.stopped(environment_id, refused=False, error=None, now=self.now),
        )

    # Calls.

    def _begin(self, call: SimulatedCall, environment: Environment) -> None:
        """A call is sent to its environment."""
        now = self.now
        if self._log is not None:
            self._log.write(now, "run", call.request_id, environment.environment_id)
        if now > call.arrived:
            # What was ready before its first call came, started ahead of it, was no cold start.
            self.tally.by_function[call.number].cold_starts += environment.served == 1
            self.tally.queue_ms.add((now - call.arrived) * 1e3)
        if environment.node_id in self._cut:
            self._send(environment, functools.partial(self._execute, call, environment))
            return
        self._execute(call, environment)

    def _execute(self, call: SimulatedCall, environment: Environment) -> None:
        end_s = self.now + self._call_s + call.duration_s * self.nodes[environment.node_id].slowness
        heappush(self._heap, (end_s, next(self._sequence), environment, call))

    def _finished(self, environment: Environment, call: SimulatedCall) -> None:
        """A run is over, and its answer on its way."""
        if environment.call is not call or environment.node_id in self._cut:
            self._trouble.finished(environment, call)
            return
        self.answer(environment, call)

    def answer(self, environment: Environment, call: SimulatedCall) -> None:
        """The answer of a call arrives."""
        now = self.now
        if self._log is not None:
            self._log.write(now, "end", call.request_id)
        duration_s = call.duration_s
        latency_s = now - call.arrived
        slowdown = latency_s / duration_s
        tally = self.tally.by_function[call.number]
        tally.slowdown_sum += slowdown
        # LogHistogram.add, written out: this is done for every call.
        bucket = 0 if slowdown <= 1 else 1 + int(math.log(slowdown) * PER_E)
        buckets = tally.slowdowns
        buckets[bucket] = buckets.get(bucket, 0) + 1
        self.tally.latencies_ms.add(latency_s * 1e3)
        self.tally.used_memory_mib_s += duration_s * call.spec.memory_mib
        following = self.dispatcher.finished(environment, now)
        if following is not None:
            assert isinstance(following, SimulatedCall)
            self._begin(following, environment)

    def _not_served(self, call: SimulatedCall, error: Exception) -> None:
        """A call ends without an answer."""
        tally = self.tally.by_function[call.number]
        cause = type(error).__name__
        if isinstance(error, ThrottledError):
            tally.throttled += 1
        elif isinstance(error, NoCapacityError):
            tally.refused += 1
        else:
            tally.failed += 1
        self.tally.causes[cause] = self.tally.causes.get(cause, 0) + 1
        if self._log is not None:
            self._log.write(self.now, "fail", call.request_id, cause)

    # Nodes.

    def join(self, node_id: str, held: list[tuple[Environment, bool]] | None = None) -> None:
        """A node takes orders from now on, with what it still holds."""
        if self._log is not None:
            self._log.write(self.now, "join", node_id)
        self.dispatcher.node_joined(node_id, self._scenario.capacity, {}, [_RUNTIME], self.now, held=held or ())
