"""Admission: what is reserved always fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.errors import NoCapacityError
from lambent_common.machine import MINIMUM_DISK_MIB, default_disk_mib
from lambent_node_agent.admission import CPU_OVERCOMMIT, Admission, Resources, cpu_millis_of
from lambent_node_agent.sandbox.ephemeral_storage import file_mib

SIZES = st.sampled_from([128, 512, 1769, 3000])


@given(st.lists(st.tuples(st.integers(0, 5), SIZES), max_size=40))
def test_reservations_never_exceed_the_capacity(orders: list[tuple[int, int]]) -> None:
    """Memory that is promised twice is an OOM kill of somebody who did nothing wrong."""
    capacity = Resources(memory_mib=4096, cpu_millis=500, disk_mib=200)
    admission = Admission(capacity)
    held: dict[str, int] = {}
    for number, size in orders:
        key = str(number)
        if key in held:
            admission.release(key)
            del held[key]
            continue
        try:
            admission.reserve(key, memory_mib=size, disk_mib=512)
        except NoCapacityError:
            limit = capacity.overcommitted()
            assert (
                sum(held.values()) + size > limit.memory_mib
                or sum(map(cpu_millis_of, held.values())) + cpu_millis_of(size) > limit.cpu_millis
                or 512 * (len(held) + 1) > limit.disk_mib
            )
        else:
            held[key] = size
        assert admission.reserved.memory_mib == sum(held.values()) <= capacity.memory_mib
        assert admission.reserved.cpu_millis <= capacity.cpu_millis * CPU_OVERCOMMIT
        assert admission.reserved.disk_mib == 512 * len(held)


def test_a_refusal_says_what_is_short() -> None:
    """The first question of an operator whose function does not start."""
    admission = Admission(Resources(memory_mib=1000, cpu_millis=1000, disk_mib=10_000))
    with pytest.raises(NoCapacityError, match="1000 memory_mib of 1000 left, and 1024 are needed"):
        admission.reserve("e", memory_mib=1024, disk_mib=512)


def test_a_full_cpu_comes_with_1769_mib() -> None:
    """AWS's ratio, on which functions are sized."""
    assert cpu_millis_of(1769) == 1000
    assert cpu_millis_of(128) == 72


@given(st.integers(0, 1 << 24))
def test_the_default_disk_leaves_room_for_the_stores(free_mib: int) -> None:
    """The file of all /tmp is larger than what it holds, and fits into what is left."""
    disk_mib = default_disk_mib(free_mib)
    assert disk_mib == MINIMUM_DISK_MIB or file_mib(disk_mib) <= max(free_mib // 2, free_mib - 10_240)
