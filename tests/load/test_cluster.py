"""Load on a real cluster: what is counted is what happened there."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import Cluster

HANDLER = """
def handler(event, context):
    if "fail" in event:
        raise KeyError(event["fail"])
    return event
"""


@pytest.fixture
def function(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """A function of this test's own."""
    name = f"load-{uuid.uuid4().hex[:8]}"
    (tmp_path / "app.py").write_text(HANDLER)
    cluster.lambent("deploy", name, str(tmp_path), "--handler", "app.handler")
    yield name
    cluster.lambent("delete", name)


def load(cluster: Cluster, *arguments: str) -> Any:
    """Run it and read the result."""
    return json.loads(cluster.lambent("load", *arguments, "-o", "json").stdout)


def test_calls_reach_the_function_and_are_counted(cluster: Cluster, function: str) -> None:
    """By two processes; the first calls are cold, and nodes and their environments are seen."""
    found = load(cluster, function, "--rate", "100", "--duration", "2s", "--processes", "2", "--payload", '{"a": 1}')
    assert (found["sent"], found["answered"], found["errors"]) == (200, 200, {})
    assert 1 <= found["cold_starts"] <= 200
    assert found["latency_ms"]["p50"] > 0
    assert found["start_delay_ms"]["max"] > 0
    assert found["memory_mib"] == 4096
    assert any(row["environments"] for row in found["series"])
    # The function's own figures agree: every call is in its log once.
    log = cluster.lambent("logs", function, "--since", "5m").stdout
    assert log.count("REPORT RequestId:") == 200


def test_failures_are_counted_by_what_failed(cluster: Cluster, function: str) -> None:
    """A function's errors by their own names; those answers count as none."""
    found = load(cluster, function, "--rate", "50", "--duration", "0.5s", "--payload", '{"fail": "x"}')
    assert found["errors"] == {"FunctionError KeyError": 25}
    assert (found["answered"], found["failed"], found["throttled"]) == (0, 25, 0)


def test_throttles_are_counted_and_not_retried(cluster: Cluster, function: str) -> None:
    """A client that retries hides what a load test is to find."""
    cluster.lambent("concurrency", function, "--reserve", "0")
    found = load(cluster, function, "--rate", "50", "--duration", "0.5s")
    assert (found["sent"], found["throttled"], found["answered"]) == (25, 25, 0)
    assert list(found["errors"]) == ["ThrottledError ReservedFunctionConcurrentInvocationLimitExceeded"]


def test_function_that_is_missing_is_an_error(cluster: Cluster) -> None:
    """Once, and not a hundred times a second."""
    ran = cluster.lambent("load", "no-such-function", "--rate", "100", check=False)
    assert ran.returncode == 1
    assert "Function not found" in ran.stderr
