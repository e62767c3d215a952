"""Indexes of nodes by the largest environment that they can still take."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sortedcontainers import SortedList

from lambent_scheduler.core.nodes import memory_by_cpu

if TYPE_CHECKING:
    from lambent_scheduler.core.nodes import NodeState, Resources

# An entry is one integer, headroom above slot: integers compare several times faster than tuples.
_SLOT_BITS = 24
_SLOT_MASK = (1 << _SLOT_BITS) - 1


class Shape(NamedTuple):
    """What of a request decides which nodes come into question at all.

    Attributes:
        runtime: For example `python3.11`.
        disk_mib: Size of `/tmp`.
        labels: Labels that a node must have.
    """

    runtime: str
    disk_mib: int
    labels: frozenset[tuple[str, str]] = frozenset()


class HeadroomIndex:
    """Slots ordered by headroom in MiB."""

    __slots__ = ("_key_of", "_keys")

    def __init__(self) -> None:
        self._keys = SortedList()
        self._key_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._key_of)

    def put(self, slot: int, headroom_mib: int) -> None:
        """Set the headroom of a slot. It may be negative."""
        key = headroom_mib << _SLOT_BITS | slot
        old = self._key_of.get(slot)
        if old == key:
            return
        if old is not None:
            self._keys.remove(old)
        self._keys.add(key)
        self._key_of[slot] = key

    def remove(self, slot: int) -> None:
        """Take a slot out, if it is inside."""
        old = self._key_of.pop(slot, None)
        if old is not None:
            self._keys.remove(old)

    def below(self, memory_mib: int) -> int:
        """Count the slots with less headroom. The others stand at the positions from this number on."""
        return int(self._keys.bisect_left(memory_mib << _SLOT_BITS))

    def slot_at(self, position: int) -> int:
        """Give the slot at a position, in order of headroom."""
        return int(self._keys[position]) & _SLOT_MASK

    def has_room(self, slot: int, memory_mib: int) -> bool:
        """Tell whether a slot is inside and has so much headroom."""
        key = self._key_of.get(slot)
        return key is not None and key >= memory_mib << _SLOT_BITS

    def largest(self) -> int:
        """Give the greatest headroom in MiB; 0 when empty."""
        return int(self._keys[-1]) >> _SLOT_BITS if self._key_of else 0


def _headroom(resources: Resources) -> int:
    return min(resources.memory_mib, memory_by_cpu(resources.cpu_millis))


class Pool:
    """The nodes of one shape: not draining, with the runtime and the labels.

    An environment's CPU is a fixed share of its memory, so that memory and CPU together come down to one number: the
    memory of the largest environment that both still admit. A node stands in the index of the resource that binds it,
    so that each refusal has one reason, and a node without disk for the shape stands in none. Changes are noted at once
    and looked at when the next question comes: a node that changed ten times in between is sorted in once.

    Attributes:
        members: Nodes of this shape, by slot.
        by_memory: Those whose memory binds.
        by_cpu: Those whose CPU binds.
        dirty: Slots whose free resources changed.
        reclaim_dirty: Slots whose free, idle or stopping resources changed.
    """

    __slots__ = ("_reclaim", "_total", "by_cpu", "by_memory", "dirty", "members", "reclaim_dirty", "shape")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.members: dict[int, NodeState] = {}
        self.by_memory = HeadroomIndex()
        self.by_cpu = HeadroomIndex()
        self._reclaim = HeadroomIndex()
        self._total = HeadroomIndex()
        self.dirty: set[int] = set()
        self.reclaim_dirty: set[int] = set()

    def update_member(self, node: NodeState) -> None:
        """Take a node in, look at it again, or take it out, by what its record says now."""
        shape, slot = self.shape, node.slot
        belongs = not node.draining and shape.runtime in node.runtimes and shape.labels <= node.labels
        if not belongs:
            self.remove_member(node)
            return
        if slot not in self.members:
            self.members[slot] = node
            node.pools.append(self)
        if node.capacity.disk_mib >= shape.disk_mib:
            self._total.put(slot, _headroom(node.capacity))
        else:
            self._total.remove(slot)
        self.dirty.add(slot)
        self.reclaim_dirty.add(slot)

    def remove_member(self, node: NodeState) -> None:
        """Take a node out, if it is inside."""
        if self.members.pop(node.slot, None) is None:
            return
        node.pools.remove(self)
        for index in (self.by_memory, self.by_cpu, self._reclaim, self._total):
            index.remove(node.slot)
        self.dirty.discard(node.slot)
        self.reclaim_dirty.discard(node.slot)

    def refresh(self) -> None:
        """Sort in the nodes that changed; before any look at `by_memory` and `by_cpu`."""
        for slot in self.dirty:
            node = self.members[slot]
            free = node.free()
            by_cpu = memory_by_cpu(free.cpu_millis)
            if free.disk_mib < self.shape.disk_mib:
                self.by_memory.remove(slot)
                self.by_cpu.remove(slot)
            elif by_cpu < free.memory_mib:
                self.by_memory.remove(slot)
                self.by_cpu.put(slot, by_cpu)
            else:
                self.by_cpu.remove(slot)
                self.by_memory.put(slot, free.memory_mib)
        self.dirty.clear()

    def reclaim(self) -> HeadroomIndex:
        """Give the nodes by the headroom that they would have without their idle environments."""
        for slot in self.reclaim_dirty:
            reclaimable = self.members[slot].reclaimable()
            if reclaimable.disk_mib >= self.shape.disk_mib:
                self._reclaim.put(slot, _headroom(reclaimable))
            else:
                self._reclaim.remove(slot)
        self.reclaim_dirty.clear()
        return self._reclaim

    def largest_possible_mib(self) -> int:
        """Give the memory of the largest environment that an empty node could take; 0 when no node has the disk."""
        return self._total.largest()

    def could_ever_hold(self, slot: int, memory_mib: int) -> bool:
        """Tell whether the node, were it empty, could take such an environment."""
        return self._total.has_room(slot, memory_mib)
