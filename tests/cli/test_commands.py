"""What each command prints, for a person, for a pipe and for a program, and what it exits with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.cli.conftest import Run
from tests.sdk.service import Opening, Service, echo, failing

from lambent import errors
from lambent.v1 import log_pb2

if TYPE_CHECKING:
    from pathlib import Path


def test_deploy_then_describe_then_delete(service: Service, lambent: Run, code: Path) -> None:
    """The life of a function in three commands."""
    ran = lambent(
        "deploy",
        "hello",
        str(code),
        "--handler",
        "app.handler",
        "--memory-mib",
        "256",
        "--env",
        "A=1",
        "--env",
        "B=x=y",
    )
    assert ran.code == 0
    assert ran.out.startswith("hello version $LATEST: python3.")
    described = lambent("describe", "hello", "--output", "json").json()
    assert (described["memory_mib"], described["environment"]) == (256, {"A": "1", "B": "x=y"})
    assert described["state"] == "Active"
    text = lambent("describe", "hello").out
    assert "memory\t256 MiB\n" in text
    assert "env B\tx=y\n" in text
    assert lambent("delete", "hello").code == 0
    gone = lambent("describe", "hello")
    assert (gone.code, gone.out) == (1, "")
    assert "Function not found: hello" in gone.err


def test_deploy_publishes_and_puts_an_alias_on_it(service: Service, lambent: Run, code: Path) -> None:
    """A release and the way back."""
    lambent("deploy", "hello", str(code), "--handler", "app.handler", "--alias", "live")
    (code / "app.py").write_text("def handler(event, context): return 2\n")
    assert lambent("deploy", "hello", str(code), "--alias", "live", "-o", "json").json()["version"] == "2"
    assert lambent("alias", "list", "hello").out.splitlines()[1].split("\t")[:4] == ["live", "2", "", "1"]
    assert [row["version"] for row in lambent("versions", "hello", "-o", "json").json()] == ["$LATEST", "1", "2"]
    assert lambent("versions", "hello").out.splitlines()[2].split("\t")[:3] == ["1", "Active", ""]
    rolled = lambent("rollback", "hello")
    assert (rolled.code, rolled.out) == (0, "live points to version 1\n")


def test_alias_is_created_split_and_deleted(service: Service, lambent: Run, code: Path) -> None:
    """Weights are shares, written as one writes them."""
    lambent("deploy", "hello", str(code), "--handler", "app.handler", "--publish")
    assert lambent("alias", "create", "hello", "live", "--version", "1").code == 0
    split = lambent("alias", "update", "hello", "live", "--weight", "2=0.1", "-o", "json").json()
    assert split["additional_version_weights"] == {"2": 0.1}
    assert lambent("alias", "update", "hello", "live", "--weight", "2=lots").code == 2
    assert lambent("alias", "update", "hello", "live", "--weight", "2=1", "--no-weight").code == 2
    assert lambent("alias", "delete", "hello", "live").code == 0
    assert lambent("alias", "list", "hello", "-o", "json").json() == []


def test_invoke_prints_the_answer_as_it_is(service: Service, lambent: Run, tmp_path: Path) -> None:
    """In a pipe the payload is the output, byte for byte, and remarks stay away."""
    service.handlers["echo"] = echo
    assert lambent("invoke", "echo", "--payload", '{"a":"ä"}').out == '{"a":"ä"}'
    event = tmp_path / "event.json"
    event.write_text("[1, 2]")
    ran = lambent("invoke", "echo", "--payload", f"@{event}", "--log")
    assert (ran.code, ran.out, ran.err) == (0, "[1, 2]", "START\nhello\nEND\n")


def test_invoke_json_carries_every_figure(service: Service, lambent: Run) -> None:
    """For scripts that measure."""
    service.handlers["echo"] = echo
    answered = lambent("invoke", "echo", "--payload", '{"a": 1}', "--qualifier", "live", "-o", "json").json()
    assert answered["payload"] == {"a": 1}
    assert (answered["executed_version"], answered["cold_start"], answered["node_id"]) == ("live", True, "node-a")
    assert answered["cold_start_phases"] == {
        "queue_ms": 0.01,
        "placement_ms": 0.02,
        "fetch_code_ms": 0.03,
        "sandbox_ms": 0.04,
        "runtime_ms": 0.05,
        "init_ms": 0.15,
    }


def test_invoke_stream_prints_pieces(service: Service, lambent: Run) -> None:
    """As bytes for a pipe, as lines of JSON with the figures at the end for a program."""

    async def lines(opening: Opening, body: bytes) -> bytes:
        return b"one\ntwo\n"

    service.handlers["lines"] = lines
    assert lambent("invoke", "lines", "--stream").out == "one\ntwo\n"
    rows = [json.loads(row) for row in lambent("invoke", "lines", "--stream", "-o", "json").out.splitlines()]
    assert [row.get("chunk") for row in rows] == ["one\n", "two\n", None]
    assert rows[-1]["result"]["node_id"] == "node-a"


def test_invoke_stream_joins_characters_that_pieces_cut(service: Service, lambent: Run) -> None:
    """Pieces may be cut anywhere; what is no text at all is marked as such, and nothing is lost at the end."""

    async def cut(opening: Opening, body: bytes) -> bytes:
        return "ö".encode()[1:] + b"\n\xc3"

    service.handlers["cut"] = cut
    service.early = b"sch" + "ö".encode()[:1]
    rows = [json.loads(row) for row in lambent("invoke", "cut", "--stream", "-o", "json").out.splitlines()]
    assert [row.get("chunk") for row in rows] == ["sch", "ö\n", "\ufffd", None]


def test_failed_function_exits_with_3_and_shows_its_remote_trace(service: Service, lambent: Run) -> None:
    """Scripts tell the function's failure from the cluster's by the exit code."""

    async def fail(opening: Opening, body: bytes) -> bytes:
        raise failing("KeyError", "'x'", '  File "/var/task/app.py", line 2, in handler\n    event["x"]\n')

    service.handlers["fail"] = fail
    ran = lambent("invoke", "fail")
    assert (ran.code, ran.out) == (3, "")
    assert 'File "/var/task/app.py", line 2' in ran.err
    assert "KeyError: 'x'" in ran.err
    error = json.loads(lambent("invoke", "fail", "-o", "json").err)["error"]
    assert (error["kind"], error["type"], error["message"]) == ("function", "KeyError", "'x'")


def test_throttle_exits_with_1_and_its_reason(service: Service, lambent: Run) -> None:
    """The limit that has to be raised is in the message."""

    async def blocked(opening: Opening, body: bytes) -> bytes:
        raise errors.NoCapacityError("no node has 10240 MiB; the largest has 4096", details={"Reason": "Memory"})

    service.handlers["blocked"] = blocked
    ran = lambent("invoke", "blocked")
    assert (ran.code, ran.out) == (1, "")
    assert "the largest has 4096 (Memory)" in ran.err
    error = json.loads(lambent("invoke", "blocked", "-o", "json").err)["error"]
    assert (error["kind"], error["name"]) == ("service", "NoCapacityException")


@pytest.mark.parametrize(
    "arguments",
    [
        ("invoke",),
        ("invoke", "echo", "--payload", "{"),
        ("invoke", "echo", "--payload", "@/does/not/exist"),
        ("invoke", "echo", "--timeout-s", "0"),
        ("invoke", "echo", "--timeout-s", "nan"),
        ("invoke", "echo", "--stream", "--idempotent"),
        ("deploy", "hello", ".", "--timeout-s", "nan"),
        ("deploy", "hello", "/does/not/exist"),
        ("deploy", "hello", ".", "--env", "novalue"),
        ("deploy", "hello", ".", "--memory-mib", "64"),
        ("logs", "hello", "--since", "yesterday"),
        ("concurrency", "hello", "--reserve", "1", "--clear"),
        ("nonsense",),
        ("list", "--output", "yaml"),
    ],
)
def test_wrong_usage_exits_with_2_and_asks_no_cluster(
    lambent: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """No cluster is there in this test: the mistake is found before one is needed."""
    monkeypatch.setenv("LAMBENT_DATA_DIR", str(tmp_path))
    ran = lambent(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err


def test_no_cluster_exits_with_1_and_says_how_to_start_one(
    lambent: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first thing that a new user meets."""
    monkeypatch.setenv("LAMBENT_DATA_DIR", str(tmp_path))
    ran = lambent("list")
    assert ran.code == 1
    assert "lambent up" in ran.err


def test_list_is_tab_separated_in_a_pipe(service: Service, lambent: Run, code: Path) -> None:
    """`cut -f1` works."""
    for name in ("b", "a", "c"):
        lambent("deploy", name, str(code), "--handler", "app.handler")
    rows = [line.split("\t") for line in lambent("list").out.splitlines()]
    assert [row[0] for row in rows] == ["NAME", "a", "b", "c"]
    assert [function["function_name"] for function in lambent("list", "-o", "json").json()] == ["a", "b", "c"]


def test_concurrency_is_shown_set_and_cleared(service: Service, lambent: Run) -> None:
    """0 blocks the function, none leaves it to the account."""
    assert lambent("concurrency", "hello").out == "none reserved\n"
    assert lambent("concurrency", "hello", "--reserve", "0").out == "0 reserved\n"
    cleared = lambent("concurrency", "hello", "--clear", "-o", "json").json()
    assert cleared == {"function_name": "hello", "reserved_concurrent_executions": None}


def test_logs_stand_with_their_times(service: Service, lambent: Run) -> None:
    """One line each, so that grep finds them."""
    batch = log_pb2.LogBatch(log_stream="s", node_id="node-a")
    batch.events.add(message="hello").event_time.FromSeconds(1_700_000_000)
    service.log.append(batch)
    assert lambent("logs", "hello").out == "2023-11-14T22:13:20.000Z hello\n"
    assert json.loads(lambent("logs", "hello", "-o", "json").out)["message"] == "hello"


def test_nodes_and_status(service: Service, lambent: Run) -> None:
    """What the operator looks at first."""
    assert [node["node_id"] for node in lambent("nodes", "-o", "json").json()] == ["node-a", "node-b", "node-c"]
    assert "128/4096 MiB" in lambent("nodes").out
    status = lambent("status", "-o", "json").json()
    assert (status["healthy"], status["nodes"], status["components"][0]["name"]) == (True, 3, "etcd")
    assert "etcd\thealthy 3.4.23" in lambent("status").out
