"""`lambent sim`, run in this process as the command line runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from tests.traces.files import write, write_trace

from lambent.cli.main import run


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace of two functions and three minutes."""
    return write_trace(tmp_path / "trace", {"often": [5, 5, 5], "once": [0, 1, 0]})


def sim(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Give the object that a run prints."""
    assert run(["sim", "--output", "json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_one_object_is_printed(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    """With what was asked for and what came out, for scripts."""
    arguments = ("--nodes", "2", "--memory", "512", "--policy", "fixed", "--placement", "default", "--seed", "7")
    found = sim(capsys, "--trace", str(trace), *arguments)
    asked = {"nodes": 2, "memory_mib": 512, "policy": "fixed", "placement": "default", "seed": 7}
    assert asked.items() <= found.items()
    figures = {
        "invocations", "cold_starts", "cold_start_share", "slowdown_p50", "slowdown_p99", "wasted_memory_mib_s",
        "environments_created", "peak_environments", "throttled", "simulated_s", "wall_s",
    }  # fmt: skip
    assert all(isinstance(found[name], int | float) for name in figures)
    assert found["invocations"] == 16
    assert "functions" not in found


def test_each_function_is_reported_when_asked_for(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    """Papers plot distributions over functions."""
    found = sim(capsys, "--trace", str(trace), "--functions")
    assert [(one["name"], one["invocations"]) for one in found["functions"]] == [("often", 15), ("once", 1)]


def test_a_person_reads_lines(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    """The same figures with their units."""
    assert run(["sim", "--trace", str(trace), "--for", "2m", "--functions", "--fault", "slow:1@1m+10s"]) == 0
    lines = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines() if line)
    assert lines["invocations"] == "11"
    assert lines["not served"] == "0 throttled, 0 refused, 0 failed"
    assert lines["often"].startswith("10\t")


def test_starts_as_measured_come_from_a_file(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    """A distribution is more than its median."""
    write(tmp_path / "starts.csv", "# percentile,milliseconds", "50,200", "100,200")
    found = sim(capsys, "--trace", str(trace), "--cold-start-ms", str(tmp_path / "starts.csv"))
    assert found["queue_p99_ms"] == pytest.approx(200, rel=0.002)


@pytest.mark.parametrize("lines", [["50"], ["50,-1", "100,2"], ["50,9"], ["50,9", "100,2"], []])
def test_a_file_that_is_no_distribution_is_refused(
    capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path, lines: list[str]
) -> None:
    """A line of the wrong form, one without its end, and one that falls."""
    write(tmp_path / "starts.csv", *lines)
    assert run(["sim", "--trace", str(trace), "--cold-start-ms", str(tmp_path / "starts.csv")]) == 1
    assert "starts.csv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [("--policy", "best", "'fixed'"), ("--placement", "best", "'default'"), ("--arrivals", "late", "'poisson'")],
)
def test_unknown_names_are_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str], trace: Path, option: str, value: str, known: str
) -> None:
    """Wrong usage, as any other."""
    assert run(["sim", "--trace", str(trace), option, value]) == 2
    error = capsys.readouterr().err
    assert value in error
    assert known in error


def test_a_missing_trace_is_an_error_in_the_asked_form(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A script reads it as it reads results."""
    assert run(["sim", "--trace", str(tmp_path / "nowhere"), "--output", "json"]) == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["type"] == "TraceError"
    assert "nowhere: is no folder" in error["message"]


def test_a_window_beyond_the_trace_is_refused(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    """Nothing would be simulated."""
    assert run(["sim", "--trace", str(trace), "--from", "1h"]) == 2
    assert "the trace has 3 minutes" in capsys.readouterr().err


def test_a_sweep_runs_every_combination(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    """In the order of the settings, each as it would have run alone; the curves stand in a file of their own."""
    curves = tmp_path / "curves.svg"
    found = sim(capsys, "--trace", str(trace), "--sweep", "nodes=1,2", "keep-alive=10s,10m", "--picture", str(curves))
    varied = [run["varied"] for run in found["runs"]]
    assert varied == [{"nodes": nodes, "keep-alive": time} for nodes in "12" for time in ("10s", "10m")]
    assert [run["keep_alive_s"] for run in found["runs"]] == [10, 600, 10, 600]
    alone = sim(capsys, "--trace", str(trace), "--nodes", "2", "--keep-alive", "10s")
    assert found["runs"][2].keys() - {"varied"} == alone.keys()
    assert {name: found["runs"][2][name] for name in alone if name != "wall_s"} == {
        name: value for name, value in alone.items() if name != "wall_s"
    }
    drawn = ET.parse(curves).getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert len(list(drawn.iter(f"{svg}polyline"))) == 3 * 2
    assert len(list(drawn.iter(f"{svg}circle"))) == 3 * 4
    assert {text.text for text in drawn.iter(f"{svg}text")} >= {"nodes 1", "nodes 2", "keep-alive 10s"}
    assert run(["sim", "--trace", str(trace), "--sweep", "seed=1,2"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("SEED\tCOLD %")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--sweep", "policy=fixed,best"], "there is no policy 'best'; there is: break-even, fixed"),
        (["--sweep", "speed=1"], "'speed=1' is not NAME=VALUE,VALUE with NAME one of policy"),
        (["--sweep", "nodes=1,,2"], "'nodes=1,,2' is not NAME=VALUE,VALUE"),
        (["--sweep", "nodes=0"], "'0' is no value for nodes"),
        (["--sweep", "keep-alive=long"], "'long' is no value for keep-alive"),
        (["--sweep", "nodes=1", "nodes=2"], "nodes is varied twice"),
        (["--sweep", "seed=" + ",".join(map(str, range(1001)))], "that makes 1,001 runs"),
        (["nodes=1"], "--sweep is not given"),
        (["--events", "/nowhere/run.jsonl"], "No such file or directory"),
        (["--picture", "/dev/null"], "--picture draws the runs of a sweep"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], trace: Path, arguments: list[str], error: str
) -> None:
    """A typing error in the last setting does not cost an hour."""
    assert run(["sim", "--trace", str(trace), *arguments]) in (1, 2)
    printed = capsys.readouterr()
    assert error in printed.err
    assert not printed.out


def test_a_run_is_logged_and_replayed(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    """The log is a load as well."""
    log = str(tmp_path / "run.jsonl")
    then = sim(capsys, "--trace", str(trace), "--nodes", "2", "--events", log)
    now = sim(capsys, "--replay", log)
    same = then.keys() - {"wall_s", "trace"}
    assert {name: now[name] for name in same} == {name: then[name] for name in same}
    assert sim(capsys, "--trace", log, "--nodes", "1")["invocations"] == 16
    assert run(["sim", "--trace", str(trace), "--replay", log]) == run(["sim"]) == 2
