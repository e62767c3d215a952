"""How the wait of an environment's first call is divided into phases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.specs import make_spec
from tests.core.test_dispatch import Shell

from lambent_scheduler.core.cold_start import ColdStart, EnvironmentStart, cold_start

# Few values, so that ties and nothing at all are likely.
_times = st.sampled_from((0.0, 0.001, 0.5, 1.0, 3.0))
_parts = st.sampled_from((0, 1, 400, 1_000, 1_000_000, 2**64 - 1))
_starts = st.builds(
    EnvironmentStart, _times, fetch_code_us=_parts, sandbox_us=_parts, runtime_us=_parts, init_us=_parts
)


@given(_starts, _times, _times, _times)
def test_phases_add_up_to_the_wait_whatever_the_node_says(
    start: EnvironmentStart, ready_s: float, arrived: float, waited_s: float
) -> None:
    """Who adds the phases must get what the caller waited; a node's word makes none longer than it says."""
    waited_us = round(waited_s * 1e6)
    phases = cold_start(start, ready_at=start.ordered_at + ready_s, arrived=arrived, waited_us=waited_us)
    assert sum(phases) == waited_us
    assert min(phases) >= 0
    assert phases.fetch_code_us <= start.fetch_code_us
    assert phases.sandbox_us <= start.sandbox_us
    assert phases.runtime_us <= start.runtime_us
    assert phases.init_us <= start.init_us


START = EnvironmentStart(10.0, fetch_code_us=100_000, sandbox_us=200_000, runtime_us=300_000, init_us=400_000)


@pytest.mark.parametrize(
    ("arrived", "ready_at", "bound_at", "phases"),
    [
        pytest.param(
            8.0, 11.5, 11.5, (2_000_000, 500_000, 100_000, 200_000, 300_000, 400_000), id="waited-for-memory-first"
        ),
        pytest.param(10.0, 11.0, 11.0, (0, 0, 100_000, 200_000, 300_000, 400_000), id="no-time-on-the-way"),
        pytest.param(10.5, 11.0, 11.0, (0, 0, 0, 0, 100_000, 400_000), id="came-while-the-runtime-started"),
        pytest.param(12.0, 11.0, 12.0, (0, 0, 0, 0, 0, 0), id="found-it-idle"),
        pytest.param(
            10.0, 11.5, 12.5, (1_000_000, 500_000, 100_000, 200_000, 300_000, 400_000), id="held-by-another-meanwhile"
        ),
    ],
)
def test_phases_of_a_call(arrived: float, ready_at: float, bound_at: float, phases: tuple[int, ...]) -> None:
    """A call has waited for the part of the start that came after it; the rest of its wait is the queue's."""
    waited_us = round((bound_at - arrived) * 1e6)
    assert cold_start(START, ready_at=ready_at, arrived=arrived, waited_us=waited_us) == ColdStart(*phases)


def test_a_start_in_place_of_a_refused_one_counts_from_the_first_order() -> None:
    """Trying nodes is placement, not queueing; a start that is ordered later, once there is room, begins anew."""
    shell, spec = Shell(nodes=2), make_spec()
    shell.wait(spec)
    (first,) = shell.starts()
    first.start = EnvironmentStart(0.0)
    shell.dispatcher.stopped(first.environment_id, refused=True, error=None, now=0.25)
    (second,) = shell.starts()
    assert second.start is first.start
    shell.dispatcher.stopped(second.environment_id, refused=True, error=None, now=0.5)
    assert shell.starts() == []
    shell.dispatcher.tick(1.25)
    (third,) = shell.starts()
    assert third.start is None
