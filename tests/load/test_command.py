"""`lambent load` with real generator processes and nobody to call: output, statuses, what is refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.cluster import COMMAND_TIMEOUT_S, running_command

NULL = ("load", "--target", "null")


def test_result_is_one_json_object(lambent: Run) -> None:
    """For programs: counts that add up, percentiles, the rows of the run, verdicts."""
    ran = lambent(*NULL, "--rate", "500", "--duration", "1s", "--assert", "errors=0", "-o", "json")
    assert ran.code == 0
    found = ran.json()
    assert (found["scheduled"], found["sent"], found["answered"], found["failed"]) == (500, 500, 500, 0)
    assert found["scheduled_per_s"] == 500
    assert 0 <= found["latency_ms"]["p50"] <= found["latency_ms"]["p99_9"] <= found["latency_ms"]["max"]
    assert sum(row["sent"] for row in found["series"]) == 500
    assert found["series"][-1]["in_flight"] == 0
    assert found["settings"]["rate"] == 500
    assert found["assertions"] == [{"assertion": "errors=0", "value": 0, "holds": True}]


def test_several_processes_send_what_one_would(lambent: Run) -> None:
    """Each its share, counted together."""
    ran = lambent(*NULL, "--rate", "500", "--shape", "poisson", "--duration", "1s", "--processes", "3", "-o", "json")
    one = lambent(*NULL, "--rate", "500", "--shape", "poisson", "--duration", "1s", "-o", "json").json()
    found = ran.json()
    assert (found["processes"], found["sent"]) == (3, one["sent"])
    assert found["histograms"]["latency"]["count"] == found["answered"] == found["sent"]


def test_summary_has_no_colours_in_a_pipe(lambent: Run) -> None:
    """Escape codes are for terminals."""
    ran = lambent(*NULL, "--rate", "100", "--duration", "0.2s")
    assert "\x1b" not in ran.out
    assert ran.out.startswith("calls        20 in 0.2 s\n")
    assert "latency      p50 " in ran.out


def test_failed_assertion_has_a_status_of_its_own(lambent: Run) -> None:
    """CI tells a cluster that is too slow from a command that did not run."""
    ran = lambent(*NULL, "--rate", "100", "--duration", "0.2s", "--assert", "p50<0us", "--assert", "errors=0")
    assert ran.code == 4
    assert "FAILED p50<0us: " in ran.out
    assert "holds  errors=0: 0" in ran.out


def test_closed_loop_sends_as_much_as_is_answered(lambent: Run) -> None:
    """So much as the target can take."""
    found = lambent(*NULL, "--closed-loop", "4", "--duration", "0.3s", "--processes", "2", "-o", "json").json()
    assert found["sent"] == found["answered"] > 100


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rate", "1"), "name the FUNCTION to call"),
        (("f",), "give --rate"),
        (("f", "--rate", "0"), "a rate of 0 sends nothing"),
        (("f", "--rate", "-1"), "-1"),
        (("f", "--rate", "nan"), "nan"),
        (("f", "--rate", "1e9"), "1000000"),
        (("f", "--rate", "1", "--duration", "0s"), "above 0"),
        (("f", "--rate", "1", "--duration", "8d"), "up to 7d"),
        (("f", "--rate", "1", "--duration", "soon"), "'soon' is not a time span"),
        (("f", "--rate", "1", "--shape", "ramp"), "--shape ramp needs --to RATE"),
        (("f", "--rate", "1", "--to", "2"), "--shape constant has no --to RATE"),
        (
            ("f", "--rate", "1", "--shape", "burst", "--to", "2", "--burst", "11s"),
            "--burst 11s is longer than --period 10s",
        ),
        (("f", "--rate", "1", "--closed-loop", "2"), "exclude each other"),
        (("f", "--closed-loop", "2", "--processes", "3"), "cannot be divided"),
        (("f", "--rate", "1", "--max-in-flight", "2", "--processes", "3"), "less than the number of processes"),
        (("f", "--rate", "1", "--processes", "0"), "needs a --worker"),
        (("f", "--rate", "1", "--worker", "'"), "No closing quotation"),
        (("f", "--rate", "1", "--assert", "p99<50"), "its unit is us, ms or s"),
        (("f", "--rate", "1", "--payload", "{"), "not JSON"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_sent(lambent: Run, arguments: tuple[str, ...], says: str) -> None:
    """Status 2, and what is wrong with which option."""
    ran = lambent("load", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in " ".join(ran.err.split())


def test_no_cluster_is_an_error_that_says_so(lambent: Run, tmp_path: Path) -> None:
    """Status 1, as of every command."""
    ran = lambent("load", "f", "--rate", "1", "--duration", "1s", "--data-dir", str(tmp_path))
    assert ran.code == 1
    assert f"no Lambent cluster runs with data directory {tmp_path}" in ran.err


def test_ctrl_c_ends_the_run_with_what_there_is() -> None:
    """Who stops a long run wants to know what it has found, and CI that it was not whole."""
    arguments = ("--rate", "200", "--duration", "1h", "--progress", "plain", "--output", "json")
    with running_command(*NULL, *arguments) as command:
        command.said("answered")
        command.process.send_signal(signal.SIGINT)
        lines = [command.said("{")]
        while lines[-1] != "}\n":
            lines.append(command.said(""))
        assert command.process.wait(COMMAND_TIMEOUT_S) == 130
    found = json.loads("".join(lines))
    assert found["interrupted"] is True
    assert found["answered"] > 0
    assert found["duration_s"] < 3600
