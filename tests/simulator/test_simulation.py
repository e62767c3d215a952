"""The simulator against answers computed by hand, and against rules that hold in every run."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulator.loads import make_function, make_trace

from lambent_common.traces import Arrivals, Durations, Trace
from lambent_simulator import EVICTIONS, PLACEMENTS, POLICIES, Fault, FaultKind, Scenario
from lambent_simulator.simulation import Simulation, simulate

START = Arrivals.START


def test_one_function_by_hand() -> None:
    """Calls at 0, 60 and 780 s, of a second each; an environment idles for 600 s at most, a start takes 4 ms.

    The first call starts an environment, the second finds it, and at 661 s it is stopped: idle since 61 s. It takes
    5 ms to be gone. The third starts another, which is there until the end at 840 s. 661.005 s and 60 s, less the
    three seconds of runs, are wasted.
    """
    function = make_function([1, 1, *[0] * 11, 1])
    outcome = simulate(make_trace(function, minutes=14), Scenario(nodes=1, arrivals=START, call_ms=0))
    report = outcome.report
    assert (report.invocations, report.served, report.cold_starts) == (3, 3, 2)
    assert report.cold_start_share == pytest.approx(2 / 3)
    assert (report.environments_created, report.peak_environments, report.peak_memory_mib) == (2, 1, 128)
    assert report.used_memory_mib_s == pytest.approx(3 * 128)
    assert report.wasted_memory_mib_s == pytest.approx((661.005 + 60 - 3) * 128)
    assert report.simulated_s == 840
    assert report.slowdown_p50 == pytest.approx(1.004, rel=0.001)
    assert report.latency_p50_ms == pytest.approx(1004, rel=0.001)
    assert (report.queued, report.throttled, report.refused, report.failed) == (2, 0, 0, 0)
    assert report.queue_p50_ms == pytest.approx(4, rel=0.001)
    (figures,) = outcome.functions
    assert figures.slowdown_mean == pytest.approx((1.004 + 1 + 1.004) / 3)
    assert report.fairness == pytest.approx(1)


def test_two_functions_that_share_the_room_of_one_by_hand() -> None:
    """The second waits for the first's second, 4 ms of its start, 5 ms for its end and 4 ms for its own start."""
    one, other = make_function([1], name="one"), make_function([1], name="other")
    scenario = Scenario(nodes=1, memory_mib=128, arrivals=START, call_ms=0)
    outcome = simulate(make_trace(one, other, minutes=1), scenario)
    assert [figures.slowdown_mean for figures in outcome.functions] == pytest.approx([1.004, 2.013])
    assert (outcome.report.environments_evicted, outcome.report.peak_environments) == (1, 1)
    assert outcome.report.fairness == pytest.approx((1.004 + 2.013) ** 2 / (2 * (1.004**2 + 2.013**2)))


def test_calls_over_the_concurrency_are_throttled_and_those_without_room_refused() -> None:
    """Two calls at once: of one that may run, the other is throttled; with room for one, the other waits 10 s."""
    trace = make_trace(make_function([2], duration_ms=20_000), minutes=1)
    throttled = simulate(trace, Scenario(nodes=1, arrivals=START, account_concurrency=1)).report
    assert (throttled.served, throttled.throttled, throttled.refused) == (1, 1, 0)
    refused = simulate(trace, Scenario(nodes=1, memory_mib=128, arrivals=START)).report
    assert (refused.served, refused.throttled, refused.refused) == (1, 0, 1)
    assert refused.causes == {"NoCapacityError": 1}


def test_a_call_costs_what_it_costs_beside_its_run() -> None:
    """For short runs that is most of it."""
    trace = make_trace(make_function([1, 1, 1], duration_ms=1), minutes=3)
    report = simulate(trace, Scenario(nodes=1, arrivals=START, call_ms=0.5)).report
    assert report.latency_p50_ms == pytest.approx(1.5, rel=0.001)


def test_starts_take_as_long_as_is_drawn() -> None:
    """Between the ends of the given percentiles, each its own time."""
    trace = make_trace(make_function([200]), minutes=1)
    slow = Durations((0.0, 1.0), (100.0, 1000.0))
    report = simulate(trace, Scenario(nodes=20, arrivals=START, cold_start=slow)).report
    assert report.queue_p50_ms == pytest.approx(316, rel=0.3)
    assert report.queue_p99_ms is not None
    assert report.queue_p99_ms > 900


def test_a_window_is_that_part_of_the_trace() -> None:
    """Minutes 1 and 2 of four."""
    trace = make_trace(make_function([8, 4, 2, 1]), minutes=4)
    report = simulate(trace, Scenario(first_minute=1, minutes=2)).report
    assert (report.invocations, report.simulated_s >= 120) == (6, True)


def test_an_environment_that_was_started_ahead_is_no_cold_start() -> None:
    """A call every 20 minutes, which a histogram learns; the fixed keep-alive of 10 minutes starts for each."""
    trace = make_trace(make_function(([1] + [0] * 19) * 30), minutes=600)
    fixed, learnt = (simulate(trace, Scenario(nodes=1, policy=name, arrivals=START)).report for name in POLICIES[:2])
    assert fixed.cold_starts == fixed.environments_created == 30
    assert learnt.cold_starts < 20
    assert learnt.wasted_memory_mib_s < 2 * fixed.wasted_memory_mib_s


def test_what_differs_in_the_cluster_alone_has_the_same_load() -> None:
    """Policies are compared by the same calls with the same run times."""
    trace = make_trace(make_function([30] * 5), make_function([7] * 5, name="g"), minutes=5)
    few = simulate(trace, Scenario(nodes=1, memory_mib=512, seed=3)).report
    many = simulate(trace, Scenario(nodes=9, memory_mib=4096, seed=3)).report
    assert few.cold_starts != many.cold_starts
    assert (few.invocations, few.used_memory_mib_s) == (many.invocations, pytest.approx(many.used_memory_mib_s))


counts = st.lists(st.integers(0, 12), min_size=4, max_size=4)
functions = st.builds(
    make_function,
    counts,
    duration_ms=st.sampled_from([1, 300, 8_000, 40_000]),
    memory_mib=st.sampled_from([128, 256, 1000]),
)
loads = st.lists(functions, min_size=1, max_size=4).map(
    lambda made: make_trace(
        *(dataclasses.replace(one, name=f"f{number}") for number, one in enumerate(made)), minutes=4
    )
)
faults = st.builds(
    Fault,
    st.sampled_from(FaultKind),
    st.integers(1, 2),
    st.sampled_from([0.0, 10.0, 60.0, 100.0]),
    st.sampled_from([0.1, 3.0, 5.0, 30.0, float("inf")]),
)
scenarios = st.builds(
    Scenario,
    nodes=st.integers(2, 3),
    memory_mib=st.sampled_from([128, 512, 2048]),
    seed=st.integers(0, 100),
    arrivals=st.sampled_from(Arrivals),
    account_concurrency=st.sampled_from([None, 3]),
    policy=st.sampled_from(POLICIES),
    eviction=st.sampled_from(EVICTIONS),
    placement=st.sampled_from(list(PLACEMENTS)),
    keep_alive_s=st.sampled_from([None, 20.0]),
    cold_start=st.sampled_from([Durations.constant(4), Durations((0.0, 1.0), (10.0, 5_000.0))]),
    faults=st.lists(faults, max_size=3).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(loads, scenarios)
def test_every_call_ends_once_and_memory_adds_up(trace: Trace, scenario: Scenario) -> None:
    """Whatever fails: served, throttled, refused or failed, and what is counted as held is what nodes hold."""
    simulation = Simulation(trace, scenario)
    outcome = simulation.run(None)
    report = outcome.report
    assert report.invocations == trace.invocations
    assert report.invocations == report.served + report.throttled + report.refused + report.failed
    assert report.throttled + report.refused + report.failed == sum(report.causes.values())
    assert simulation.dispatcher.in_flight == 0
    assert report.cold_starts <= simulation.dispatcher.cold_starts <= report.environments_created
    held = [environment for node in simulation.nodes.values() for environment in node.environments.values()]
    assert simulation.tally.memory.environments == len(held)
    assert simulation.tally.memory.held_mib == sum(environment.spec.memory_mib for environment in held)
    assert report.peak_memory_mib <= scenario.nodes * scenario.memory_mib
    assert report.wasted_memory_mib_s >= -1e-6
    for figures, function in zip(outcome.functions, trace.functions, strict=True):
        assert figures.invocations == function.invocations


@settings(max_examples=30, deadline=None)
@given(loads, scenarios)
def test_the_same_seed_gives_the_same_run(trace: Trace, scenario: Scenario) -> None:
    """A figure in a paper can be had again."""
    one, other = simulate(trace, scenario), simulate(trace, scenario)
    assert dataclasses.replace(one.report, wall_s=0) == dataclasses.replace(other.report, wall_s=0)
    assert one.functions == other.functions
