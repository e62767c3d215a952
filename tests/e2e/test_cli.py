"""The command line against a real cluster, as a person's first quarter of an hour."""

from __future__ import annotations

import json
import signal
import uuid
from typing import TYPE_CHECKING

import pytest
from tests.cluster import Cluster, running_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


TIMEOUT_S = 30


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(
        "def handler(event, context):\n"
        "    print('hello', event.get('name'))\n"
        "    return {'greeting': 'hello ' + event['name']}\n"
        "def lines(event, context):\n"
        "    for number in range(3):\n"
        "        yield f'{number}\\n'\n"
    )
    return tmp_path


@pytest.fixture
def name(cluster: Cluster) -> Iterator[str]:
    """A function name of this test's own; deleted if it was made."""
    own = f"cli-{uuid.uuid4().hex[:8]}"
    yield own
    cluster.lambent("delete", own, check=False)


def test_first_function_is_deployed_called_read_and_deleted(cluster: Cluster, name: str, code: Path) -> None:
    """Every command of the README, one after another."""
    cluster.lambent("deploy", name, str(code), "--handler", "app.handler", "--memory-mib", "128")
    answered = cluster.lambent("invoke", name, "--payload", '{"name": "you"}', "--log")
    assert json.loads(answered.stdout) == {"greeting": "hello you"}
    assert "hello you" in answered.stderr
    figures = json.loads(cluster.lambent("invoke", name, "--payload", '{"name": "me"}', "-o", "json").stdout)
    assert figures["payload"] == {"greeting": "hello me"}
    assert figures["cold_start"] is False
    assert name in cluster.lambent("list").stdout
    assert json.loads(cluster.lambent("describe", name, "-o", "json").stdout)["state"] == "Active"
    assert "hello you" in cluster.lambent("logs", name, "--since", "5m").stdout
    cluster.lambent("delete", name)
    assert cluster.lambent("describe", name, check=False).returncode == 1


def test_failed_function_exits_with_3(cluster: Cluster, name: str, code: Path) -> None:
    """And the remote trace is there to read."""
    cluster.lambent("deploy", name, str(code), "--handler", "app.handler")
    failed = cluster.lambent("invoke", name, "--payload", "{}", check=False)
    assert failed.returncode == 3
    assert "/var/task/app.py" in failed.stderr
    assert "KeyError" in failed.stderr


def test_stream_is_printed_as_it_is_yielded(cluster: Cluster, name: str, code: Path) -> None:
    """Nothing is added to the function's own bytes."""
    cluster.lambent("deploy", name, str(code), "--handler", "app.lines")
    assert cluster.lambent("invoke", name, "--stream").stdout == "0\n1\n2\n"


def test_release_and_rollback(cluster: Cluster, name: str, code: Path) -> None:
    """`deploy --alias` forward, `rollback` back."""
    cluster.lambent("deploy", name, str(code), "--handler", "app.handler", "--alias", "live")
    (code / "app.py").write_text("def handler(event, context): return 'broken'\n")
    cluster.lambent("deploy", name, str(code), "--alias", "live")
    assert cluster.lambent("invoke", name, "--qualifier", "live").stdout == '"broken"'
    cluster.lambent("rollback", name)
    answered = cluster.lambent("invoke", name, "--qualifier", "live", "--payload", '{"name": "you"}')
    assert json.loads(answered.stdout) == {"greeting": "hello you"}
    versions = json.loads(cluster.lambent("versions", name, "-o", "json").stdout)
    assert [version["version"] for version in versions] == ["$LATEST", "1", "2"]


def test_nodes_and_status_show_the_cluster(cluster: Cluster) -> None:
    """What an operator looks at first."""
    nodes = json.loads(cluster.lambent("nodes", "-o", "json").stdout)
    assert len(nodes) >= 1
    assert all(node["capacity"]["memory_mib"] > 0 for node in nodes)
    status = json.loads(cluster.lambent("status", "-o", "json").stdout)
    assert status["healthy"]
    assert {component["name"] for component in status["components"]} >= {"etcd", "nats"}


def test_reserved_concurrency_of_zero_blocks(cluster: Cluster, name: str, code: Path) -> None:
    """Exit code 1 and the reason: it is the service that refused."""
    cluster.lambent("deploy", name, str(code), "--handler", "app.handler")
    cluster.lambent("concurrency", name, "--reserve", "0")
    throttled = cluster.lambent("invoke", name, check=False)
    assert throttled.returncode == 1
    assert "ReservedFunctionConcurrentInvocationLimitExceeded" in throttled.stderr


def test_logs_are_followed_until_ctrl_c(cluster: Cluster, name: str, code: Path) -> None:
    """Line by line as they come, into a pipe as well; the exit status is that of a command that was interrupted."""
    cluster.lambent("deploy", name, str(code), "--handler", "app.handler")
    with running_command("logs", name, "-f", data_dir=cluster.data_dir) as following:
        for person in ("you", "me"):
            cluster.lambent("invoke", name, "--payload", json.dumps({"name": person}))
            following.said(f"hello {person}")
            following.said("REPORT RequestId:")
        following.process.send_signal(signal.SIGINT)
        assert following.process.wait(TIMEOUT_S) == 130


def test_ctrl_c_ends_a_call_with_130(cluster: Cluster, name: str, code: Path) -> None:
    """And the call with it: its environment is free for the next one, which the one place would else not admit."""
    (code / "app.py").write_text(
        "import time\ndef handler(event, context):\n    yield 'begun\\n'\n    time.sleep(event['hold_s'])\n"
    )
    cluster.lambent("deploy", name, str(code), "--handler", "app.handler", "--timeout-s", "60")
    cluster.lambent("concurrency", name, "--reserve", "1")
    with running_command("invoke", name, "--stream", '--payload={"hold_s": 50}', data_dir=cluster.data_dir) as invoking:
        invoking.said("begun")
        invoking.process.send_signal(signal.SIGINT)
        assert invoking.process.wait(TIMEOUT_S) == 130
    assert cluster.lambent("invoke", name, "--stream", '--payload={"hold_s": 0}').stdout == "begun\n"
