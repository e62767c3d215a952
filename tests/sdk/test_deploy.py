"""Functions and what can be done with them, through the SDK's whole path to a server."""

from __future__ import annotations

import asyncio
import io
import random
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from tests.sdk.service import TOKEN, Service

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
    await client.deploy("f0", code, description="another", publish=True)
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


async def test_first_uses_at_once_all_succeed(service: Service, code: Path) -> None:
    """A script that is started many times over deploys once; the others find what they wanted."""
    service.creating = asyncio.Barrier(3)
    clients = [lambent.AsyncClient(service.address, token=TOKEN) for _ in range(3)]
    async with asyncio.timeout(30):
        functions = await asyncio.gather(
            *(client.deploy("f", code, handler="app.handler", alias="live") for client in clients)
        )
    assert service.writes.count("create") == 1
    assert [function.version for function in functions] == ["1"] * 3
    for client in clients:
        await client.close()


async def test_deployments_of_different_code_publish_their_own(service: Service, tmp_path: Path) -> None:
    """An alias is never put on what another one has just deployed."""
    clients, sources = [], []
    for number in range(4):
        source = tmp_path / str(number)
        source.mkdir()
        (source / "app.py").write_text(f"NUMBER = {number}\n")
        sources.append(source)
        clients.append(lambent.AsyncClient(service.address, token=TOKEN))
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(
            *(
                client.deploy("f", source, handler="app.handler", publish=True)
                for client, source in zip(clients, sources, strict=True)
            ),
            return_exceptions=True,
        )
    for outcome, source in zip(outcomes, sources, strict=True):
        if isinstance(outcome, lambent.PreconditionFailedError | lambent.ResourceConflictError):
            continue  # It never got its turn, and says so.
        assert isinstance(outcome, lambent.Function), outcome
        with lambent.build_package(source) as package:
            assert outcome.code_sha256 == package.sha256
    for client in clients:
        await client.close()


async def test_failed_function_is_mended_by_the_next_deployment(
    service: Service, client: AsyncClient, code: Path
) -> None:
    """Also when the code is the same: the cluster asks for it again."""
    service.broken.add("f")
    with pytest.raises(lambent.ResourceConflictError, match=r"could not be made.*upload it again"):
        await client.deploy("f", code, handler="app.handler")
    service.broken.clear()
    service.writes.clear()
    assert (await client.deploy("f", code)).state is lambent.FunctionState.ACTIVE
    assert service.writes == ["upload", "code"]


async def test_failed_update_is_an_error_and_mended_by_the_next_deployment(
    service: Service, client: AsyncClient, code: Path
) -> None:
    """Success would mean that the old code serves on and nobody knows."""
    await client.deploy("f", code, handler="app.handler")
    (code / "app.py").write_text("def handler(event, context): return 2\n")
    service.broken.add("f")
    with pytest.raises(lambent.ResourceConflictError, match=r"last update of function 'f' failed.*upload it again"):
        await client.deploy("f", code, publish=True)
    with pytest.raises(lambent.ResourceConflictError, match="last update"):
        await client.functions.wait_until_settled("f")
    service.broken.clear()
    assert (await client.deploy("f", code, publish=True)).version == "1"


async def test_version_whose_init_fails_is_published_once_and_gets_no_alias(
    service: Service, client: AsyncClient, code: Path
) -> None:
    """It is no crossing of deployments, which would be tried again; the next deployment is."""
    await client.deploy("f", code, handler="app.handler", alias="live", snap_start=True)
    (code / "app.py").write_text("raise OSError\n")
    service.failing.add("f")
    with pytest.raises(lambent.ResourceConflictError, match="its init fails"):
        await client.deploy("f", code, alias="live")
    assert [version.version for version in service.versions["f"]] == ["1", "2"]
    assert (await client.functions.get_alias("f", "live")).function_version == "1"
    service.failing.clear()
    assert (await client.deploy("f", code, alias="live")).version == "3"


@pytest.mark.parametrize("size", ["memory_mib", "ephemeral_storage_mib"])
async def test_size_of_zero_is_refused(client: AsyncClient, code: Path, size: str) -> None:
    """It is out of range, and must not pass for the default."""
    sizes: dict[str, Any] = {size: 0}
    with pytest.raises(lambent.InvalidParameterError, match=f"{size} is 0"):
        await client.functions.create("f", code, handler="app.handler", **sizes)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e300, -1e300])
async def test_time_that_is_no_time_is_refused(client: AsyncClient, code: Path, seconds: float) -> None:
    """As a typed error like any other, not as the encoder's."""
    with pytest.raises(lambent.InvalidParameterError, match="timeout_s"):
        await client.deploy("f", code, handler="app.handler", timeout_s=seconds)
    with pytest.raises(lambent.InvalidParameterError, match="since_s"):
        await anext(client.logs("f", since_s=seconds))


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


async def test_networks_are_changed_only_when_they_differ(service: Service, client: AsyncClient, code: Path) -> None:
    """A mode by its name or its member, a VpcConfig by its value."""
    vpc = lambent.VpcConfig(("subnet-1",), ("sg-1",))
    first = await client.deploy("f", code, handler="app.handler", network="none")
    assert (first.network, first.vpc_config) == (lambent.NetworkMode.NONE, lambent.VpcConfig())
    service.writes.clear()
    for network in ("none", lambent.NetworkMode.NONE):
        await client.deploy("f", code, network=network)
    assert service.writes == []
    for _ in range(2):
        assert (await client.deploy("f", code, vpc_config=vpc)).vpc_config == vpc
    assert service.writes == ["configuration"]
    assert (await client.deploy("f", code, vpc_config=lambent.VpcConfig())).vpc_config == lambent.VpcConfig()


async def test_unknown_network_mode_is_named(client: AsyncClient, code: Path) -> None:
    """With those that there are."""
    with pytest.raises(lambent.InvalidParameterError, match="network 'lan' is none of none, egress"):
        await client.deploy("f", code, handler="app.handler", network="lan")


async def test_logs_follow_what_comes(service: Service, client: AsyncClient) -> None:
    """What was dropped shows as the node's own line, once."""
    service.log.append(_batch("START", "hello"))
    assert [event.message async for event in client.logs("f")] == ["START", "hello"]
    following = client.logs("f", follow=True)
    async with asyncio.timeout(20):
        assert [(await anext(following)).message for _ in range(2)] == ["START", "hello"]
        dropped = '{"type":"platform.logsDropped","record":{"droppedRecords":3}}'
        service.more_log.put_nowait(_batch(dropped, "later"))
        assert [(await anext(following)).message for _ in range(2)] == [dropped, "later"]
        await following.aclose()  # type: ignore[attr-defined]  # an async generator, which the type does not promise


def _batch(*lines: str) -> log_pb2.LogBatch:
    batch = log_pb2.LogBatch(log_stream="2026/01/01/[$LATEST]0", node_id="node-a")
    for line in lines:
        batch.events.add(message=line).event_time.FromSeconds(1_700_000_000)
    return batch
