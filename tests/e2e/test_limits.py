"""From `lambent up` to `lambent down`, with functions that meet their limits; `make test-vm` has cgroup v2 for it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import Cluster, running_cluster

import lambent

CODE = """
def hold(event, context):
    return len(bytearray(event["mib"] << 20))
def spin(event, context):
    while event["forever"]:
        pass
    return "done"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One of this module's own, of which nothing is left at its end."""
    with running_cluster() as running:
        yield running


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(CODE)
    return tmp_path


def invoke(cluster: Cluster, function: str, event: object, *, fails: str = "") -> dict[str, object]:
    """Give the figures of a call; with `fails` its type of error."""
    done = cluster.lambent("invoke", function, "--payload", json.dumps(event), "-o", "json", check=not fails)
    assert done.returncode == (3 if fails else 0), done.stderr
    assert fails in done.stderr + done.stdout
    return {} if fails else dict(json.loads(done.stdout))


def test_a_function_out_of_memory_is_told_so_and_the_next_call_is_served(cluster: Cluster, code: Path) -> None:
    """By the group's limit, and the peak is the group's own."""
    cluster.lambent("deploy", "hold", str(code), "--handler", "app.hold", "--memory-mib", "128", "--timeout-s", "60")
    assert invoke(cluster, "hold", {"mib": 90})["payload"] == 90 << 20
    invoke(cluster, "hold", {"mib": 1000}, fails="Runtime.OutOfMemory")
    assert invoke(cluster, "hold", {"mib": 1})["payload"] == 1 << 20
    with lambent.Client(data_dir=cluster.data_dir) as client:
        lines = (event.message for event in client.logs("hold", follow=True))
        reports = list(itertools.islice((line for line in lines if line.startswith("REPORT")), 3))
    peaks = [int(line.partition("Max Memory Used: ")[2].split()[0]) for line in reports]
    assert 90 <= peaks[0] < 128
    assert peaks[1] == 128
    assert peaks[2] < 90


def test_a_function_past_its_time_is_killed_and_the_next_call_is_served(cluster: Cluster, code: Path) -> None:
    """Its group has used up its quota of CPU, which must not keep it from dying."""
    cluster.lambent("deploy", "spin", str(code), "--handler", "app.spin", "--memory-mib", "128", "--timeout-s", "2")
    invoke(cluster, "spin", {"forever": True}, fails="Sandbox.Timedout")
    assert invoke(cluster, "spin", {"forever": False})["payload"] == "done"
