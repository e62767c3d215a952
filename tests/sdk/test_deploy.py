"""Functions and what can be done with them, through the SDK's whole path to a server."""

from __future__ import annotations

import asyncio
import io
import random
import zipfile
from typing import TYPE_CHECKING

import pytest
from tests.sdk.service import Service

import lambent
from lambent.deployment import Wanted
from lambent.v1 import log_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from lambent import AsyncClient


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "app.py").write_text("def handler(event, context): return event\n")
    return folder


async def test_deploy_creates_and_waits_until_active(service: Service, client: AsyncClient, code: Path) -> None:
    """The next line of a user's script may call it."""
    function = await client.deploy("f", code, handler="app.handler", memory_mib=256, environment={"A": "b"})
    assert function.state is lambent.FunctionState.ACTIVE
    assert (function.memory_mib, function.timeout_s, dict(function.environment)) == (256, 3, {"A": "b"})
    names = zipfile.ZipFile(io.BytesIO(service.uploads[function.code_sha256])).namelist()
    assert names == ["app.py"]


async def test_second_deployment_changes_only_what_differs(service: Service, client: AsyncClient, code: Path) -> None:
    """An unchanged function keeps its warm environments."""
    await client.deploy("f", code, handler="app.handler")
    service.writes.clear()
    await client.deploy("f", code, handler="app.handler")
    assert service.writes == []
    await client.deploy("f", code, timeout_s=20)
    assert service.writes == ["configuration"]
    (code / "more.py").write_text("x = 1\n")
    function = await client.deploy("f", code)
    assert service.writes == ["configuration", "upload", "code"]
    assert (function.timeout_s, function.handler) == (20, "app.handler")


async def test_new_function_without_a_handler_is_refused(client: AsyncClient, code: Path) -> None:
    """Before anything is uploaded, with what to say."""
    with pytest.raises(lambent.InvalidParameterError, match="handler"):
        await client.deploy("f", code)


async def test_alias_follows_the_deployment_and_rolls_back(service: Service, client: AsyncClient, code: Path) -> None:
    """The way back from a bad release is one call."""
    first = await client.deploy("f", code, handler="app.handler", alias="live")
    (code / "app.py").write_text("def handler(event, context): return 1\n")
    second = await client.deploy("f", code, alias="live")
    assert (first.version, second.version) == ("1", "2")
    assert (await client.functions.get_alias("f", "live")).function_version == "2"
    back = await client.functions.rollback("f")
    assert back.function_version == "1"


async def test_rollback_without_an_alias_says_what_is_missing(
    service: Service, client: AsyncClient, code: Path
) -> None:
    """No alias, several aliases, and an alias without a past are three different things to do."""
    await client.deploy("f", code, handler="app.handler")
    with pytest.raises(lambent.InvalidParameterError, match="no alias"):
        await client.functions.rollback("f")
    await client.functions.create_alias("f", "live", function_version="1")
    with pytest.raises(lambent.ResourceConflictError, match="nothing to go back to"):
        await client.functions.rollback("f")
    await client.functions.create_alias("f", "test", function_version="1")
    with pytest.raises(lambent.InvalidParameterError, match="live, test"):
        await client.functions.rollback("f")


async def test_lists_go_over_all_pages(service: Service, client: AsyncClient, code: Path) -> None:
    """Pages are the wire's business."""
    for number in range(5):
        await client.deploy(f"f{number}", code, handler="app.handler")
    await client.functions.publish_version("f0")
    await client.functions.publish_version("f0")
    assert [function.function_name async for function in client.functions.list()] == [f"f{n}" for n in range(5)]
    assert [function.version async for function in client.functions.list_versions("f0")] == ["$LATEST", "1", "2"]
    assert [node.node_id async for node in client.nodes()] == ["node-a", "node-b", "node-c"]


async def test_upload_tells_its_progress(client: AsyncClient, tmp_path: Path) -> None:
    """A large package on a slow line is seen to move."""
    steps: list[tuple[int, int]] = []
    (tmp_path / "noise.bin").write_bytes(random.Random(1).randbytes(700_000))
    package = lambent.build_package(tmp_path)
    assert package.size_bytes > 2 * 256 * 1024
    with package:
        digest = await client.functions.upload_code(package, on_progress=lambda *step: steps.append(step))
    assert digest == package.sha256
    assert steps[-1] == (package.size_bytes, package.size_bytes)
    assert len(steps) >= 3


async def test_stale_revision_is_a_typed_error(client: AsyncClient, code: Path) -> None:
    """Two people who deploy at once do not overwrite each other unseen."""
    await client.deploy("f", code, handler="app.handler")
    with pytest.raises(lambent.PreconditionFailedError):
        await client.functions.update_code("f", code, revision_id="another")


async def test_concurrency_is_set_shown_and_cleared(client: AsyncClient, code: Path) -> None:
    """None and 0 are different: 0 blocks the function."""
    await client.deploy("f", code, handler="app.handler")
    assert await client.functions.get_concurrency("f") is None
    assert await client.functions.put_concurrency("f", 0) == 0
    assert (await client.functions.get("f")).reserved_concurrency == 0
    await client.functions.delete_concurrency("f")
    assert (await client.functions.get("f")).reserved_concurrency is None


@pytest.mark.parametrize("memory_mib", [-1, 2**32])
async def test_number_the_wire_cannot_carry_is_refused(client: AsyncClient, code: Path, memory_mib: int) -> None:
    """As a typed error like any other, not as the encoder's ValueError."""
    with pytest.raises(lambent.InvalidParameterError, match="memory_mib"):
        await client.deploy("f", code, handler="app.handler", memory_mib=memory_mib)


async def test_only_differences_are_changes(client: AsyncClient, code: Path) -> None:
    """A configuration that is as wanted is left alone, so that its revision stays."""
    function = await client.deploy("f", code, handler="app.handler", environment={"A": "1"})
    same = Wanted(handler="app.handler", memory_mib=128, timeout_s=3, environment={"A": "1"})
    assert same.changes(function) == Wanted()
    assert Wanted(memory_mib=256, timeout_s=3, environment={}).changes(function) == Wanted(
        memory_mib=256, environment={}
    )


async def test_logs_follow_what_comes(service: Service, client: AsyncClient) -> None:
    """And what was dropped shows as a line, not as a gap."""
    service.log.append(_batch("START", "hello"))
    assert [event.message async for event in client.logs("f")] == ["START", "hello"]
    following = client.logs("f", follow=True)
    async with asyncio.timeout(20):
        assert [(await anext(following)).message for _ in range(2)] == ["START", "hello"]
        dropped = _batch("later")
        dropped.dropped_events, dropped.dropped_bytes = 3, 99
        service.more_log.put_nowait(dropped)
        assert (await anext(following)).message == "platform.logsDropped 3 lines, 99 bytes"
        assert (await anext(following)).message == "later"
        await following.aclose()  # type: ignore[attr-defined]  # an async generator, which the type does not promise


def _batch(*lines: str) -> log_pb2.LogBatch:
    batch = log_pb2.LogBatch(log_stream="2026/01/01/[$LATEST]0", node_id="node-a")
    for line in lines:
        batch.events.add(message=line).event_time.FromSeconds(1_700_000_000)
    return batch
