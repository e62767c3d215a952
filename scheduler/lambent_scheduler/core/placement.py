"""Which node gets a new execution environment.

Filter, sample, rank: the node table keeps, for every shape of request in use, an index of the nodes by what they can
still take. A policy says which few of the feasible ones are compared, and which of these is best
(`policies/placements.py`). Neither a placement nor a refusal looks at all nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lambent_scheduler.core.headroom import Pool, Shape
from lambent_scheduler.core.nodes import NodeState, Resources
from lambent_scheduler.core.policies import LEAST_RECENTLY_USED, PACK_THEN_SPREAD
from lambent_scheduler.core.sampling import positions, scatter

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from lambent_scheduler.core.policies import Eviction, PlacementPolicy
    from lambent_scheduler.core.version import VersionSpec

_RECLAIM_SAMPLE = 2  # as the policies do, and for their reason
# Shapes are few: runtimes times sizes of /tmp in use. Past this the oldest index is dropped, and built again when
# asked for.
_POOLS = 64


class PlacementRequest(NamedTuple):
    """What a new environment needs.

    Attributes:
        shape: Runtime, disk and labels.
        memory_mib: Memory; the CPU share follows from it.
        code_sha256: Nodes that have this package are preferred.
        excluded: Node ids that are not to be chosen.
    """

    shape: Shape
    memory_mib: int
    code_sha256: str
    excluded: Collection[str] = ()


class Placement(NamedTuple):
    """The node chosen."""

    node_id: str
    has_code: bool


class Unplaceable(NamedTuple):
    """No node can take it now.

    Attributes:
        rejections: Number of nodes by reason: `draining`, `runtime`, `labels`, `disk`, `memory`, `cpu`, `excluded`.
            Each node counts once, but an excluded one may also count for what it lacks.
        nodes: Nodes in all.
    """

    rejections: dict[str, int]
    nodes: int


class _Holders:
    """Slots that have a package, with a random pick in constant time."""

    __slots__ = ("_position", "slots")

    def __init__(self) -> None:
        self.slots: list[int] = []
        self._position: dict[int, int] = {}

    def add(self, slot: int) -> None:
        if slot not in self._position:
            self._position[slot] = len(self.slots)
            self.slots.append(slot)

    def remove(self, slot: int) -> None:
        position = self._position.pop(slot)
        last = self.slots.pop()
        if last != slot:
            self.slots[position] = last
            self._position[last] = position


class NodeTable:
    """All nodes, indexed by what they can still take. One writer.

    Args:
        cpu_overcommit: See Limits.
        disk_overcommit: See Limits.
        eviction: Says which idle environments of a node are evicted first.
        policy: Says which node gets a new environment.
    """

    def __init__(
        self,
        cpu_overcommit: float = 1.0,
        disk_overcommit: float = 1.0,
        eviction: Eviction = LEAST_RECENTLY_USED,
        policy: PlacementPolicy = PACK_THEN_SPREAD,
    ) -> None:
        self.policy = policy
        self._eviction = eviction
        self._cpu_overcommit = cpu_overcommit
        self._disk_overcommit = disk_overcommit
        self._by_id: dict[str, NodeState] = {}
        self._slots: list[NodeState | None] = []
        self._free_slots: list[int] = []
        self._pools: dict[Shape, Pool] = {}
        self._holders: dict[str, _Holders] = {}
        self._draining = 0
        self._with_runtime: dict[str, int] = {}
        self._reclaim_dirty: list[NodeState] = []

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[NodeState]:
        return iter(self._by_id.values())

    def get(self, node_id: str) -> NodeState | None:
        """Give a node, or None when it is not known."""
        return self._by_id.get(node_id)

    def node(self, node_id: str) -> NodeState:
        """Give a node. KeyError when it is not known."""
        return self._by_id[node_id]

    # Membership: seldom, and may look at every pool.

    def join(
        self,
        node_id: str,
        capacity: Mapping[str, int],
        labels: Mapping[str, str],
        runtimes: Collection[str],
        *,
        draining: bool = False,
    ) -> NodeState:
        """Add a node, or describe a known one anew; what is reserved on it stays."""
        node = self._by_id.get(node_id)
        if node is None:
            slot = self._free_slots.pop() if self._free_slots else len(self._slots)
            if slot == len(self._slots):
                self._slots.append(None)
            node = NodeState(node_id, slot, self._eviction)
            self._by_id[node_id] = self._slots[slot] = node
        else:
            self._count(node, -1)
        node.describe(capacity, labels, runtimes, self._cpu_overcommit, self._disk_overcommit)
        node.draining = draining
        self._count(node, 1)
        self._update_pools(node)
        return node

    def leave(self, node_id: str) -> NodeState | None:
        """Remove a node; give its last state, or None when it is not known."""
        node = self._by_id.pop(node_id, None)
        if node is None:
            return None
        self._count(node, -1)
        for pool in list(node.pools):
            pool.remove_member(node)
        for code_sha256 in node.packages:
            self._forget_holder(code_sha256, node.slot)
        self._slots[node.slot] = None
        self._free_slots.append(node.slot)
        return node

    def set_draining(self, node: NodeState, draining: bool) -> None:
        """Open or close a node to new environments."""
        self._count(node, -1)
        node.draining = draining
        self._count(node, 1)
        self._update_pools(node)

    def set_foreign(self, node: NodeState, reserved: Mapping[str, int]) -> None:
        """Take a node's own word on what is reserved: what exceeds our part belongs to other schedulers.

        Whether the word was given before or after an environment began or ended that is about to, nobody knows. That
        leaves a range, and what was known before stands as long as it is in it: a start or a stop under way is not
        taken for somebody else's.
        """
        settled, unsettled = node.ordered()

        def others(name: str) -> int:
            most = reserved.get(name, 0) - int(getattr(settled, name))
            return max(0, most - int(getattr(unsettled, name)), min(most, int(getattr(node.foreign, name))))

        node.foreign = Resources(others("memory_mib"), others("cpu_millis"), others("disk_mib"))
        self._changed(node)

    def _count(self, node: NodeState, sign: int) -> None:
        if node.draining:
            self._draining += sign
            return
        for runtime in node.runtimes:
            count = self._with_runtime.get(runtime, 0) + sign
            if count:
                self._with_runtime[runtime] = count
            else:
                del self._with_runtime[runtime]

    def _update_pools(self, node: NodeState) -> None:
        for pool in self._pools.values():
            pool.update_member(node)

    def _forget_holder(self, code_sha256: str, slot: int) -> None:
        holders = self._holders[code_sha256]
        holders.remove(slot)
        if not holders.slots:
            del self._holders[code_sha256]

    # Reservations: at every start and end of an environment.

    def reserve(self, node: NodeState, spec: VersionSpec) -> None:
        """Reserve what one environment takes."""
        node.reserved.add(spec)
        self._changed(node)

    def release(self, node: NodeState, spec: VersionSpec) -> None:
        """Give back what one environment took."""
        node.reserved.subtract(spec)
        self._changed(node)

    def remember_package(self, node: NodeState, code_sha256: str) -> None:
        """Note that a node has, or is about to have, a code package."""
        if code_sha256 in node.packages:
            return
        self._holders.setdefault(code_sha256, _Holders()).add(node.slot)
        forgotten = node.remember_package(code_sha256)
        if forgotten is not None:
            self._forget_holder(forgotten, node.slot)

    def reclaim_changed(self, node: NodeState) -> None:
        """Note that `node.idle` or `node.stopping` changed."""
        if not node.reclaim_dirty:
            node.reclaim_dirty = True
            self._reclaim_dirty.append(node)

    def _changed(self, node: NodeState) -> None:
        slot = node.slot
        for pool in node.pools:
            pool.dirty.add(slot)
        if not node.reclaim_dirty:
            node.reclaim_dirty = True
            self._reclaim_dirty.append(node)

    # Questions.

    def pool(self, shape: Shape) -> Pool:
        """Give the index for a shape, with every change sorted in."""
        pool = self._pools.get(shape)
        if pool is None:
            pool = self._add_pool(shape)
        if pool.dirty:
            pool.refresh()
        return pool

    def _add_pool(self, shape: Shape) -> Pool:
        if len(self._pools) >= _POOLS:
            oldest = self._pools.pop(next(iter(self._pools)))
            for node in oldest.members.values():
                node.pools.remove(oldest)
        pool = self._pools[shape] = Pool(shape)
        for node in self._by_id.values():
            pool.update_member(node)
        return pool

    def sample_feasible(self, request: PlacementRequest, seed: int) -> list[NodeState]:
        """Draw the nodes to be compared, of those that can take the request. Empty when no node can."""
        pool = self.pool(request.shape)
        memory_mib, by_memory, by_cpu = request.memory_mib, pool.by_memory, pool.by_cpu
        first = by_memory.below(memory_mib)
        first_by_cpu = by_cpu.below(memory_mib)
        in_memory = len(by_memory) - first
        count = in_memory + len(by_cpu) - first_by_cpu
        if not count:
            return []
        draw = scatter(seed)
        candidates = []
        for position in self.policy.sample(in_memory, count - in_memory, len(request.excluded), draw):
            if position < in_memory:
                slot = by_memory.slot_at(first + position)
            else:
                slot = by_cpu.slot_at(first_by_cpu + position - in_memory)
            candidates.append(pool.members[slot])
        holders = self._holders.get(request.code_sha256) if self.policy.holders else None
        if holders is not None:
            for position in positions(len(holders.slots), self.policy.holders, 0, draw >> 7):
                slot = holders.slots[position]
                if by_memory.has_room(slot, memory_mib) or by_cpu.has_room(slot, memory_mib):
                    candidates.append(pool.members[slot])
        if request.excluded:
            candidates = [node for node in candidates if node.node_id not in request.excluded]
        return candidates

    def sample_reclaimable(self, request: PlacementRequest, seed: int) -> list[NodeState]:
        """Draw up to two nodes that could take the request if they evicted idle environments. Empty when none could."""
        for node in self._reclaim_dirty:
            node.reclaim_dirty = False
            for pool in node.pools:
                pool.reclaim_dirty.add(node.slot)
        self._reclaim_dirty.clear()
        pool = self.pool(request.shape)
        index = pool.reclaim()
        first = index.below(request.memory_mib)
        count = len(index) - first
        drawn = positions(count, _RECLAIM_SAMPLE, len(request.excluded), scatter(seed))
        nodes = [pool.members[index.slot_at(first + position)] for position in drawn]
        return [node for node in nodes if node.node_id not in request.excluded]

    def rejections(self, request: PlacementRequest) -> Unplaceable:
        """Count the nodes by why they cannot take the request now; from counters, without looking at nodes."""
        pool = self.pool(request.shape)
        open_nodes = len(self._by_id) - self._draining
        with_runtime = self._with_runtime.get(request.shape.runtime, 0)
        reasons = {
            "draining": self._draining,
            "runtime": open_nodes - with_runtime,
            "labels": with_runtime - len(pool.members),
            "disk": len(pool.members) - len(pool.by_memory) - len(pool.by_cpu),
            "memory": pool.by_memory.below(request.memory_mib),
            "cpu": pool.by_cpu.below(request.memory_mib),
            "excluded": len(request.excluded),
        }
        return Unplaceable({reason: count for reason, count in reasons.items() if count}, len(self._by_id))


def place(table: NodeTable, request: PlacementRequest, seed: int) -> Placement | Unplaceable:
    """Choose the node for a new execution environment.

    Pure: the same table, request and seed give the same answer. Cost does not grow with the number of nodes, beyond the
    logarithm.

    Args:
        table: The nodes; not changed.
        request: What the environment needs.
        seed: Chooses which feasible nodes are compared.

    Returns:
        A Placement; or, only when no node can take it, Unplaceable with the number of nodes rejected for each reason.
    """
    candidates = table.sample_feasible(request, seed)
    if not candidates:
        return table.rejections(request)
    rank = table.policy.rank
    best = candidates[0] if len(candidates) == 1 else min(candidates, key=lambda node: rank(node, request))
    return Placement(best.node_id, request.code_sha256 in best.packages)
