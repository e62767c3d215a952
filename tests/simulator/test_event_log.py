"""A run's log: the same run again, its calls as a load, and what is said when something differs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tests.simulator.loads import make_function, make_trace

from lambent_common.traces import Arrivals, Durations, TraceError, read_recorded
from lambent_simulator import Fault, FunctionFigures, Report, Scenario, simulate
from lambent_simulator.event_log import log_to, replay

SCENARIO = Scenario(
    nodes=3,
    memory_mib=512,
    seed=5,
    minutes=4,
    keep_alive_s=20,
    arrivals=Arrivals.POISSON,
    cold_start=Durations((0.0, 1.0), (3.0, 900.0)),
    faults=(Fault.parse("lost:3@50+30"), Fault.parse("partitioned:1@100")),
)


def logged(path: Path, scenario: Scenario = SCENARIO) -> tuple[Report, tuple[FunctionFigures, ...]]:
    """Run two functions, more than fit, and write what happens."""
    load = make_trace(make_function([40, 20, 40, 1, 9], name="f"), make_function([9] * 5, name="g"), minutes=5)
    with path.open("w") as file:
        return simulate(load, scenario, log=log_to(file, load, scenario))


def without_wall(report: Report) -> Report:
    """What must be the same in two runs."""
    return dataclasses.replace(report, wall_s=0)


def test_a_run_is_replayed_from_its_log(tmp_path: Path) -> None:
    """Every line again, and the same figures, without the trace that it was made of."""
    report, functions = logged(tmp_path / "log")
    assert report.causes
    recorded, scenario, outcome = replay(tmp_path / "log")
    assert recorded.minutes == 4
    assert scenario == dataclasses.replace(SCENARIO, minutes=None)
    assert without_wall(outcome.report) == without_wall(report)
    assert outcome.functions == functions


def test_the_calls_of_a_log_are_a_load(tmp_path: Path) -> None:
    """What ran on one cluster is tried on another."""
    report, _ = logged(tmp_path / "log")
    other = simulate(read_recorded(tmp_path / "log"), Scenario(nodes=20)).report
    assert (other.invocations, other.simulated_s) == (report.invocations, report.simulated_s)
    assert other.cold_starts != report.cold_starts


@pytest.mark.parametrize("word", ["start", "run", "end", "fail", "stop", "join"])
def test_a_replay_stops_where_something_differs(tmp_path: Path, word: str) -> None:
    """A changed scheduler is told by its first other decision."""
    logged(tmp_path / "log")
    lines = (tmp_path / "log").read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines[1:], 1) if json.loads(line)[1] == word)
    changed = json.loads(lines[number])
    changed[0] += 1
    lines[number] = json.dumps(changed) + "\n"
    (tmp_path / "log").write_text("".join(lines))
    with pytest.raises(TraceError, match=f'line {number + 1}: the run is another one: recorded was .*"{word}"'):
        replay(tmp_path / "log")


def test_a_replay_ends_where_its_log_ends(tmp_path: Path) -> None:
    """A log cut short is not a run that was well."""
    logged(tmp_path / "log")
    whole = (tmp_path / "log").read_text()
    (tmp_path / "log").write_text(whole[: whole.rindex("[")])
    with pytest.raises(TraceError, match="the log is at its end, and now it is"):
        replay(tmp_path / "log")
    (tmp_path / "log").write_text(whole + '[999, "join", "node-0"]\n')
    with pytest.raises(TraceError, match="the run is at its end, and recorded was"):
        replay(tmp_path / "log")


def test_calls_without_a_scenario_are_no_run(tmp_path: Path) -> None:
    """What a live cluster recorded is a load."""
    logged(tmp_path / "log")
    first, rest = (tmp_path / "log").read_text().split("\n", 1)
    for wrong, error in (({}, "no scenario"), ({"scenario": {"nodes": 1}}, "not of this version")):
        header = {name: value for name, value in json.loads(first).items() if name != "scenario"}
        (tmp_path / "log").write_text(f"{json.dumps(header | wrong)}\n{rest}")
        with pytest.raises(TraceError, match=error):
            replay(tmp_path / "log")
