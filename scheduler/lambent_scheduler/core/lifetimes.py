"""How long environments stay idle, and which are started ahead of calls: what each function's policy says is done."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lambent_scheduler.core.actions import Start, Stop
from lambent_scheduler.core.fleet import idle_end
from lambent_scheduler.core.heaps import LazyHeap
from lambent_scheduler.core.placement import Placement, place
from lambent_scheduler.core.policies import LEAST_PREWARM_S

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
        self._quiet: LazyHeap[FunctionState] = LazyHeap(_look_at)

    def became_quiet(self, function: FunctionState) -> None:
        """The last call of a function that learns has ended. Of constant cost: it may be so after every call."""
        if function not in self._quiet.members:
            function.quiet_look_s = LEAST_PREWARM_S
            self._quiet.add(function)

    def tick(self, now: float) -> None:
        """Stop what has idled long enough, and start what is expected."""
        while (environment := self._fleet.idle.first()) is not None and _end(environment) <= now:
            self._fleet.stop(environment)
            self._actions.append(Stop(environment, "idle"))
        while (function := self._quiet.first()) is not None and _look(function) <= now:
            windows = function.keep_alive.windows()
            if now < function.quiet_since + windows.prewarm_s < math.inf:
                function.quiet_look_s = windows.prewarm_s
                continue
            self._quiet.discard(function)
            if now < function.quiet_since + windows.expect_s and windows.prewarm_s < math.inf:
                self._prewarm(function)

    def next_deadline(self) -> float | None:
        """Give the time at which `tick` has something to do; None when it has nothing."""
        environment, function = self._fleet.idle.first(), self._quiet.first()
        if environment is None:
            return None if function is None else _look(function)
        end = _end(environment)
        return end if function is None else min(end, _look(function))

    def _prewarm(self, function: FunctionState) -> None:
        spec = function.last_spec
        if spec is None or spec.snap_start or function.environments or self._line:
            return  # those with SnapStart have theirs prepared
        version = self._fleet.version(spec)
        placed = place(self._fleet.nodes, version.request, self._fleet.draw())
        if isinstance(placed, Placement):
            self._actions.append(Start(self._fleet.start(version, self._fleet.nodes.node(placed.node_id))))
        else:
            self._fleet.forget_unused(version)


def _look_at(function: FunctionState) -> float | None:
    """Give the time at which to look whether a quiet function's next call is expected; None when it has calls."""
    return None if function.in_flight else function.quiet_since + function.quiet_look_s


def _look(function: FunctionState) -> float:
    return function.quiet_since + function.quiet_look_s


def _end(environment: Environment) -> float:
    end = idle_end(environment)
    assert end is not None
    return end
