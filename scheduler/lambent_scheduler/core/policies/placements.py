"""Which of the nodes that can take a new environment gets it. None of the policies looks at all of them.

A node whose last start failed comes last in all, or a sick node, being always empty, would take everything. So that
there is another one to take, all look at some random nodes, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent_scheduler.core.nodes import memory_by_cpu
from lambent_scheduler.core.sampling import positions
from lambent_scheduler.core.version import cpu_millis

if TYPE_CHECKING:
    from collections.abc import Collection

    from lambent_scheduler.core.nodes import NodeState
    from lambent_scheduler.core.placement import PlacementRequest
    from lambent_scheduler.core.policies.interfaces import Rank

# Two random choices bring nearly all of what looking at every node would (Mitzenmacher, "The Power of Two Choices in
# Randomized Load Balancing", 2001); a third adds little.
_CHOICES = 2
_HOLDERS = 2
_STARTING_MILLIS = 1000


class PackThenSpread:
    """Fills nodes up one after the other as long as each environment has its cores, then takes the least loaded one.

    A start counts as a core, so that a burst of starts is spread. At low load this leaves large gaps for large
    functions; at high load it keeps everybody's wait short. Between two nodes with cores to spare the one that has the
    code wins: fetching it is the dearest part of a start. Where all cores are spoken for, load counts before code, so
    that a burst of one function spreads. After Kaffes et al., "Hermod: Principled and Practical Scheduling for
    Serverless Functions", SoCC 2022.
    """

    holders = _HOLDERS

    def sample(self, by_memory: int, by_cpu: int, excluded: int, draw: int) -> Collection[int]:
        """See PlacementPolicy."""
        return _ends(by_memory, by_cpu, excluded, draw, at_front=True)

    def rank(self, node: NodeState, request: PlacementRequest) -> Rank:
        """See PlacementPolicy."""
        load = _load(node, request)
        if load > 1.0:
            return (node.failures > 0, True, False, load, node.slot)
        return (node.failures > 0, False, request.code_sha256 not in node.packages, -load, node.slot)


class TightPacking:
    """Takes the node on which least room would be left: best fit.

    For clusters whose machines are shut down when they are empty, or with functions nearly as large as a node.
    """

    holders = 0

    def sample(self, by_memory: int, by_cpu: int, excluded: int, draw: int) -> Collection[int]:
        """See PlacementPolicy."""
        return _ends(by_memory, by_cpu, excluded, draw, at_front=True)

    def rank(self, node: NodeState, request: PlacementRequest) -> Rank:  # noqa: ARG002 - it takes the same everywhere
        """See PlacementPolicy."""
        free = node.free()
        return (node.failures > 0, False, False, min(free.memory_mib, memory_by_cpu(free.cpu_millis)), node.slot)


class LeastLoaded:
    """Takes the least loaded of the nodes with most room and of some others: environments have few neighbours."""

    holders = 0

    def sample(self, by_memory: int, by_cpu: int, excluded: int, draw: int) -> Collection[int]:
        """See PlacementPolicy."""
        return _ends(by_memory, by_cpu, excluded, draw, at_front=False)

    def rank(self, node: NodeState, request: PlacementRequest) -> Rank:
        """See PlacementPolicy."""
        return (node.failures > 0, False, False, _load(node, request), node.slot)


class TwoChoices:
    """Takes the less loaded of two random nodes: as even as the least loaded one, and schedulers do not collide."""

    holders = 0

    def sample(self, by_memory: int, by_cpu: int, excluded: int, draw: int) -> Collection[int]:
        """See PlacementPolicy."""
        return positions(by_memory + by_cpu, _CHOICES, excluded, draw)

    def rank(self, node: NodeState, request: PlacementRequest) -> Rank:
        """See PlacementPolicy."""
        return (node.failures > 0, False, False, _load(node, request), node.slot)


class CodeFirst:
    """Takes a node that has the code, however loaded it is, and the less loaded one of two: for large packages."""

    holders = _HOLDERS

    def sample(self, by_memory: int, by_cpu: int, excluded: int, draw: int) -> Collection[int]:
        """See PlacementPolicy."""
        return positions(by_memory + by_cpu, _CHOICES, excluded, draw)

    def rank(self, node: NodeState, request: PlacementRequest) -> Rank:
        """See PlacementPolicy."""
        return (node.failures > 0, False, request.code_sha256 not in node.packages, _load(node, request), node.slot)


def _ends(by_memory: int, by_cpu: int, excluded: int, draw: int, *, at_front: bool) -> Collection[int]:
    """Give the nodes with least room in each of the two lists, or those with most, and random ones."""
    wanted, count = 1 + excluded, by_memory + by_cpu
    if at_front:
        ends = {*range(min(wanted, by_memory)), *range(by_memory, min(by_memory + wanted, count))}
    else:
        ends = {*range(max(0, by_memory - wanted), by_memory), *range(max(by_memory, count - wanted), count)}
    return ends.union(positions(count, _CHOICES, excluded, draw))


def _load(node: NodeState, request: PlacementRequest) -> float:
    """Give the share of the machine's cores that is spoken for, the new environment included.

    What is starting counts as a core: an init runs at full speed, whatever the share of its function is.
    """
    shares = node.reserved.cpu_millis + node.foreign.cpu_millis + cpu_millis(request.memory_mib)
    return (shares + node.starting * _STARTING_MILLIS) / node.cores_millis
