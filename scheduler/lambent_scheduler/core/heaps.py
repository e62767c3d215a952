"""A heap whose items may leave from the middle and may move back, at no cost until they reach the top."""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Dead entries that are tolerated before the heap is rebuilt; below it a rebuild costs more than it frees.
_SLACK = 64


class LazyHeap(Generic[T]):
    """Items by a key that grows while they are inside.

    An item stands in the heap under the key that it had when it was added: a lower bound. What reaches the top is
    looked at again and moved back when its key has grown. So the key may change at every invocation, and nothing is
    paid for it but one step when the item comes to the top. An item whose key has become smaller is found late: when
    the key that it stands under is the smallest.

    Attributes:
        members: The items inside, each with the number of its live entry. Read only; `in` is the cheap test.
    """

    __slots__ = ("_heap", "_key", "_sequence", "members")

    def __init__(self, key: Callable[[T], float | None]) -> None:
        """Order items by `key`; an item whose key is None has left by itself, and may be added again."""
        self._key = key
        self._heap: list[tuple[float, int, T]] = []
        self._sequence = 0
        self.members: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self.members)

    def add(self, item: T) -> None:
        """Put an item in. It must not be inside, and must have a key."""
        key = self._key(item)
        assert key is not None
        self._sequence += 1
        self.members[item] = self._sequence
        heappush(self._heap, (key, self._sequence, item))

    def discard(self, item: T) -> None:
        """Take an item out, if it is inside."""
        if self.members.pop(item, None) is not None and len(self._heap) > 2 * len(self.members) + _SLACK:
            self._heap = [entry for entry in self._heap if self.members.get(entry[2]) == entry[1]]
            heapify(self._heap)

    def first(self) -> T | None:
        """Give the item with the smallest key, of equal ones the one added first; None when there is none."""
        heap = self._heap
        while heap:
            bound, sequence, item = heap[0]
            if self.members.get(item) != sequence:
                heappop(heap)
                continue
            key = self._key(item)
            if key is None:
                heappop(heap)
                del self.members[item]
            elif key > bound:
                heapreplace(heap, (key, sequence, item))
            else:
                return item
        return None
