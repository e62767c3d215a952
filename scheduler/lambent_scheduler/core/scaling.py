"""Where the memory for a new environment comes from: free, taken from idle environments, or from busy ones by turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent_scheduler.core.actions import Start, Stop
from lambent_scheduler.core.placement import Placement, place
from lambent_scheduler.core.preparation import Preparation
from lambent_scheduler.core.waiting import DemandClass, MemoryLine, demand_class

if TYPE_CHECKING:
    from lambent_scheduler.core.actions import Action
    from lambent_scheduler.core.environments import Environment
    from lambent_scheduler.core.fleet import Fleet
    from lambent_scheduler.core.limits import Limits
    from lambent_scheduler.core.nodes import NodeState
    from lambent_scheduler.core.policies import Eviction
    from lambent_scheduler.core.version_state import VersionState


# How many versions of a class are asked whether they may take a busy environment's place, each time one comes free:
# with a few at a time everyone in line is asked soon, and the cost does not grow with the line.
_HEIRS_LOOKED_AT = 4


class Scaler:
    """Starts environments for calls that wait, never more than calls, each with its memory reserved first.

    Memory of an environment that stops is reserved until the node says that it is gone. A new one that is to take its
    place is *planned*: the memory is promised to it, so that nobody else takes it, and it is ordered when it fits.

    Attributes:
        line: Versions whose calls wait for memory.
        preparation: What is started ahead of calls.
        look_at: From this time on a busy environment that becomes free may have to make room for another function.
    """

    def __init__(self, fleet: Fleet, limits: Limits, actions: list[Action], eviction: Eviction) -> None:
        self._fleet = fleet
        self._eviction = eviction
        self._limits = limits
        self._actions = actions
        self.line = MemoryLine()
        self.preparation = Preparation(fleet, limits, actions, self.line)
        self.look_at = float("inf")

    def demand_changed(self, version: VersionState) -> None:
        """The calls or the starts of a version became more or fewer: start what is missing, drop what is too much."""
        if version.unmet() <= 0:
            self.line.discard(version)
            while version.unmet() < 0 and version.planned:
                self.give_up(next(reversed(version.planned)))
            self.preparation.look_at(version)
            return
        # Whoever stands in line has been refused a place already, and `room_changed` looks again once there is any.
        if not version.queued:
            while version.unmet() > 0 and self.start_one(version):
                self.line.served(version.function)
        self._requeue(version)

    def room_changed(self) -> None:
        """Memory came free, or became evictable: whose turn it is gets it."""
        passed: set[DemandClass] = set()
        set_aside = []
        while (version := self.line.first(passed)) is not None:
            if self.start_one(version):
                self.line.served(version.function)
                self._requeue(version)
            elif version.refused_until:
                # The node that has room may have refused this one alone; others of its class may go there.
                self.line.discard(version)
                set_aside.append(version)
            else:
                passed.add(demand_class(version))
        for version in set_aside:
            self.line.restore(version)

    def node_settled(self, node: NodeState) -> None:
        """What a node has in use changed: evict for the planned environments, and order those that fit now."""
        while node.planned and node.missing() and (victim := node.idle_order.first()) is not None:
            self._eviction.evicted(victim, self._fleet.now)
            self.stop(victim, "evicted")
        while node.planned and node.fits_now(node.planned[0].spec):
            environment = node.planned[0]
            self._fleet.order_planned(environment)
            self._actions.append(Start(environment))

    def start_one(self, version: VersionState) -> bool:
        """Order or plan one environment; False when there is no room."""
        fleet = self._fleet
        placed = place(fleet.nodes, version.request, fleet.draw())
        if isinstance(placed, Placement):
            self._actions.append(Start(fleet.start(version, fleet.nodes.node(placed.node_id))))
            return True
        nodes = fleet.nodes.sample_reclaimable(version.request, fleet.draw())
        if not nodes:
            return False
        self._plan(version, min(nodes, key=self._least_value))
        return True

    def stop(self, environment: Environment, reason: str) -> None:
        """Order the end of an environment that serves nothing."""
        self._fleet.stop(environment)
        self._actions.append(Stop(environment, reason))

    def make_way(self, environment: Environment, now: float) -> bool:
        """Stop an environment whose call has just ended, if another function has a better right to its memory.

        Without this a function whose backlog never ends would keep its environments for ever.

        Returns:
            True when the environment is stopped; its version's demand has then to be looked at again.
        """
        node = environment.node
        if now - environment.ready_at < self._limits.fair_wait_s:
            return False
        if node.missing():
            heir = node.planned[0].version if node.planned else None
            # The planned environment counts among its function's holdings, and is no reason against itself.
            if heir is None or not self._has_better_right(heir, environment, now, heir.spec.memory_mib):
                return False
            self.stop(environment, "evicted")
            return True
        if now < self.look_at:
            return False
        heir = self._heir(environment, now)
        if heir is None:
            return False
        self.stop(environment, "evicted")
        self._plan(heir, node)
        self.line.served(heir.function)
        self._requeue(heir)
        return True

    def _heir(self, environment: Environment, now: float) -> VersionState | None:
        """Give the version that may take the place of an environment, of the first few in line.

        Those first in line without the right pass, and keep what they have; or they would hide those behind them who
        have less.
        """
        for _ in range(_HEIRS_LOOKED_AT):
            for version in self.line.heads():
                if not self._takes_place_on(version, environment.node):
                    continue
                if self._has_better_right(version, environment, now, 0):
                    return version
                self.line.served(version.function)
        if not self.line:
            self.look_at = float("inf")
        return None

    def _has_better_right(self, heir: VersionState, environment: Environment, now: float, planned_mib: int) -> bool:
        """Tell whether another function has waited too long, and holds nothing or less even after the change.

        Each such change makes the larger holding smaller, so that two functions do not take turns for ever. The last
        environment of a function goes to one that has nothing, and later, so that those who have more give first; where
        there is room for one alone, each keeps it for `fair_wait_s`.
        """
        loser = environment.version.function
        if loser is heir.function:
            return False
        waited_s = now - next(iter(heir.waiting)).arrived
        held_mib = heir.function.held_mib - planned_mib
        if loser.environments == 1:
            return held_mib == 0 and waited_s >= 2 * self._limits.fair_wait_s
        if waited_s < self._limits.fair_wait_s:
            return False
        return held_mib == 0 or loser.held_mib - environment.spec.memory_mib >= held_mib + heir.spec.memory_mib

    def _takes_place_on(self, version: VersionState, node: NodeState) -> bool:
        pool = self._fleet.nodes.pool(version.request.shape)
        return pool.could_ever_hold(node.slot, version.request.memory_mib) and (
            node.node_id not in version.refused_until
        )

    def _plan(self, version: VersionState, node: NodeState) -> None:
        self._fleet.plan(version, node)
        self.node_settled(node)

    def give_up(self, environment: Environment) -> None:
        """Drop a planned environment: what was promised to it is for whose turn it is."""
        node = environment.node
        self._fleet.remove(environment)
        self.node_settled(node)
        if self.line:
            self.room_changed()

    def _requeue(self, version: VersionState) -> None:
        if version.unmet() <= 0:
            self.line.discard(version)
            return
        self.line.add(version)
        oldest = next(iter(version.waiting))
        self.look_at = min(self.look_at, oldest.arrived + self._limits.fair_wait_s)

    def _least_value(self, node: NodeState) -> tuple[float, int]:
        environment = node.idle_order.first()
        return (float("-inf") if environment is None else self._eviction.value(environment), node.slot)
