"""A trace replayed on a real cluster, and that nothing of it stays there."""

from __future__ import annotations

import json
import signal
import uuid
from pathlib import Path

import pytest
from tests.cluster import COMMAND_TIMEOUT_S, Cluster, running_command


def left(cluster: Cluster, prefix: str) -> list[str]:
    """Functions of these names that exist."""
    functions = json.loads(cluster.lambent("list", "-o", "json").stdout)
    return [one["function_name"] for one in functions if one["function_name"].startswith(prefix)]


def test_trace_is_replayed_and_its_functions_are_removed(cluster: Cluster, trace_folder: Path) -> None:
    """Two minutes of it in three seconds, by two processes: each call once, to a function that runs as recorded."""
    name = f"replay-{uuid.uuid4().hex[:8]}"
    arguments = ("--trace", str(trace_folder), "--speed", "40", "--prefix", name, "--processes", "2", "-o", "json")
    found = json.loads(cluster.lambent("load", "replay", *arguments).stdout)
    assert (found["sent"], found["answered"], found["duration_s"]) == (105, 105, 3.0)
    assert found["cold_starts"] >= 3
    assert found["latency_ms"]["p50"] >= 9
    assert found["settings"]["trace"] == "trace"
    assert left(cluster, name) == []


@pytest.mark.parametrize("word", ["deploying", "answered"])
def test_ctrl_c_removes_the_functions(cluster: Cluster, trace_folder: Path, word: str) -> None:
    """While they are deployed, and while they are called."""
    name = f"replay-{uuid.uuid4().hex[:8]}"
    arguments = ("--trace", str(trace_folder), "--prefix", name, "--progress", "plain")
    with running_command("load", "replay", *arguments, data_dir=cluster.data_dir) as command:
        command.said(word)
        command.process.send_signal(signal.SIGINT)
        command.said("removing")
        assert command.process.wait(COMMAND_TIMEOUT_S) == 130
    assert left(cluster, name) == []


def test_function_of_somebody_else_is_not_touched(cluster: Cluster, trace_folder: Path, tmp_path: Path) -> None:
    """A replay removes what it has made alone."""
    (tmp_path / "app.py").write_text("def handler(event, context): return 1\n")
    prefix = f"mine-{uuid.uuid4().hex[:8]}"
    own = f"{prefix}-0-abc123de"
    cluster.lambent("deploy", own, str(tmp_path / "app.py"), "--handler", "app.handler")
    try:
        ran = cluster.lambent("load", "replay", "--trace", str(trace_folder), "--prefix", prefix, check=False)
        assert ran.returncode == 1
        assert f"function '{own}' exists and is no replay's" in ran.stderr
        assert left(cluster, prefix) == [own]
    finally:
        cluster.lambent("delete", own)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--first-minute", "2"), 2, "the trace has 2 minutes"),
        (("--speed", "0"), 2, "0.001<=x<=1000"),
        (("--scale", "nan"), 2, "not a number"),
        (("--prefix", "a b"), 2, "is not 1 to 40 characters"),
        (("--trace", "/nowhere"), 1, "/nowhere: is no folder"),
    ],
)
def test_wrong_usage_is_refused(
    cluster: Cluster, trace_folder: Path, arguments: tuple[str, ...], status: int, says: str
) -> None:
    """Before anything is deployed."""
    ran = cluster.lambent("load", "replay", "--trace", str(trace_folder), *arguments, check=False)
    assert (ran.returncode, ran.stdout) == (status, "")
    assert says in " ".join(ran.stderr.split())
