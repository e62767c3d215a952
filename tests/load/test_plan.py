"""Plans: what each process gets, and that all shares together are the load."""

from __future__ import annotations

import dataclasses
import heapq

from hypothesis import given
from hypothesis import strategies as st
from tests.load.test_shapes import LOADS

from lambent_load.plan import ClosedLoop, OpenLoop, Plan

PLANS = st.builds(
    Plan,
    target=st.just("null"),
    function=st.sampled_from(["f", "f:live"]),
    payload=st.binary(max_size=8),
    load=LOADS | st.builds(ClosedLoop, callers=st.integers(8, 100)),
    duration_s=st.sampled_from([0.5, 3.0]),
    max_in_flight=st.integers(8, 100),
)


@given(PLANS, st.integers(1, 8))
def test_shares_together_are_the_plan(plan: Plan, processes: int) -> None:
    """No call is sent twice or by nobody, and the bounds are those of all processes together."""
    parts = plan.divided(processes)
    assert sum(part.max_in_flight for part in parts) == plan.max_in_flight
    if isinstance(plan.load, OpenLoop):
        together = heapq.merge(*(part.arrivals() for part in parts), key=lambda arrival: arrival[0])
        assert list(together) == list(plan.arrivals())
    else:
        callers = [part.load.callers for part in parts if isinstance(part.load, ClosedLoop)]
        assert sum(callers) == plan.load.callers
        assert max(callers) - min(callers) <= 1


@given(PLANS, st.integers(1, 8))
def test_plan_comes_back_from_its_line(plan: Plan, processes: int) -> None:
    """It is one line on a generator process's standard input."""
    for part in plan.divided(processes):
        line = part.encode()
        assert b"\n" not in line
        assert dataclasses.asdict(Plan.decode(line)) == dataclasses.asdict(part)
