"""Everything that happens in a run, as lines; and the same run again, line by line.

The file is one of recorded calls (`lambent_common.traces.recorded`). Its first line has the scenario as well, and lines
between the calls tell what became of them:

    [t, "call", function, run time]     a call comes; calls are numbered from 0 in this order
    [t, "start", name, environment, node]   the scheduler orders an environment
    [t, "run", call, environment]       a call is sent to its environment
    [t, "end", call]                    its answer has arrived
    [t, "fail", call, error]            it ends without one
    [t, "stop", environment, reason]    the scheduler ends an environment
    [t, "join", node]                   a node takes orders from now on
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lambent_common.traces import Arrivals, Durations, TraceError, describe, read_lines, read_recorded
from lambent_simulator.faults import Fault, FaultKind
from lambent_simulator.scenario import Scenario
from lambent_simulator.simulation import simulate, window_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import TextIO

    from lambent_common.traces import RecordedCalls
    from lambent_simulator.simulation import Load, Outcome, Progress, SimulatedCall


class Log:
    """Makes lines of what happens.

    Args:
        write_line: Takes each line, with its end.
    """

    def __init__(self, write_line: Callable[[str], object]) -> None:
        self._write_line = write_line
        self._calls = 0

    def call(self, call: SimulatedCall) -> None:
        """A call comes; it gets its number as its request id."""
        call.request_id = str(self._calls)
        self._calls += 1
        self._write_line(f'[{call.arrived!r}, "call", {call.number}, {call.duration_s!r}]\n')

    def write(self, time_s: float, word: str, *facts: str) -> None:
        """Something else happens."""
        self._write_line(json.dumps([time_s, word, *facts]) + "\n")


def log_to(file: TextIO, load: Load, scenario: Scenario) -> Log:
    """Write the first line of a run's log, and give what writes the others."""
    header = describe(load.functions, minutes=window_of(load, scenario))
    file.write(json.dumps(header | {"scenario": _as_json(scenario)}) + "\n")
    return Log(file.write)


def replay(path: Path, progress: Progress | None = None) -> tuple[RecordedCalls, Scenario, Outcome]:
    """Run a log again: the same calls on the same cluster, and compare every line.

    Raises:
        TraceError: The file is no log of a run, or something happens otherwise than it says: the first such line is
            named, with what happens now.
    """
    recorded = read_recorded(path)
    scenario = _scenario(path, recorded.header.get("scenario"))
    lines = read_lines(path)
    next(lines)

    def compare(now: str) -> None:
        number, then = next(lines, (0, ""))
        if now != then:
            happened = f"recorded was {then.strip()}" if number else "the log is at its end"
            raise TraceError(f"the run is another one: {happened}, and now it is {now.strip()}", path, line=number)

    outcome = simulate(recorded, scenario, progress, Log(compare))
    if (left := next(lines, None)) is not None:
        raise TraceError(f"the run is at its end, and recorded was {left[1].strip()}", path, line=left[0])
    return recorded, scenario, outcome


def _as_json(scenario: Scenario) -> dict[str, Any]:
    cold_start = {"shares": scenario.cold_start.shares, "longest_ms": scenario.cold_start.longest_ms}
    faults = [
        asdict(fault)
        | {"kind": fault.kind.value, "duration_s": fault.duration_s if fault.duration_s < math.inf else None}
        for fault in scenario.faults
    ]
    # The calls are the window's own.
    window = {"first_minute": 0, "minutes": None}
    plain = {name: getattr(scenario, name) for name in Scenario.__slots__}
    return plain | {"arrivals": scenario.arrivals.value, "cold_start": cold_start, "faults": faults} | window


def _fault(described: Mapping[str, Any]) -> Fault:
    duration_s = described["duration_s"]
    read = {"kind": FaultKind(described["kind"]), "duration_s": math.inf if duration_s is None else duration_s}
    return Fault(**{**described, **read})


def _scenario(path: Path, described: object) -> Scenario:
    if not isinstance(described, dict):
        raise TraceError("has calls and no scenario; run it with --trace", path, line=1)
    try:
        cold_start = described["cold_start"]
        return Scenario(
            **described
            | {
                "arrivals": Arrivals(described["arrivals"]),
                "cold_start": Durations(tuple(cold_start["shares"]), tuple(cold_start["longest_ms"])),
                "faults": tuple(_fault(fault) for fault in described["faults"]),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"its scenario is not of this version: {error!r}", path, line=1) from error
