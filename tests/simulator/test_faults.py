"""Faults, as they are written and as they come about."""

from __future__ import annotations

import math

import pytest
from tests.simulator.loads import make_function, make_trace

from lambent_common.traces import Arrivals
from lambent_simulator import Fault, FaultKind, Scenario, ScenarioError, simulate
from lambent_simulator.figures import Report


def run(fault: str, *counts: int, nodes: int = 1, duration_ms: float = 1000) -> Report:
    """Run a function that is called so often in each minute, always at its start."""
    scenario = Scenario(nodes=nodes, arrivals=Arrivals.START, call_ms=0, faults=(Fault.parse(fault),))
    function = make_function(counts, duration_ms=duration_ms)
    return simulate(make_trace(function, minutes=len(counts)), scenario).report


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("lost:3@1h+10m", Fault(FaultKind.LOST, 3, 3600, 600)),
        ("partitioned:1@90", Fault(FaultKind.PARTITIONED, 1, 90, math.inf)),
        ("slow:5@90s+2mx4", Fault(FaultKind.SLOW, 5, 90, 120, 4)),
        ("slow:5@0.5m", Fault(FaultKind.SLOW, 5, 30)),
    ],
)
def test_faults_are_read(text: str, fault: Fault) -> None:
    """What is written in one word on the command line."""
    assert Fault.parse(text) == fault


@pytest.mark.parametrize("text", ["lost", "gone:1@5", "lost:1@5x3", "lost:x@5", "lost:1@5+", "lost:-1@5", ""])
def test_what_is_no_fault_is_refused(text: str) -> None:
    """A typing error is not taken for a calm day."""
    with pytest.raises(ValueError, match="for example lost:3@1h"):
        Fault.parse(text)


def test_more_nodes_than_there_are_cannot_fail() -> None:
    """Nor can they be drawn."""
    with pytest.raises(ScenarioError, match="2 nodes are to be lost, and there are 1"):
        Scenario(nodes=1, faults=(Fault.parse("lost:2@1"),))


def test_a_lost_node_fails_its_calls_and_comes_back_empty() -> None:
    """The call of 0 s runs for a second and dies with its node; the one of 60 s finds it back, and nothing on it."""
    report = run("lost:1@0.5+20", 1, 1)
    assert (report.served, report.failed, report.causes) == (1, 1, {"NodeLostError": 1})
    assert (report.cold_starts, report.environments_created, report.nodes_lost) == (2, 2, 1)


def test_calls_to_a_dead_node_fail_when_its_lease_is_over() -> None:
    """Until then nobody knows: at 60 s it has been dead for a second, with an idle environment on it."""
    report = run("lost:1@59", 1, 1)
    assert report.causes == {"NodeLostError": 1}
    assert report.simulated_s == 120


def test_a_short_partition_only_delays() -> None:
    """The answer of 1.004 s is heard at 3.5 s, and nothing is lost."""
    report = run("partitioned:1@0.5+3", 1, 1)
    assert (report.served, report.failed, report.nodes_lost, report.cold_starts) == (2, 0, 0, 1)
    assert report.latency_p99_ms == pytest.approx(3500, rel=0.002)


def test_after_a_long_partition_the_environments_are_taken_back() -> None:
    """The first call counts as failed, though it ran; the second finds its environment warm."""
    report = run("partitioned:1@0.5+20", 1, 1)
    assert (report.served, report.failed, report.nodes_lost) == (1, 1, 1)
    assert (report.cold_starts, report.environments_created) == (1, 1)


def test_an_environment_that_is_taken_back_busy_serves_when_its_run_is_over() -> None:
    """A run of 50 s is over when the next call comes at 60 s; one of 70 s is not, and that call gets another one."""
    report = run("partitioned:1@1+20", 1, 1, 1, duration_ms=50_000)
    assert (report.served, report.failed, report.environments_created) == (2, 1, 1)
    overlapping = run("partitioned:1@1+20", 1, 1, duration_ms=70_000)
    assert (overlapping.served, overlapping.failed, overlapping.environments_created) == (1, 1, 2)


def test_what_begins_on_a_slow_node_takes_longer() -> None:
    """Four times one second, and then one second again."""
    report = run("slow:1@30+60x4", 1, 1, 1)
    assert report.slowdown_p99 == pytest.approx(4.0, rel=0.002)
    assert report.slowdown_p50 == pytest.approx(1.004, rel=0.002)


def test_a_start_on_a_slow_node_takes_longer() -> None:
    """Four times 4 ms, before four times one second."""
    report = run("slow:1@0x4", 1)
    assert report.queue_p50_ms == pytest.approx(16, rel=0.002)
    assert report.latency_p50_ms == pytest.approx(4016, rel=0.002)
