"""Nodes that die, slow down, or are out of reach, and what becomes of what ran on them."""

from __future__ import annotations

import functools
import math
import random
from typing import TYPE_CHECKING

from lambent.errors import NodeLostError
from lambent_scheduler.core import Environment, Phase
from lambent_simulator.faults import Fault, FaultKind

if TYPE_CHECKING:
    from lambent_simulator.node import SimulatedNode
    from lambent_simulator.scenario import Scenario
    from lambent_simulator.simulation import SimulatedCall, Simulation


class Trouble:
    """Brings a scenario's faults about.

    A node that is silent for the length of its lease is given up: its calls fail, and what it runs is forgotten. A
    partitioned node that comes back sooner has its messages delivered late; later, it joins again with the environments
    that it still has, as a node does that has lost its scheduler.

    Attributes:
        cut: Ids of nodes that no message reaches or leaves.
    """

    def __init__(self, simulation: Simulation, scenario: Scenario) -> None:
        self.cut: set[str] = set()
        self._simulation = simulation
        self._lease_s = scenario.lease_s
        source = random.Random(f"faults {scenario.seed}")  # noqa: S311 - a simulation, not secrets
        for fault in scenario.faults:
            for node in source.sample(list(simulation.nodes.values()), fault.nodes):
                simulation.at(fault.start_s, functools.partial(self._begin, fault, node))

    def finished(self, environment: Environment, call: SimulatedCall) -> None:
        """A run ended on a node that is cut off, or whose calls have been given up."""
        node = self._simulation.nodes[environment.node_id]
        environment_id = environment.environment_id
        if environment.call is call:
            if not node.dead:
                node.serving.discard(environment_id)
                node.held_back.append(functools.partial(self._deliver, environment, call))
        elif environment_id in node.serving:
            # The scheduler took the environment back without knowing its call, or will: it waits for this word.
            node.serving.discard(environment_id)
            if not node.cut:
                self._simulation.dispatcher.ready(environment_id, self._simulation.now)

    def _deliver(self, environment: Environment, call: SimulatedCall) -> None:
        if environment.call is call:
            self._simulation.answer(environment, call)

    def _begin(self, fault: Fault, node: SimulatedNode) -> None:
        simulation = self._simulation
        if fault.kind is FaultKind.SLOW:
            node.slowness *= fault.factor
            if fault.duration_s < math.inf:
                simulation.at(simulation.now + fault.duration_s, functools.partial(self._recover, fault, node))
            return
        if node.cut:
            return  # one trouble of this kind at a time
        node.cut = True
        self.cut.add(node.node_id)
        if fault.kind is FaultKind.LOST:
            self._die(node)
        else:
            node.serving |= {
                environment.environment_id
                for environment in node.environments.values()
                if environment.phase in (Phase.STARTING, Phase.BUSY)
            }
        # A machine that died is back when its lease is over at the earliest: its agent begins with a new one.
        least_s = self._lease_s if fault.kind is FaultKind.LOST else 0.0
        if fault.duration_s >= self._lease_s or least_s:
            simulation.at(simulation.now + self._lease_s, functools.partial(self._give_up, node))
        if fault.duration_s < math.inf:
            back_s = max(fault.duration_s, least_s)
            simulation.at(simulation.now + back_s, functools.partial(self._return, node))

    def _recover(self, fault: Fault, node: SimulatedNode) -> None:
        node.slowness /= fault.factor

    def _die(self, node: SimulatedNode) -> None:
        node.dead = True
        for environment in node.environments.values():
            self._simulation.tally.memory.end(environment.spec.memory_mib, self._simulation.now)
        node.environments.clear()
        node.serving.clear()

    def _give_up(self, node: SimulatedNode) -> None:
        node.given_up = True
        node.held_back.clear()
        self._simulation.tally.nodes_lost += 1
        error = NodeLostError(f"node {node.node_id} is lost: its lease has lapsed", dispatched=True)
        self._simulation.dispatcher.node_lost(node.node_id, error, self._simulation.now)

    def _return(self, node: SimulatedNode) -> None:
        node.cut = node.dead = False
        self.cut.discard(node.node_id)
        if node.given_up:
            node.given_up = False
            held = []
            for known in node.environments.values():
                environment = Environment(known.environment_id, known.spec, node.node_id, served=1)
                held.append((environment, known.environment_id in node.serving))
            node.environments = {environment.environment_id: environment for environment, _ in held}
            self._simulation.join(node.node_id, held)
            return
        messages, node.held_back = node.held_back, []
        for deliver in messages:
            deliver()
