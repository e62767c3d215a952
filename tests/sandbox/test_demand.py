"""A pool's size follows the starts: no smaller than the last burst, within its bounds, and gone when they end."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_node_agent.sandbox.demand import BLANK_MIB, HALF_LIFE_S, MAX_SIZE, Bounds, Demand

MAKING_S = 0.01

# Ties and long silences are as likely as anything between.
gaps = st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.2, 1.0, 29.0, 3600.0]), max_size=120)
makings = st.sampled_from([0.0, MAKING_S, 0.2, 5.0])
bounds = st.builds(lambda least, more: Bounds(least, least + more), st.integers(0, 10), st.integers(0, 100))
unbounded = Bounds(0, 10**6)


def after(starts: list[float], making_s: float = MAKING_S) -> Demand:
    """The demand after starts with these times between them."""
    demand, now = Demand(), 0.0
    for gap in starts:
        now += gap
        demand = demand.started(now, making_s)
    return demand


@given(gaps, makings, bounds, st.floats(0, 1e6))
def test_a_pool_stays_within_its_bounds(starts: list[float], making_s: float, bound: Bounds, later_s: float) -> None:
    """Whatever is asked for, however long a sandbox takes."""
    demand = after(starts, making_s)
    assert bound.least <= demand.size(demand.at + later_s, bound) <= bound.most


@given(gaps, makings, st.integers(1, 100))
def test_a_burst_that_comes_again_at_once_finds_a_sandbox_each(starts: list[float], making_s: float, n: int) -> None:
    """What was asked for at one moment is what the pool is made for."""
    demand = after([*starts, 10.0, *[0.0] * (n - 1)], making_s)
    assert demand.size(demand.at, unbounded) >= n


@given(gaps, makings)
def test_a_pool_only_shrinks_while_nothing_starts(starts: list[float], making_s: float) -> None:
    """Down to what the operator wants kept."""
    demand, bound = after(starts, making_s), Bounds(2, 1000)
    sizes = [demand.size(demand.at + seconds, bound) for seconds in (0, 1, 10, 100, 10 * HALF_LIFE_S)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == bound.least


@given(gaps, makings, st.integers(0, 120), st.floats(0, 100))
def test_one_start_more_never_asks_for_less(starts: list[float], making_s: float, place: int, later_s: float) -> None:
    """Also one that comes between the others."""
    fewer, more = after(starts, making_s), after([*starts[:place], 0.0, *starts[place:]], making_s)
    now = fewer.at + later_s
    assert more.size(now, unbounded) >= fewer.size(now, unbounded)


@given(st.integers(1, 100))
def test_starts_far_apart_need_one(count: int) -> None:
    """The pool is filled again long before the next one."""
    demand = after([20.0] * count)
    assert demand.size(demand.at, unbounded) == 1


@pytest.mark.parametrize(("memory_mib", "most"), [(0, 3), (128, 3), (8192, 102), (262_144, 100)])
def test_bounds_follow_the_memory_for_functions(memory_mib: int, most: int) -> None:
    """Between what the operator wants kept, and as many as start in a second."""
    found = Bounds.of(3, memory_mib)
    assert found == Bounds(3, min(most, MAX_SIZE))
    assert found.most * BLANK_MIB <= max(3 * BLANK_MIB, memory_mib * 0.05)


def missed(rate_per_s: float, seed: int) -> float:
    """Simulate a pool under starts at random times, and give the share of those after 10 s that find it empty."""
    world = random.Random(seed)
    demand, bound, pool, making = Demand(), Bounds(2, 100), 2, 0
    starts, misses, now = 0, 0, 0.0
    events: list[tuple[float, str]] = [(0.0, "start")]
    while now < 60:
        now, event = heapq.heappop(events)
        if event == "made":
            making, pool = making - 1, pool + 1
        else:
            demand = demand.started(now, MAKING_S)
            starts, misses = starts + (now > 10), misses + (now > 10 and not pool)
            pool = max(0, pool - 1)
            heapq.heappush(events, (now + world.expovariate(rate_per_s), "start"))
        while making < 2 and pool + making < demand.size(now, bound):
            making += 1
            heapq.heappush(events, (now + 0.03 + MAKING_S, "made"))
    return misses / starts


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate_per_s", [1, 5, 20, 40])
def test_starts_at_random_times_hardly_ever_find_an_empty_pool(rate_per_s: float, seed: int) -> None:
    """As long as two cores can make as many as are asked for: one in a hundred."""
    assert missed(rate_per_s, seed) <= 0.01
