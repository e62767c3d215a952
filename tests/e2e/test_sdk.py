"""The SDK against a real cluster: what the front page promises."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import uuid
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.cluster import Cluster

import lambent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HANDLERS = """
import json, os, sys, time

def echo(event, context):
    print("got", json.dumps(event))
    return event

def about(event, context):
    return {"name": context.function_name, "id": context.aws_request_id, "env": os.environ.get("COLOUR"),
            "client": context.client_context.custom if context.client_context else None}

def fail(event, context):
    raise ValueError("no such colour: " + event["colour"])

def endless(event, context):
    while True:
        time.sleep(1)

def stream(event, context):
    for number in range(event["n"]):
        yield f"line {number}\\n"

def half(event, context):
    yield "first\\n"
    raise RuntimeError("then nothing")

def large(event, context):
    return "x" * event

def leave(event, context):
    sys.exit(3)
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handlers")
    (folder / "app.py").write_text(HANDLERS)
    return folder


@pytest_asyncio.fixture
async def client(cluster: Cluster) -> AsyncIterator[lambent.AsyncClient]:
    async with asyncio.timeout(90), lambent.AsyncClient(data_dir=cluster.data_dir) as connected:
        yield connected


@pytest_asyncio.fixture
async def name(client: lambent.AsyncClient) -> AsyncIterator[str]:
    """A name of this test's own; whatever was made under it is deleted."""
    own = f"sdk-{uuid.uuid4().hex[:8]}"
    yield own
    with contextlib.suppress(lambent.FunctionNotFoundError):
        await client.functions.delete(own)


async def test_deployed_function_answers_with_every_figure(client: lambent.AsyncClient, name: str, code: Path) -> None:
    """Cold first, warm second, on the same environment."""
    await client.deploy(name, code, handler="app.echo", memory_mib=128)
    cold = await client.invoke(name, {"x": [1, "ä"]}, log_tail=True)
    warm = await client.invoke(name, {"x": 2})
    assert (cold.json(), warm.json()) == ({"x": [1, "ä"]}, {"x": 2})
    assert (cold.cold_start, warm.cold_start) == (True, False)
    assert cold.init_duration_ms > 0
    assert warm.init_duration_ms == 0
    assert cold.environment_id == warm.environment_id
    assert cold.executed_version == "$LATEST"
    assert b"got" in cold.log_tail
    assert b"REPORT RequestId: " + cold.request_id.encode() in cold.log_tail
    assert 0 < cold.max_memory_used_mib <= 128
    assert cold.node_id in [node.node_id async for node in client.nodes()]


async def test_context_environment_and_client_context_arrive(
    client: lambent.AsyncClient, name: str, code: Path
) -> None:
    """What a function of AWS's would look at."""
    await client.deploy(name, code, handler="app.about", environment={"COLOUR": "green"})
    result = await client.invoke(name, client_context={"custom": {"who": "me"}})
    assert result.json() == {"name": name, "id": result.request_id, "env": "green", "client": {"who": "me"}}


async def test_changed_code_serves_the_next_call(client: lambent.AsyncClient, name: str, tmp_path: Path) -> None:
    """A deployment that has returned is live."""
    for number in (1, 2, 3):
        (tmp_path / "app.py").write_text(f"def handler(event, context): return {number}\n")
        await client.deploy(name, tmp_path, handler="app.handler")
        assert (await client.invoke(name)).json() == number


async def test_alias_serves_its_version_and_rolls_back(client: lambent.AsyncClient, name: str, tmp_path: Path) -> None:
    """The way back from a bad release."""
    for number in (1, 2):
        (tmp_path / "app.py").write_text(f"def handler(event, context): return {number}\n")
        await client.deploy(name, tmp_path, handler="app.handler", alias="live")
    latest = await client.invoke(name, qualifier="live")
    assert (latest.json(), latest.executed_version) == (2, "2")
    await client.functions.rollback(name)
    assert (await client.invoke(name, qualifier="live")).json() == 1


async def test_function_errors_are_the_function_s_own(client: lambent.AsyncClient, name: str, code: Path) -> None:
    """Type, message and the remote stack trace; exits and time outs in AWS's words."""
    await client.deploy(name, code, handler="app.fail")
    with pytest.raises(lambent.FunctionError) as raised:
        await client.invoke(name, {"colour": "plaid"})
    assert (raised.value.error_type, raised.value.error_message) == ("ValueError", "no such colour: plaid")
    assert "/var/task/app.py" in "".join(raised.value.stack_trace)
    await client.deploy(name, code, handler="app.leave")
    with pytest.raises(lambent.FunctionError, match="Runtime exited with error: exit status 3") as left:
        await client.invoke(name)
    assert left.value.error_type == "Runtime.ExitError"
    await client.deploy(name, code, handler="app.endless", timeout_s=1)
    with pytest.raises(lambent.FunctionError, match=r"Task timed out after 1\.00 seconds") as timed_out:
        await client.invoke(name)
    assert timed_out.value.error_type == "Sandbox.Timedout"


async def test_caller_s_deadline_is_shorter_than_the_function_s(
    client: lambent.AsyncClient, name: str, code: Path
) -> None:
    """The caller's own limit is no failure of the function: one class says it, in the queue and during the run."""
    await client.deploy(name, code, handler="app.endless", timeout_s=60)
    started = asyncio.get_running_loop().time()
    with pytest.raises(lambent.DeadlineExceededError, match="seconds of its caller") as raised:
        await client.invoke(name, timeout_s=1)
    assert raised.value.dispatched
    assert asyncio.get_running_loop().time() - started < 10


async def test_stream_comes_piece_by_piece_and_fails_at_its_end(
    client: lambent.AsyncClient, name: str, code: Path
) -> None:
    """Generator handlers of both kinds of luck."""
    await client.deploy(name, code, handler="app.stream")
    stream = client.stream(name, {"n": 1000})
    text = b"".join([piece async for piece in stream])
    assert text.decode().splitlines() == [f"line {number}" for number in range(1000)]
    assert stream.result is not None
    assert stream.result.request_id
    await client.deploy(name, code, handler="app.half")
    received: list[bytes] = []
    with pytest.raises(lambent.FunctionError, match="then nothing"):
        await _collect(client.stream(name), received)
    assert b"".join(received) == b"first\n"


async def test_map_over_many_payloads_keeps_their_order(client: lambent.AsyncClient, name: str, code: Path) -> None:
    """With more calls in flight than environments fit."""
    await client.deploy(name, code, handler="app.echo", memory_mib=512)
    answers = [result.json() async for result in client.map(name, range(300), concurrency=32)]
    assert answers == list(range(300))


async def test_six_megabytes_go_there_and_back(client: lambent.AsyncClient, name: str, tmp_path: Path) -> None:
    """The quota's size, and one byte more is refused."""
    (tmp_path / "app.py").write_text("def handler(event, context): return event\n")
    await client.deploy(name, tmp_path, handler="app.handler", memory_mib=512, timeout_s=30)
    text = "x" * (6 * 1024 * 1024 - 2)
    assert (await client.invoke(name, text)).json() == text
    with pytest.raises(lambent.RequestTooLargeError):
        await client.invoke(name, text + "x")


async def test_cancelled_call_frees_its_place(client: lambent.AsyncClient, name: str, code: Path) -> None:
    """With one place in all, the next call can only run when the first has ended."""
    await client.deploy(name, code, handler="app.endless", timeout_s=60)
    await client.functions.put_concurrency(name, 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.invoke(name), 2)
    await client.functions.update_configuration(name, timeout_s=1)
    await client.functions.wait_until_settled(name)
    with pytest.raises(lambent.FunctionError, match="timed out"):
        await client.invoke(name)


async def test_answer_that_nobody_reads_to_its_end_frees_its_place(
    client: lambent.AsyncClient, name: str, code: Path
) -> None:
    """The handler is long done; what the caller leaves unread must not hold the only place."""
    await client.deploy(name, code, handler="app.large")
    await client.functions.put_concurrency(name, 1)
    async for piece in client.stream(name, 6_000_000):
        assert piece
        break
    async with asyncio.timeout(20):
        while True:
            try:
                assert (await client.invoke(name, 3)).payload == b'"xxx"'
            except lambent.ThrottledError:  # the stream's place, for as long as its end is on its way
                continue
            break


async def test_logs_hold_what_a_handler_printed_before_its_end(
    client: lambent.AsyncClient, name: str, code: Path
) -> None:
    """In order, and followed as they come."""
    await client.deploy(name, code, handler="app.echo")
    result = await client.invoke(name, {"n": 1})
    lines: list[str] = []
    async for event in client.logs(name, follow=True):
        lines.append(event.message)
        if event.message.startswith(f"REPORT RequestId: {result.request_id}"):
            break
    started = next(
        index for index, line in enumerate(lines) if line.startswith(f"START RequestId: {result.request_id}")
    )
    printed, ended = lines.index('got {"n": 1}'), lines.index(f"END RequestId: {result.request_id}")
    assert started < printed < ended


async def test_unknown_function_version_and_alias_are_typed_errors(
    client: lambent.AsyncClient, name: str, code: Path
) -> None:
    """As on AWS they are all "not found", and say what was looked for."""
    with pytest.raises(lambent.ResourceNotFoundError):
        await client.invoke(name)
    await client.deploy(name, code, handler="app.echo")
    for qualifier in ("7", "nobody"):
        with pytest.raises(lambent.ResourceNotFoundError):
            await client.invoke(name, qualifier=qualifier)


async def test_reserved_concurrency_of_zero_throttles(client: lambent.AsyncClient, name: str, code: Path) -> None:
    """With the reason that names the limit."""
    await client.deploy(name, code, handler="app.echo")
    await client.functions.put_concurrency(name, 0)
    with pytest.raises(lambent.ThrottledError) as caught:
        await client.invoke(name)
    assert caught.value.details["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"


async def test_memory_that_no_node_has_is_refused_with_the_largest(
    client: lambent.AsyncClient, name: str, code: Path
) -> None:
    """At once, not after a wait that cannot help."""
    await client.deploy(name, code, handler="app.echo", memory_mib=10_240)
    with pytest.raises(lambent.NoCapacityError, match=r"\d+ MiB"):
        await client.invoke(name)


def test_five_lines_make_a_remote_function(cluster: Cluster, tmp_path: Path) -> None:
    """The front page's example, as a person would run it: a script of its own."""
    app = f"app{uuid.uuid4().hex[:8]}"
    script = tmp_path / "photos.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import lambent

            app = lambent.App({app!r})

            @app.function(memory_mib=256, timeout_s=10)
            def double(x: int) -> int:
                return 2 * x

            print(double.local(3), double.remote(3), sum(double.map(range(100))))
            app.client.functions.delete(double.name)
            """
        )
    )
    ran = subprocess.run(
        [sys.executable, str(script)],
        env={"LAMBENT_DATA_DIR": str(cluster.data_dir), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("6 6 9900\n", "")


async def _collect(stream: lambent.ResponseStream, into: list[bytes]) -> None:
    async for piece in stream:
        into.append(piece)  # noqa: PERF401 - what came before a failure counts
