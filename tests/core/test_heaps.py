"""The lazy heap against a plain recount."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lambent_scheduler.core.heaps import LazyHeap

_STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "discard", "grow", "vanish"]), st.integers(0, 5), st.integers(0, 3)), max_size=300
)


@given(_STEPS)
def test_first_is_the_item_with_the_smallest_key(steps: list[tuple[str, int, int]]) -> None:
    """Keys that grow and items that leave from the middle never hide the one whose time has come."""
    keys: dict[int, float] = {}
    heap: LazyHeap[int] = LazyHeap(keys.get)
    for step, item, amount in steps:
        if step == "add" and item not in heap.members:
            keys[item] = max(keys.get(item, 0), amount)
            heap.add(item)
        elif step == "discard":
            heap.discard(item)
        elif step == "grow" and item in keys:
            keys[item] += amount
        elif step == "vanish":
            keys.pop(item, None)
        alive = [keys[item] for item in heap.members if item in keys]
        first = heap.first()
        assert (None if first is None else keys[first]) == min(alive, default=None)
        assert first is None or first in heap.members


def test_dead_entries_do_not_pile_up() -> None:
    """A million calls that were served before their deadline leave no million entries behind."""
    heap: LazyHeap[int] = LazyHeap(float)
    for item in range(10_000):
        heap.add(item)
        heap.discard(item)
    assert len(heap._heap) < 100
