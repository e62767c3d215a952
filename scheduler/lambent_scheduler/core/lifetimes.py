"""How long environments stay idle, and which are started ahead of calls: what each function's policy says is done."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lambent_scheduler.core.actions import Start, Stop
from lambent_scheduler.core.fleet import idle_end
from lambent_scheduler.core.heaps import LazyHeap
from lambent_scheduler.core.placement import Placement, place

if TYPE_CHECKING:
    from lambent_scheduler.core.actions import Action
    from lambent_scheduler.core.concurrency import FunctionState
    from lambent_scheduler.core.environments import Environment
    from lambent_scheduler.core.fleet import Fleet
    from lambent_scheduler.core.waiting import MemoryLine


class Lifetimes:
    """Ends idle environments and starts expected ones, each in its time.

    Environments that are started ahead of calls get only memory that is free and that nobody waits for.

    Args:
        fleet: All environments.
        actions: What the shell has to do.
        line: Versions whose calls wait for memory.
    """

    def __init__(self, fleet: Fleet, actions: list[Action], line: MemoryLine) -> None:
        self._fleet = fleet
        self._actions = actions
        self._line = line
        self._expected: LazyHeap[FunctionState] = LazyHeap(_prewarm_at)

    def used_again(self, environment: Environment) -> None:
        """An environment of a function that learns serves a call, and was idle until now."""
        environment.version.function.keep_alive.wanted_again(self._fleet.now - environment.last_used)
        environment.in_place_of = None

    def missed(self, function: FunctionState) -> None:
        """A call has come that the last one of those that are gone could have served."""
        function.keep_alive.wanted_again(self._fleet.now - function.gone.pop().last_used)

    def tick(self, now: float) -> None:
        """Stop what has idled long enough, and start what is expected."""
        while (environment := self._fleet.idle.first()) is not None and _end(environment) <= now:
            self._stop(environment)
        while (function := self._expected.first()) is not None and (at := _prewarm_at(function)) is not None:
            if at > now:
                break
            self._prewarm(function, now)

    def next_deadline(self) -> float | None:
        """Give the time at which `tick` has something to do; None when it has nothing."""
        environment, function = self._fleet.idle.first(), self._expected.first()
        times = (
            None if environment is None else _end(environment),
            None if function is None else _prewarm_at(function),
        )
        return min((time for time in times if time is not None), default=None)

    def _stop(self, environment: Environment) -> None:
        function = environment.version.function
        self._fleet.stop(environment)
        self._actions.append(Stop(environment, "idle"))
        if function.learns:
            function.last_spec = None if environment.version.retired else environment.spec
            if function not in self._expected.members and _prewarm_at(function) is not None:
                self._expected.add(function)

    def _prewarm(self, function: FunctionState, now: float) -> None:
        """Start an environment in place of the one that is due, or give it up."""
        place_of = next(number for number, gone in enumerate(function.gone) if gone.expected)
        gone = function.gone[place_of]
        environment = None
        if now < gone.last_used + function.keep_alive.windows().expect_s and not self._line:
            environment = self._start(function)
        if environment is None:
            function.gone[place_of] = gone._replace(expected=False)
        else:
            environment.in_place_of = gone
            del function.gone[place_of]

    def _start(self, function: FunctionState) -> Environment | None:
        """Start an environment if there is room for it, none is prepared, and the function may have calls at all."""
        spec = function.last_spec
        if spec is None or spec.snap_start or function.reserved == 0:
            return None
        version = self._fleet.version(spec)
        placed = place(self._fleet.nodes, version.request, self._fleet.draw())
        if not isinstance(placed, Placement):
            self._fleet.forget_unused(version)
            return None
        environment = self._fleet.start(version, self._fleet.nodes.node(placed.node_id))
        self._actions.append(Start(environment))
        return environment


def _prewarm_at(function: FunctionState) -> float | None:
    """Give the time at which the next environment of a function is to be started ahead of a call; None when none is."""
    prewarm_s = function.keep_alive.windows().prewarm_s
    if prewarm_s == math.inf:
        return None
    return next((gone.last_used + prewarm_s for gone in function.gone if gone.expected), None)


def _end(environment: Environment) -> float:
    end = idle_end(environment)
    assert end is not None
    return end
