"""From `lambent up` to `lambent down`, with functions that meet their limits; `make test-vm` has cgroup v2 for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import running_cluster

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
def client() -> Iterator[lambent.Client]:
    """Of a cluster of this module's own, of which nothing is left at its end."""
    with running_cluster() as cluster, lambent.Client(data_dir=cluster.data_dir) as connected:
        yield connected


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(CODE)
    return tmp_path


def failure(client: lambent.Client, function: str, event: object) -> str:
    """Give the type of the error that a call ends with."""
    with pytest.raises(lambent.FunctionError) as raised:
        client.invoke(function, event)
    return raised.value.error_type


def test_a_function_out_of_memory_is_told_so_and_the_next_call_is_served(client: lambent.Client, code: Path) -> None:
    """By the group's limit, and the peak is the group's own."""
    client.deploy("hold", code, handler="app.hold", memory_mib=128, timeout_s=60)
    assert client.invoke("hold", {"mib": 90}).json() == 90 << 20
    assert failure(client, "hold", {"mib": 1000}) == "Runtime.OutOfMemory"
    assert client.invoke("hold", {"mib": 1}).json() == 1 << 20
    lines = (event.message for event in client.logs("hold", follow=True))
    reports = list(itertools.islice((line for line in lines if line.startswith("REPORT")), 3))
    peaks = [int(line.partition("Max Memory Used: ")[2].split()[0]) for line in reports]
    assert 90 <= peaks[0] < 128
    assert peaks[1] == 128
    assert peaks[2] < 90


def test_a_function_past_its_time_is_killed_and_the_next_call_is_served(client: lambent.Client, code: Path) -> None:
    """Its group has used up its quota of CPU, which must not keep it from dying."""
    client.deploy("spin", code, handler="app.spin", memory_mib=128, timeout_s=2)
    assert failure(client, "spin", {"forever": True}) == "Sandbox.Timedout"
    assert client.invoke("spin", {"forever": False}).json() == "done"
