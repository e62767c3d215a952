"""The phases of a cold start, from the environment to whoever asks: result, command line, log and metrics."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import Cluster
from tests.http.test_http import ask

import lambent

SLOW_MS = 300


@pytest.fixture
def client(cluster: Cluster) -> Iterator[lambent.Client]:
    with lambent.Client(data_dir=cluster.data_dir) as connected:
        yield connected


@pytest.fixture
def name(client: lambent.Client, tmp_path: Path) -> Iterator[str]:
    """A function whose module takes its time, and whose code no node has; deleted afterwards."""
    own = f"cold-{uuid.uuid4().hex[:8]}"
    module = f"import time\ntime.sleep({SLOW_MS / 1000})\ndef handler(event, context): return {own!r}\n"
    (tmp_path / "app.py").write_text(module)
    client.deploy(own, tmp_path, handler="app.handler", memory_mib=128)
    yield own
    client.functions.delete(own)


def figures(cluster: Cluster, phase: str) -> tuple[float, float]:
    """Count and sum of a phase in the metrics."""
    text = ask(int(cluster.http.rpartition(":")[2]), "/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines())
    count, total = (values[f'lambent_cold_start_seconds_{what}{{phase="{phase}"}}'] for what in ("count", "sum"))
    return float(count), float(total)


def test_phases_of_a_cold_start_add_up_and_are_told_everywhere(
    cluster: Cluster, client: lambent.Client, name: str
) -> None:
    """One wait, one division of it, wherever it is read."""
    count, total_s = figures(cluster, "init")
    began = time.perf_counter()
    cold = client.invoke(name)
    wall_ms = (time.perf_counter() - began) * 1e3
    phases = cold.cold_start_phases
    assert phases is not None
    values = dataclasses.astuple(phases)
    assert min(values) >= 0
    assert sum(values) == pytest.approx(cold.queue_ms)
    assert cold.queue_ms + cold.duration_ms <= wall_ms
    assert phases.fetch_code_ms > 0
    assert phases.init_ms >= SLOW_MS
    assert cold.queue_ms - phases.init_ms <= wall_ms - SLOW_MS
    assert client.invoke(name).cold_start_phases is None
    assert figures(cluster, "init") == (count + 1, pytest.approx(total_s + phases.init_ms / 1e3))
    following = client.logs(name, follow=True)
    line = next(event.message for event in following if event.message.startswith("COLD_START"))
    assert line.startswith(f"COLD_START RequestId: {cold.request_id}\tQueue: {phases.queue_ms:.2f} ms\t")
    assert f"\tInit: {phases.init_ms:.2f} ms\t" in line


def test_the_command_line_shows_the_phases_of_a_cold_start_alone(
    cluster: Cluster, client: lambent.Client, name: str
) -> None:
    """In JSON for scripts; a second environment of the same package finds the code where the first had it fetched."""
    ran = [json.loads(cluster.lambent("invoke", name, "-o", "json").stdout) for _ in range(2)]
    client.functions.update_configuration(name, memory_mib=256)
    client.functions.wait_until_settled(name)
    ran.append(json.loads(cluster.lambent("invoke", name, "-o", "json").stdout))
    first, warm, second = (result["cold_start_phases"] for result in ran)
    assert list(first) == ["queue_ms", "placement_ms", "fetch_code_ms", "sandbox_ms", "runtime_ms", "init_ms"]
    assert warm is None
    assert (second["fetch_code_ms"] == 0) is (ran[0]["node_id"] == ran[2]["node_id"])
    assert min(first["init_ms"], second["init_ms"]) >= SLOW_MS
