"""SnapStart from publication to the first call, on a whole cluster."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import Cluster

import lambent
from lambent.errors import ResourceConflictError

SLOW_MS = 700
MODULE = f"""
import os, time
from snapshot_restore_py import register_after_restore, register_before_snapshot

ran = []
time.sleep({SLOW_MS / 1000})

@register_before_snapshot
def first():
    ran.append("before 1")

register_before_snapshot(ran.append, "before 2")
register_after_restore(ran.append, "after 1")

@register_after_restore
def last():
    ran.append("after 2")
    print("restored")

def handler(event, context):
    ran.append("call")
    return {{"ran": ran, "type": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"]}}
"""


@pytest.fixture
def client(cluster: Cluster) -> Iterator[lambent.Client]:
    with lambent.Client(data_dir=cluster.data_dir) as connected:
        yield connected


@pytest.fixture
def name(client: lambent.Client) -> Iterator[str]:
    """A function's name; what was deployed under it is deleted afterwards."""
    own = f"snap-{uuid.uuid4().hex[:8]}"
    yield own
    client.functions.delete(own)


def deploy(client: lambent.Client, name: str, directory: Path, module: str, *, timeout_s: int = 10) -> lambent.Function:
    """Publish a version with SnapStart, and wait until it is ACTIVE."""
    (directory / "app.py").write_text(module)
    return client.deploy(
        name, directory, handler="app.handler", memory_mib=128, timeout_s=timeout_s, snap_start=True, publish=True
    )


def test_the_first_call_of_a_version_does_not_wait_for_its_init(
    client: lambent.Client, name: str, tmp_path: Path
) -> None:
    """The init ran before the version was ACTIVE, and the hooks around it in AWS's order."""
    version = deploy(client, name, tmp_path, MODULE)
    assert (version.version, version.snap_start, version.snap_start_optimized) == ("1", True, True)
    result = client.invoke(name, qualifier="1", log_tail=True)
    assert result.json() == {
        "ran": ["before 2", "before 1", "after 1", "after 2", "call"],
        "type": "snap-start",
    }
    assert result.cold_start
    assert result.init_duration_ms == 0
    assert result.restore_duration_ms > 0
    assert result.queue_ms < SLOW_MS
    assert b"\tRestore Duration: " in result.log_tail
    following = client.logs(name, follow=True)
    lines = [next(following).message for _ in range(4)]
    assert [line.split()[0] for line in lines] == ["INIT_START", "RESTORE_START", "restored", "RESTORE_REPORT"]
    assert lines[3] == f"RESTORE_REPORT Restore Duration: {result.restore_duration_ms:.2f} ms"
    warm = client.invoke(name, qualifier="1")
    assert (warm.cold_start, warm.restore_duration_ms) == (False, 0)
    assert warm.json()["ran"][-2:] == ["call", "call"]


def test_what_is_not_published_starts_as_ever(client: lambent.Client, name: str, tmp_path: Path) -> None:
    """$LATEST has no SnapStart: its init is part of its first call, and no hook runs."""
    deploy(client, name, tmp_path, MODULE.replace(str(SLOW_MS / 1000), "0"))
    result = client.invoke(name)
    assert result.json() == {"ran": ["call"], "type": "on-demand"}
    assert result.restore_duration_ms == 0


def test_a_version_whose_init_fails_is_failed_and_says_why(client: lambent.Client, name: str, tmp_path: Path) -> None:
    """The deployment ends with the function's own error, and an alias stays where it was."""
    with pytest.raises(ResourceConflictError, match="no module named nothing_of_the_kind"):
        deploy(client, name, tmp_path, "raise ImportError('no module named nothing_of_the_kind')")
    version = client.functions.get(name, qualifier="1")
    assert version.state is lambent.FunctionState.FAILED
    assert version.state_reason.startswith("Runtime.ImportModuleError: Unable to import module 'app': ")


def test_a_hook_that_fails_is_the_first_calls_error(client: lambent.Client, name: str, tmp_path: Path) -> None:
    """With AWS's error type; the environment gets another runtime."""
    module = (
        "from snapshot_restore_py import register_after_restore\n"
        "@register_after_restore\ndef connect(): raise OSError('no way')\n"
        "def handler(event, context): return 1\n"
    )
    deploy(client, name, tmp_path, module)
    for _ in range(2):
        with pytest.raises(lambent.FunctionError, match="no way") as caught:
            client.invoke(name, qualifier="1")
        assert caught.value.error_type == "Runtime.AfterRestoreError"


def test_an_init_longer_than_the_timeout_is_no_matter_after_a_call_that_timed_out(
    client: lambent.Client, name: str, tmp_path: Path
) -> None:
    """The next call gets another environment, and does not start the lost runtime again within its own time."""
    module = (
        "import threading, time\ntime.sleep(1.5)\n"
        "def handler(event, context):\n    if event == 'hang':\n        threading.Event().wait()\n    return 1\n"
    )
    deploy(client, name, tmp_path, module, timeout_s=1)
    with pytest.raises(lambent.FunctionError, match="timed out after 1"):
        client.invoke(name, "hang", qualifier="1")
    assert client.invoke(name, qualifier="1").json() == 1
