"""The package store on a real nats-server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

import nats.errors
import pytest
from tests.nats_server import NatsServer, nats_cluster, nats_server

from lambent.errors import InvalidParameterError, ResourceNotFoundError, UnavailableError
from lambent_common import packages
from lambent_common.credentials import Credentials
from lambent_common.log_streams import ensure_log_streams, stream_name
from lambent_common.nats import connect_nats
from lambent_common.packages import PackageStore
from lambent_common.stream_reader import StreamReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with nats_server() as running:
        yield running


@pytest.fixture
async def js(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    async with server.connect() as client:
        yield client.jetstream()


def package(path: Path, content: bytes) -> tuple[Path, str]:
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


async def chunk_subjects(js: JetStreamContext) -> list[str]:
    state = (await js.stream_info("OBJ_lambent-code", subjects_filter="$O.lambent-code.C.>")).state
    return list(state.subjects or {})


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 3_000_001])
async def test_package_comes_back_as_it_was_put(js: JetStreamContext, tmp_path: Path, size: int) -> None:
    """Sizes around the chunk's, and none of it under its name before it is whole."""
    store = await PackageStore.open(js)
    path, sha256 = package(tmp_path / "in", os.urandom(size))
    info = await store.put(path)
    assert (info.sha256, info.size_bytes) == (sha256, size)
    (tmp_path / "cache").mkdir()
    await store.fetch(sha256, tmp_path / "cache" / sha256, 10)
    assert (tmp_path / "cache" / sha256).read_bytes() == path.read_bytes()
    assert names_in(tmp_path / "cache") == [sha256]


async def test_same_content_is_stored_once(js: JetStreamContext, tmp_path: Path) -> None:
    """Also when many put it at the same moment: the losers take their chunks back."""
    store = await PackageStore.open(js)
    path, sha256 = package(tmp_path / "in", os.urandom(300_000))
    await asyncio.gather(*(store.put(path) for _ in range(8)))
    assert [info.sha256 for info in await store.list()] == [sha256]
    state = (await js.stream_info("OBJ_lambent-code")).state
    assert state.messages == 3 + 1


async def test_unknown_package_is_said_so(js: JetStreamContext, tmp_path: Path) -> None:
    """The agent must tell a missing package from a store that is away."""
    store = await PackageStore.open(js)
    with pytest.raises(ResourceNotFoundError):
        await store.fetch("0" * 64, tmp_path / "x", 5)
    with pytest.raises(InvalidParameterError, match="upload it again"):
        await store.claim("0" * 64)
    with pytest.raises(InvalidParameterError, match="not a SHA-256"):
        await store.claim("../../etc/passwd")
    assert not await store.exists("0" * 64)
    assert not await store.delete("0" * 64)
    assert await store.list() == []
    assert names_in(tmp_path) == []


async def test_claim_saves_a_package_from_a_deletion_under_way(js: JetStreamContext, tmp_path: Path) -> None:
    """The sweep read the mark, then somebody made a function of the package: it must stay."""
    store = await PackageStore.open(js)
    path, sha256 = package(tmp_path / "in", b"code")
    assert await store.mark_unreferenced(await store.put(path), 17.25)
    seen = await store.info(sha256)
    assert seen is not None
    assert seen.unreferenced_since == 17.25
    assert (await store.claim(sha256)).unreferenced_since is None
    assert not await store.delete_unchanged(seen)
    assert not await store.mark_unreferenced(seen, 18.0)
    await store.fetch(sha256, tmp_path / "out", 5)


async def test_put_takes_the_mark_away(js: JetStreamContext, tmp_path: Path) -> None:
    """Who uploads means to use it soon."""
    store = await PackageStore.open(js)
    path, _ = package(tmp_path / "in", b"code")
    assert await store.mark_unreferenced(await store.put(path), 1.0)
    assert (await store.put(path)).unreferenced_since is None


async def test_deleted_package_leaves_nothing_and_can_be_put_again(js: JetStreamContext, tmp_path: Path) -> None:
    """A tombstone for every package ever would fill the stream."""
    store = await PackageStore.open(js)
    path, sha256 = package(tmp_path / "in", os.urandom(500_000))
    await store.put(path)
    assert await store.delete(sha256)
    assert (await js.stream_info("OBJ_lambent-code")).state.messages == 0
    await store.put(path)
    assert await store.exists(sha256)


async def test_a_package_that_an_operator_removed_can_be_put_again(js: JetStreamContext, tmp_path: Path) -> None:
    """`nats object rm` leaves a tombstone, as a scheduler does that dies while it deletes."""
    store = await PackageStore.open(js)
    path, sha256 = package(tmp_path / "in", b"code")
    await store.put(path)
    await (await js.object_store("lambent-code")).delete(sha256)
    assert not await store.exists(sha256)
    await store.put(path)
    await store.fetch(sha256, tmp_path / "out", 5)


class _Gated(PackageStore):
    """Writes no description before it may."""

    def __init__(self, js: JetStreamContext) -> None:
        super().__init__(js)
        self.reached, self.released = asyncio.Event(), asyncio.Event()

    async def _describe(self, *args: Any, **options: Any) -> int | None:
        self.reached.set()
        await self.released.wait()
        return await super()._describe(*args, **options)


async def test_chunks_of_an_upload_that_was_cut_off_are_deleted(js: JetStreamContext, tmp_path: Path) -> None:
    """Nobody else would: they have no description. What is stored, or on its way, stays."""
    uploader = await _Gated.open(js)
    under_way, sha256 = package(tmp_path / "in", os.urandom(500_000))
    async with asyncio.timeout(30):
        store = await PackageStore.open(js)
        stored = [await store.put(package(tmp_path / str(n), os.urandom(300_000))[0]) for n in range(20)]
        objects = await js.object_store("lambent-code")
        await objects.put("an operator's own", b"object")
        for upload in ("dead", "slow"):
            await js.publish(f"$O.lambent-code.C.{upload}", b"chunk")
        before = time.time()
        await js.publish("$O.lambent-code.C.slow", b"chunk")
        putting = asyncio.create_task(uploader.put(under_way))
        await uploader.reached.wait()
        subjects = set(await chunk_subjects(js))
        assert await store.delete_abandoned(before) == 1
        assert subjects - set(await chunk_subjects(js)) == {"$O.lambent-code.C.dead"}
        uploader.released.set()
        await putting
        assert await store.delete_abandoned(time.time() + 1) == 1, "the slow one; all others have a description"
    for name in (sha256, *(info.sha256 for info in stored)):
        await store.fetch(name, tmp_path / "out", 5)
    assert (await objects.get("an operator's own")).data == b"object"


class _Unacknowledged(PackageStore):
    """Writes its description, and is never told so."""

    def __init__(self, js: JetStreamContext) -> None:
        super().__init__(js)
        self.described = asyncio.Event()
        self.outcome: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def _describe(self, *args: Any, **options: Any) -> int | None:
        await super()._describe(*args, **options)
        self.described.set()
        return await self.outcome


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_description_whose_acknowledgement_is_lost_keeps_its_chunks(
    js: JetStreamContext, tmp_path: Path, cancelled: bool
) -> None:
    """NATS restarts, or the uploader leaves, just then: a package that is known is one that can be fetched."""
    path, sha256 = package(tmp_path / "in", os.urandom(300_000))
    uploader = await _Unacknowledged.open(js)
    async with asyncio.timeout(20):
        putting = asyncio.create_task(uploader.put(path))
        await uploader.described.wait()
        if cancelled:
            putting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await putting
        else:
            uploader.outcome.set_exception(nats.errors.TimeoutError())
            with pytest.raises(UnavailableError, match="timeout"):
                await putting
        store = await PackageStore.open(js)
        await store.put(path)
        assert await store.delete_abandoned(time.time() + 1) == 0
        await store.fetch(sha256, tmp_path / "out", 5)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


class _Behind(StreamReader):
    """Reads as from a member that has not been told of the newest message."""

    async def read(self) -> list[Msg]:
        messages = await super().read()
        return messages if self.pending else messages[:-1]


async def test_a_member_that_lags_behind_deletes_no_package(
    js: JetStreamContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was made anew, and copies the stream, knows chunks of packages whose description it does not know."""
    store = await PackageStore.open(js)
    path, sha256 = package(tmp_path / "in", b"code")
    await store.put(path)
    monkeypatch.setattr(packages, "StreamReader", _Behind)
    with pytest.raises(UnavailableError, match=r"knows the packages up to 0, of 2"):
        await store.list()
    await js.publish("$O.lambent-code.C.dead", b"chunk")
    with pytest.raises(UnavailableError, match=r"knows the packages up to 0, of 2"):
        await store.delete_abandoned(time.time() + 1)
    monkeypatch.undo()
    await store.fetch(sha256, tmp_path / "out", 5)
    assert await store.delete_abandoned(time.time() + 1) == 1


async def test_a_store_that_is_away_is_noticed_before_anything_is_sent(server: NatsServer) -> None:
    """A deployment is refused within seconds, and the text says what is missing."""
    async with server.connect() as client:
        store = await PackageStore.open(client.jetstream())
        await store.check_available()
        await server.kill()
        with pytest.raises(UnavailableError, match=r"the package store is away: NATS does not answer within 0\.2 s"):
            await store.check_available(timeout_s=0.2)


async def test_packages_survive_a_crash_of_the_server(server: NatsServer, tmp_path: Path) -> None:
    """An acknowledged upload is on disk; the client finds the way back by itself."""
    path, sha256 = package(tmp_path / "in", os.urandom(200_000))
    async with server.connect() as client:
        store = await PackageStore.open(client.jetstream())
        await store.put(path)
        await server.kill()
        with pytest.raises(UnavailableError):
            await store.fetch(sha256, tmp_path / "out", 0.5)
        await server.start()
        async with asyncio.timeout(20):
            while True:
                try:
                    await store.fetch(sha256, tmp_path / "out", 5)
                except UnavailableError:
                    continue
                break
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert names_in(tmp_path) == ["in", "out"]


async def test_a_cluster_keeps_every_stream_on_three_members() -> None:
    """A machine that is lost takes no function's code and no log with it."""
    async with nats_cluster() as servers, asyncio.timeout(60), servers[0].connect() as client:
        js = client.jetstream()
        while True:
            try:
                await PackageStore.open(js)
                await ensure_log_streams(js)
            except UnavailableError:  # there is no leader yet
                continue
            break
        for name in ("OBJ_lambent-code", stream_name(0)):
            assert (await js.stream_info(name)).config.num_replicas == 3


async def test_what_an_operator_set_stays(js: JetStreamContext) -> None:
    """Every daemon ensures the streams at its start; older ones know other bounds."""
    await PackageStore.open(js)
    await ensure_log_streams(js)
    for name in ("OBJ_lambent-code", stream_name(1)):
        config = (await js.stream_info(name)).config
        assert config.num_replicas == 1
        await js.update_stream(config.evolve(max_bytes=123_456_789, description="mine"))
    await PackageStore.open(js)
    await ensure_log_streams(js)
    for name in ("OBJ_lambent-code", stream_name(1)):
        config = (await js.stream_info(name)).config
        assert (config.max_bytes, config.description) == (123_456_789, "mine")


async def test_wrong_password_is_refused_with_a_reason(server: NatsServer) -> None:
    """The store holds everybody's code: no anonymous visitors."""
    for credentials in (Credentials(), Credentials(nats_user="lambent", nats_password="guess")):
        with pytest.raises(UnavailableError, match=r"cannot be reached.*[Aa]uthorization"):
            await connect_nats([server.url], credentials, "test", timeout_s=1.5)


async def test_a_connection_can_be_closed_while_the_server_is_away(server: NatsServer) -> None:
    """A daemon that is stopped during an outage ends cleanly, whatever waits to be sent."""
    client = await connect_nats([server.url], server.credentials, "test")
    await server.kill()
    with pytest.raises(nats.errors.TimeoutError):
        await client.request("subject", timeout=0.2)
    assert not client.is_connected
    await client.close()


async def test_absent_server_is_named(tmp_path: Path) -> None:
    """The operator sees which address was tried."""
    with pytest.raises(UnavailableError, match=r"nats://127\.0\.0\.1:1 cannot be reached within 0\.5 s"):
        await connect_nats(["nats://127.0.0.1:1"], Credentials(), "test", timeout_s=0.5)
