"""The life of a function, as callers of FunctionService see it, on a real etcd and nats-server."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from typing import TYPE_CHECKING

import pytest
from tests.functions.cluster import REGION, Cluster, zipped

from lambent.errors import (
    FunctionNotFoundError,
    InvalidCodeError,
    InvalidParameterError,
    PreconditionFailedError,
    ResourceConflictError,
    ThrottledError,
)
from lambent.v1 import function_pb2 as pb
from lambent_common import archive
from lambent_scheduler.functions import paging

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")

STALE = (
    "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve "
    "the latest Revision Id"
)


async def test_created_function_is_pending_then_active_with_a_new_revision(lambent: Cluster) -> None:
    """AWS's waiters and defaults rely on exactly this."""
    account = lambent.account()
    reply = await lambent.create(account, role="arn:aws:iam::123456789012:role/r")
    assert reply.state == pb.FUNCTION_STATE_PENDING
    assert (reply.state_reason, reply.state_reason_code) == ("The function is being created.", "Creating")
    assert reply.last_update_status == pb.LAST_UPDATE_STATUS_UNSPECIFIED
    assert reply.function_arn == f"arn:aws:lambda:{REGION}:{account}:function:f"
    assert (reply.memory_mib, reply.ephemeral_storage_mib, reply.timeout.seconds) == (128, 512, 3)
    assert (reply.version, list(reply.architectures)) == ("$LATEST", ["x86_64"])
    assert reply.code_sha256 == hashlib.sha256(zipped()).hexdigest()
    assert reply.code_size_bytes == len(zipped())
    active = await lambent.settled(account)
    assert (active.state, active.state_reason, active.state_reason_code) == (pb.FUNCTION_STATE_ACTIVE, "", "")
    assert active.last_update_status == pb.LAST_UPDATE_STATUS_SUCCESSFUL
    assert active.revision_id != reply.revision_id
    assert active.last_modified_time == reply.last_modified_time


async def test_name_is_taken_once(lambent: Cluster) -> None:
    """Of many that create the same function at once one wins, and the others are told why they did not."""
    account = lambent.account()
    results = await asyncio.gather(*(lambent.create(account) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(result, pb.Function) for result in results) == 1
    messages = {result.message for result in results if isinstance(result, ResourceConflictError)}
    assert messages == {"Function already exist: f"}


async def test_update_serves_the_old_code_until_it_is_complete(lambent: Cluster) -> None:
    """Invocations during an update run what was there before, as on AWS."""
    account = lambent.account()
    before = await lambent.make(account)
    served = lambent.table.find(account, "f", "").primary
    code = await lambent.code("def handler(event, context): return 2\n")
    seen: list[str] = []
    lambent.table.on_change(lambda *_: seen.append(lambent.table.find(account, "f", "").primary.code_sha256))
    request = pb.UpdateFunctionCodeRequest(account=account, function_name="f", code_sha256=code)
    reply = (await lambent.service.UpdateFunctionCode(request, None)).function
    assert reply.last_update_status == pb.LAST_UPDATE_STATUS_IN_PROGRESS
    assert reply.last_update_status_reason_code == "Creating"
    assert reply.state == pb.FUNCTION_STATE_ACTIVE
    after = await lambent.settled(account)
    assert after.last_update_status == pb.LAST_UPDATE_STATUS_SUCCESSFUL
    assert len({before.revision_id, reply.revision_id, after.revision_id}) == 3
    assert (after.code_sha256, after.handler) == (code, "app.handler")
    assert seen[0] == served.code_sha256 == before.code_sha256
    assert lambent.table.find(account, "f", "").primary.code_sha256 == code


async def test_configuration_changes_only_where_it_is_set(lambent: Cluster) -> None:
    """An absent field stays; an empty map of variables clears them."""
    account = lambent.account()
    await lambent.make(account, description="d", environment_variables={"ONE": "1"})
    request = pb.UpdateFunctionConfigurationRequest(account=account, function_name="f", memory_mib=256)
    request.timeout.seconds = 30
    await lambent.service.UpdateFunctionConfiguration(request, None)
    changed = await lambent.settled(account)
    assert (changed.memory_mib, changed.timeout.seconds, changed.description) == (256, 30, "d")
    assert dict(changed.environment_variables) == {"ONE": "1"}
    changed = await lambent.change(account, environment=pb.EnvironmentVariables(), description="")
    assert (dict(changed.environment_variables), changed.description, changed.memory_mib) == ({}, "", 256)


async def test_stale_revision_is_refused(lambent: Cluster) -> None:
    """Two people who deploy at once must not overwrite each other unknowingly."""
    account = lambent.account()
    pending = await lambent.create(account)
    active = await lambent.settled(account)
    for stale in (pending.revision_id, "no-such-revision"):
        request = pb.UpdateFunctionConfigurationRequest(
            account=account, function_name="f", memory_mib=256, revision_id=stale
        )
        with pytest.raises(PreconditionFailedError) as error:
            await lambent.service.UpdateFunctionConfiguration(request, None)
        assert error.value.message == STALE
    changed = await lambent.change(account, memory_mib=256, revision_id=active.revision_id)
    assert changed.memory_mib == 256


async def test_update_during_an_update_is_a_conflict(lambent: Cluster) -> None:
    """AWS answers 409 and so do we; the function settles all the same."""
    account = lambent.account()
    await lambent.make(account)
    results = await asyncio.gather(
        *(lambent.change(account, memory_mib=200 + n) for n in range(8)), return_exceptions=True
    )
    arn = f"arn:aws:lambda:{REGION}:{account}:function:f"
    messages = {result.message for result in results if isinstance(result, ResourceConflictError)}
    assert messages <= {f"The operation cannot be performed at this time. An update is in progress for resource: {arn}"}
    assert any(isinstance(result, pb.Function) for result in results)


async def test_dry_run_changes_nothing(lambent: Cluster) -> None:
    """It checks only."""
    account = lambent.account()
    before = await lambent.make(account)
    code = await lambent.code("x = 1\n")
    request = pb.UpdateFunctionCodeRequest(account=account, function_name="f", code_sha256=code, dry_run=True)
    assert (await lambent.service.UpdateFunctionCode(request, None)).function == before
    assert await lambent.get(account) == before
    request.revision_id = "stale"
    with pytest.raises(PreconditionFailedError):
        await lambent.service.UpdateFunctionCode(request, None)


async def test_code_must_have_been_uploaded(lambent: Cluster) -> None:
    """A function without a package could never start."""
    account = lambent.account()
    with pytest.raises(InvalidParameterError, match="is not stored"):
        await lambent.create(account, code_sha256="0" * 64)
    with pytest.raises(InvalidParameterError, match="provide a source"):
        await lambent.create(account, code_sha256="")


async def test_corrupt_and_oversize_uploads_are_refused(lambent: Cluster) -> None:
    """And nothing of them stays in the store or on disk (the cluster fixture looks)."""
    before = len(await lambent.scheduler.packages.list())

    async def upload(chunk: bytes, times: int = 1) -> None:
        async def chunks() -> AsyncIterator[pb.UploadCodeRequest]:
            for _ in range(times):
                yield pb.UploadCodeRequest(chunk=chunk)

        await lambent.service.UploadCode(chunks(), None)

    with pytest.raises(InvalidCodeError, match="Could not unzip uploaded file"):
        await upload(b"garbage")
    with pytest.raises(InvalidParameterError, match="non-empty zip"):
        await upload(b"")
    with pytest.raises(Exception, match="Zipped size must be smaller than 52428800 bytes"):
        await upload(bytes(1024 * 1024), archive.ZIPPED_LIMIT_BYTES // (1024 * 1024) + 1)
    assert len(await lambent.scheduler.packages.list()) == before


async def test_uploads_at_once_are_bounded(lambent: Cluster) -> None:
    """Each may take 50 MiB of disk: eight go on, 64 wait for a place, and more are turned away."""
    release = asyncio.Event()
    begun = 0

    async def stalled() -> AsyncIterator[pb.UploadCodeRequest]:
        nonlocal begun
        begun += 1
        await release.wait()
        yield pb.UploadCodeRequest(chunk=zipped())

    uploads = {asyncio.create_task(lambent.service.UploadCode(stalled(), None)) for _ in range(8 + 64 + 1)}
    [refused], running = await asyncio.wait(uploads, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(ThrottledError):
        refused.result()
    assert begun == 8
    release.set()
    stored = {reply.code_sha256 for reply in await asyncio.gather(*running)}
    assert stored == {hashlib.sha256(zipped()).hexdigest()}


async def test_a_cancelled_upload_keeps_its_place_until_its_check_has_ended(
    lambent: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check takes a core: uploading and cancelling over and over must not start ever more of them."""
    loop = asyncio.get_running_loop()
    checking, ended, go_on = asyncio.Event(), asyncio.Event(), threading.Event()
    check = archive.check

    def slow_check(path: Path) -> None:
        loop.call_soon_threadsafe(checking.set)
        go_on.wait(10)
        check(path)
        loop.call_soon_threadsafe(ended.set)

    async def chunks() -> AsyncIterator[pb.UploadCodeRequest]:
        yield pb.UploadCodeRequest(chunk=zipped())

    monkeypatch.setattr(archive, "check", slow_check)
    async with asyncio.timeout(20):
        upload = asyncio.create_task(lambent.service.UploadCode(chunks(), None))
        await checking.wait()
        upload.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not upload.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await upload
        assert ended.is_set()


async def test_a_page_fits_its_message(lambent: Cluster) -> None:
    """Functions may have 4 KiB of variables each; whoever asks for thousands gets as many pages as it takes."""
    account = lambent.account()
    for number in range(3):
        await lambent.create(account, f"f{number}")
        await lambent.settled(account, f"f{number}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paging, "_PAGE_BYTES", 1)
        names: list[str] = []
        token = ""
        for _ in range(3):
            page = await lambent.service.ListFunctions(
                pb.ListFunctionsRequest(account=account, page_size=10_000, page_token=token), None
            )
            names += [function.function_name for function in page.functions]
            token = page.next_page_token
        assert (names, token) == (["f0", "f1", "f2"], "")


async def test_functions_are_listed_in_pages_by_name(lambent: Cluster) -> None:
    """A page begins after the last name, also when functions came and went meanwhile."""
    account = lambent.account()
    for number in range(7):
        await lambent.create(account, f"f{number}")
    names: list[str] = []
    token = ""
    while True:
        request = pb.ListFunctionsRequest(account=account, page_size=3, page_token=token)
        page = await lambent.service.ListFunctions(request, None)
        names += [function.function_name for function in page.functions]
        token = page.next_page_token
        if not token:
            break
        if len(names) == 3:
            await lambent.service.DeleteFunction(pb.DeleteFunctionRequest(account=account, function_name="f2"), None)
    assert names == [f"f{number}" for number in range(7)]
    with pytest.raises(InvalidParameterError, match="marker"):
        await lambent.service.ListFunctions(pb.ListFunctionsRequest(account=account, page_token="?"), None)
    with pytest.raises(InvalidParameterError, match="less than or equal to 10000"):
        await lambent.service.ListFunctions(pb.ListFunctionsRequest(account=account, page_size=10_001), None)


async def test_deleted_function_leaves_nothing(lambent: Cluster) -> None:
    """Versions, aliases and the reservation go with it, in one step; its name is free again."""
    account = lambent.account()
    await lambent.make(account)
    await lambent.publish(account)
    await lambent.service.CreateAlias(
        pb.CreateAliasRequest(account=account, function_name="f", name="live", function_version="1"), None
    )
    await lambent.service.PutFunctionConcurrency(
        pb.PutFunctionConcurrencyRequest(account=account, function_name="f", reserved_concurrent_executions=7), None
    )
    await lambent.service.DeleteFunction(pb.DeleteFunctionRequest(account=account, function_name="f"), None)
    assert (await lambent.scheduler.etcd.range(f"/lambent/v1/accounts/{account}/functions/")).items == []
    assert lambent.table.account_reserved(account) == 0
    assert lambent.table.reserved(account, "f") is None
    arn = f"arn:aws:lambda:{REGION}:{account}:function:f"
    with pytest.raises(FunctionNotFoundError) as error:
        await lambent.get(account)
    assert error.value.message == f"Function not found: {arn}"
    with pytest.raises(FunctionNotFoundError) as error:
        await lambent.service.DeleteFunction(pb.DeleteFunctionRequest(account=account, function_name="f"), None)
    assert error.value.message == f"Function not found: {arn}"
    assert (await lambent.create(account, publish=True)).version == "1"


async def test_many_callers_leave_a_consistent_function(lambent: Cluster) -> None:
    """Every answer is a legal one, version numbers are unique and without gaps, and the function settles."""
    account = lambent.account()
    await lambent.make(account)

    async def caller(number: int) -> str:
        await lambent.change(account, memory_mib=128 + number)
        return (await lambent.publish(account)).version

    results = await asyncio.gather(*(caller(number) for number in range(20)), return_exceptions=True)
    assert all(isinstance(result, str | ResourceConflictError) for result in results), results
    versions = await lambent.service.ListVersionsByFunction(
        pb.ListVersionsByFunctionRequest(account=account, function_name="f"), None
    )
    numbers = [version.version for version in versions.versions]
    assert numbers == ["$LATEST", *(str(number) for number in range(1, len(numbers)))]
    assert {result for result in results if isinstance(result, str)} == set(numbers[1:])
    assert (await lambent.settled(account)).last_update_status == pb.LAST_UPDATE_STATUS_SUCCESSFUL
