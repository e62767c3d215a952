"""The benchmark of the scheduler's decisions: its tables are as full as it says, and a missing trace is a miss."""

from __future__ import annotations

from pathlib import Path

from benchmarks.core import _Placements, _Refusals, simulation_row
from tests.traces.files import write_trace


def test_what_is_placed_and_refused_is_counted_as_such() -> None:
    """Every placement finds a node, every refusal names each of them: both are asserted as they are measured."""
    _Placements(5).run(300)
    _Refusals(5).run(50)


def test_the_simulator_is_measured_on_a_trace_that_is_there(tmp_path: Path) -> None:
    """Without one the row says which, and is missed."""
    missing = simulation_row(tmp_path / "nowhere")
    assert not missing.reached
    assert "nowhere: is no folder" in missing.verdict
    assert (simulation_row(write_trace(tmp_path, {"f": [1]})).value or 0) > 0
