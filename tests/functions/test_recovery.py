"""What survives: half-done changes, schedulers that die, servers that crash, packages that nobody needs any more."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs
from tests.functions.cluster import REGION, Cluster, scheduler

from lambent.errors import FunctionNotFoundError, ResourceConflictError, UnavailableError
from lambent.v1 import function_pb2 as pb
from lambent_common import keys, records
from lambent_common.etcd import Changes as EtcdChanges
from lambent_common.etcd import Snapshot
from lambent_scheduler.functions.configuration import Changes
from lambent_scheduler.functions.model import Change, Code, create
from lambent_scheduler.functions.names import Naming
from lambent_scheduler.functions.repository import FunctionRepository
from lambent_scheduler.functions.service import FunctionServicer
from lambent_scheduler.functions.sweep import KEEP_S, PackageSweep
from lambent_scheduler.functions.table import FunctionTable
from lambent_scheduler.functions.upload import Uploads

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def left_pending(lambent: Cluster, account: str, code: str) -> None:
    """Write what a scheduler writes before it dies."""
    configuration = Changes(runtime="python3.11", handler="a.b", timeout_ms=3000, memory_mib=128)
    change = Change(time.time_ns(), str(uuid.uuid4()))
    outcome = create("f", "x86_64", configuration, Code(code, 1), change, publish=True)
    assert outcome.published is not None
    etcd = lambent.scheduler.etcd
    await etcd.put(keys.function_version(account, "f", "1"), records.encode(outcome.published))
    revision = await etcd.put(keys.function_latest(account, "f"), records.encode(outcome.latest))
    await lambent.table.wait_for_revision(revision)


async def test_function_left_pending_by_a_dead_scheduler_becomes_active(lambent: Cluster) -> None:
    """Nobody submits it: the table shows it, and after two seconds it counts as abandoned."""
    account = lambent.account()
    await left_pending(lambent, account, await lambent.code())
    with pytest.raises(ResourceConflictError) as error:
        lambent.table.find(account, "f", "")
    assert error.value.message == (
        "The operation cannot be performed at this time. The function is currently in the following state: Pending"
    )
    assert (await lambent.settled(account)).state == pb.FUNCTION_STATE_ACTIVE
    assert lambent.table.find(account, "f", "1").primary.version == "1"


async def test_who_is_told_that_a_function_is_active_can_invoke_it(
    lambent: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read of etcd may be ahead of the watch, by which invocations are resolved: the answer waits for it."""
    account = lambent.account()
    apply = lambent.table.apply

    def later(batch: Snapshot | EtcdChanges) -> None:
        asyncio.get_running_loop().call_later(0.3, apply, batch)

    monkeypatch.setattr(lambent.table, "apply", later)
    await lambent.create(account)
    async with asyncio.timeout(10):
        while (await lambent.get(account)).state == pb.FUNCTION_STATE_PENDING:
            pass  # Each look is a read of etcd, which is ahead of the watch.
    assert lambent.table.find(account, "f", "").primary.version == "$LATEST"


async def test_a_read_does_not_wait_long_for_a_view_that_is_behind(lambent: Cluster, tmp_path: Path) -> None:
    """The answer is etcd's own; the log names what is late."""
    account = lambent.account()
    first = lambent.scheduler
    behind = FunctionTable(Naming(REGION))
    following = asyncio.create_task(behind.follow(first.etcd))
    await behind.wait_until_ready()
    following.cancel()
    await asyncio.wait({following})
    await lambent.make(account)
    reader = FunctionServicer(
        naming=Naming(REGION),
        repository=first.repository,
        table=behind,
        packages=first.packages,
        uploads=Uploads(first.packages, tmp_path),
        activator=first.activator,
        architecture="x86_64",
    )
    start = time.monotonic()
    with capture_logs() as logged:
        found = await reader.GetFunction(pb.GetFunctionRequest(account=account, function_name="f"), None)
    assert found.function.state == pb.FUNCTION_STATE_ACTIVE
    assert 1 <= time.monotonic() - start < 4
    assert [(entry["event"], entry["function"]) for entry in logged] == [("view_behind", "f")]


async def test_function_whose_package_is_gone_fails_and_can_be_mended(lambent: Cluster) -> None:
    """The reason says what to do, and doing it helps."""
    account = lambent.account()
    await left_pending(lambent, account, "0" * 64)
    failed = await lambent.settled(account)
    assert failed.state == pb.FUNCTION_STATE_FAILED
    assert "is missing from the store. Please upload it again." in failed.state_reason
    with pytest.raises(ResourceConflictError, match="following state: Failed"):
        lambent.table.find(account, "f", "")
    request = pb.UpdateFunctionCodeRequest(account=account, function_name="f", code_sha256=await lambent.code())
    await lambent.service.UpdateFunctionCode(request, None)
    assert (await lambent.settled(account)).state == pb.FUNCTION_STATE_ACTIVE


async def test_second_scheduler_sees_the_same_functions(lambent: Cluster, tmp_path: Path) -> None:
    """A scheduler that starts later finds all of them, and is told of every change by the other."""
    account = lambent.account()
    await lambent.make(account)
    async with scheduler(lambent.etcd_server, lambent.js, tmp_path) as second:
        first_spec, second_spec = (table.find(account, "f", "").primary for table in (lambent.table, second.table))
        assert first_spec.key == second_spec.key
        changed = asyncio.Event()
        second.table.on_change(lambda *of: changed.set() if of == (account, "f") else None)
        await lambent.service.DeleteFunction(pb.DeleteFunctionRequest(account=account, function_name="f"), None)
        async with asyncio.timeout(10):
            await changed.wait()
        with pytest.raises(FunctionNotFoundError):
            second.table.find(account, "f", "")


async def test_write_that_was_acknowledged_to_nobody_is_recognised(lambent: Cluster) -> None:
    """The client sends a transaction again when its answer is lost: that one's failure is not a conflict."""
    account = lambent.account()
    etcd = lambent.scheduler.etcd

    class LosesFirstAnswer:
        """An etcd whose first acknowledgement of a transaction is lost, after which the client sends it again."""

        def __getattr__(self, name: str) -> object:
            return getattr(etcd, name)

        async def txn(self, *arguments: object, **keywords: object) -> object:
            await etcd.txn(*arguments, **keywords)  # type: ignore[arg-type]
            return await etcd.txn(*arguments, **keywords)  # type: ignore[arg-type]

    repository = lambent.service._repository
    lambent.service._repository = FunctionRepository(LosesFirstAnswer())  # type: ignore[arg-type]
    try:
        await lambent.create(account)
        await lambent.settled(account)
        await lambent.change(account, memory_mib=256)
        assert (await lambent.publish(account)).version == "1"
        await lambent.service.CreateAlias(
            pb.CreateAliasRequest(account=account, function_name="f", name="live", function_version="1"), None
        )
        await lambent.service.DeleteFunction(pb.DeleteFunctionRequest(account=account, function_name="f"), None)
    finally:
        lambent.service._repository = repository
    with pytest.raises(FunctionNotFoundError):
        await lambent.get(account)


async def test_sweep_keeps_what_is_referred_to_and_deletes_the_rest_after_a_day(lambent: Cluster) -> None:
    """$LATEST, what serves during an update, and every version count; a mark stands a day, and a claim ends it."""
    account = lambent.account()
    old, new, unused = [await lambent.code(f"x = '{account}{n}'\n") for n in range(3)]
    await lambent.make(account, code_sha256=old)
    await lambent.publish(account)
    await lambent.service.UpdateFunctionCode(
        pb.UpdateFunctionCodeRequest(account=account, function_name="f", code_sha256=new), None
    )
    packages = lambent.scheduler.packages
    sweep = PackageSweep(lambent.scheduler.repository, packages)
    await lambent.js.publish("$O.lambent-code.C.cut-off", b"chunk")
    assert unused in {package.sha256 for package in (await sweep.sweep(1000.0)).mark}
    assert not (await sweep.sweep(1000.0 + KEEP_S - 1)).delete
    await packages.claim(unused)
    await sweep.sweep(1000.0 + KEEP_S)
    assert await packages.exists(unused)
    await sweep.sweep(1000.0 + 2 * KEEP_S)
    assert [await packages.exists(code) for code in (old, new, unused)] == [True, True, False]
    await lambent.settled(account)
    await lambent.service.DeleteFunction(pb.DeleteFunctionRequest(account=account, function_name="f"), None)
    kept = await lambent.js.stream_info("OBJ_lambent-code", subjects_filter="$O.lambent-code.C.cut-off")
    assert kept.state.subjects, "to this sweep's clock it was written a moment ago"
    assert {old, new} <= {package.sha256 for package in (await sweep.sweep(9e9)).mark}
    swept = await lambent.js.stream_info("OBJ_lambent-code", subjects_filter="$O.lambent-code.C.cut-off")
    assert not swept.state.subjects


async def test_etcd_that_is_away_refuses_changes_and_still_resolves(lambent: Cluster) -> None:
    """Running functions keep serving from what is known; a change says why it is refused. Last: it kills etcd."""
    account = lambent.account()
    await lambent.make(account)
    spec = lambent.table.find(account, "f", "").primary
    await lambent.etcd_server.kill()
    with pytest.raises(UnavailableError, match="etcd"):
        await lambent.publish(account)
    assert lambent.table.find(account, "f", "").primary is spec
    await lambent.etcd_server.start()
    async with asyncio.timeout(30):
        while True:
            try:
                assert (await lambent.publish(account)).version == "1"
            except UnavailableError:
                continue
            break
    assert lambent.table.find(account, "f", "1").primary.version == "1"
