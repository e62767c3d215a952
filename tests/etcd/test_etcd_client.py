"""The etcd client against a real server that is killed, compacted and silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from lambent.errors import InvalidParameterError, UnavailableError
from lambent_common.credentials import Credentials
from lambent_common.etcd import (
    Changes,
    Delete,
    EtcdClient,
    EtcdUnavailableError,
    LeaseKeeper,
    Put,
    Snapshot,
    delete_op,
    delete_prefix_op,
    mod_revision_is,
    prefix_unchanged_since,
    put_op,
)

from tests.etcd_server import EtcdServer, etcd_server, free_port


@pytest.fixture
async def server() -> AsyncIterator[EtcdServer]:
    async with etcd_server() as server:
        yield server


@pytest.fixture
async def client(server: EtcdServer) -> AsyncIterator[EtcdClient]:
    async with await server.connect() as client:
        yield client


async def test_a_write_that_compares_an_old_revision_is_refused(client: EtcdClient) -> None:
    """Two writers of one function cannot overwrite each other unseen."""
    first = await client.put("/a", b"1")
    assert (await client.txn([mod_revision_is("/a", first)], [put_op("/a", b"2")])).succeeded
    assert not (await client.txn([mod_revision_is("/a", first)], [put_op("/a", b"3")])).succeeded
    item = await client.get("/a")
    assert item is not None
    assert item.value == b"2"
    assert (await client.txn([mod_revision_is("/b", 0)], [put_op("/b", b"new")])).succeeded


async def test_a_prefix_that_changed_is_noticed_by_a_transaction(client: EtcdClient) -> None:
    """A decision made from many keys holds only while none of them was written."""
    await client.put("/f/a", b"1")
    revision = (await client.range("/f/")).revision
    assert (await client.txn([prefix_unchanged_since("/f/", revision)], [put_op("/other", b"")])).succeeded
    await client.put("/f/b", b"2")
    assert not (await client.txn([prefix_unchanged_since("/f/", revision)], [put_op("/other", b"")])).succeeded


async def test_a_range_read_in_pages_shows_one_revision(client: EtcdClient) -> None:
    """A listing is whole and consistent, however many pages it takes."""
    for number in range(7):
        await client.put(f"/list/{number}", str(number).encode())
    snapshot = await client.range("/list/", page_size=3)
    assert [item.value for item in snapshot.items] == [str(number).encode() for number in range(7)]
    await client.txn([], [delete_op("/list/0"), delete_prefix_op("/list/1")])
    assert len((await client.range("/list/")).items) == 5


async def test_a_watch_begins_with_what_is_there_and_tells_every_change(client: EtcdClient) -> None:
    """Nothing falls between the list and the watch."""
    await client.put("/w/a", b"1")
    async with asyncio.timeout(20):
        batches = client.watch("/w/")
        snapshot = await anext(batches)
        assert isinstance(snapshot, Snapshot)
        assert [item.key for item in snapshot.items] == ["/w/a"]
        await client.put("/w/b", b"2")
        await client.delete("/w/a")
        seen = await _events(batches, 2)
    assert [type(event) for event in seen] == [Put, Delete]


async def test_a_watch_goes_on_after_the_server_was_killed(server: EtcdServer, client: EtcdClient) -> None:
    """A restart of etcd costs a scheduler nothing that happened meanwhile."""
    async with asyncio.timeout(40):
        batches = client.watch("/w/")
        await anext(batches)
        await client.put("/w/a", b"1")
        await _events(batches, 1)
        await server.kill()
        await server.start()
        await client.put("/w/b", b"2")
        (event,) = await _events(batches, 1)
    assert isinstance(event, Put)
    assert event.item.key == "/w/b"


async def test_a_watch_lists_again_when_its_revision_was_compacted(server: EtcdServer, client: EtcdClient) -> None:
    """A scheduler that was away for long sees what is, not what was."""
    async with asyncio.timeout(40):
        batches = client.watch("/w/")
        await anext(batches)
        await client.put("/w/gone", b"1")
        await _events(batches, 1)
        await server.kill()
        await server.start()
        # The watch comes back only when it is read, so all of this happens behind its back.
        await client.delete("/w/gone")
        revision = await client.put("/w/new", b"2")
        await client.compact(revision)
        batch = await anext(batches)
    assert isinstance(batch, Snapshot)
    assert [item.key for item in batch.items] == ["/w/new"]


async def test_a_key_under_a_lease_goes_when_the_lease_ends(client: EtcdClient) -> None:
    """A dead node leaves the pool by itself."""
    lease_id = await client.grant_lease(5)
    async with asyncio.timeout(20):
        batches = client.watch("/l/")
        await anext(batches)
        await client.put("/l/node", b"", lease_id=lease_id)
        await client.revoke_lease(lease_id)
        seen = await _events(batches, 2)
    assert isinstance(seen[1], Delete)
    await client.revoke_lease(lease_id)


async def test_a_blocked_event_loop_does_not_lose_the_lease(server: EtcdServer, client: EtcdClient) -> None:
    """A node that computes is alive: renewal has a thread of its own."""
    lease_id = await client.grant_lease(1)
    await client.put("/l/node", b"", lease_id=lease_id)
    keeper = LeaseKeeper(server.endpoints, server.credentials, lease_id, 1, on_lost=lambda: None).start()
    try:
        until = time.monotonic() + 4
        while time.monotonic() < until:
            sum(range(10_000))
        assert await client.get("/l/node") is not None
    finally:
        keeper.close()


async def test_the_keeper_tells_when_the_lease_is_gone(server: EtcdServer, client: EtcdClient) -> None:
    """A scheduler without a lease must stop giving orders."""
    lease_id = await client.grant_lease(2)
    loop = asyncio.get_running_loop()
    lost = asyncio.Event()

    def on_lost() -> None:
        loop.call_soon_threadsafe(lost.set)

    keeper = LeaseKeeper(server.endpoints, server.credentials, lease_id, 2, on_lost=on_lost).start()
    await client.revoke_lease(lease_id)
    async with asyncio.timeout(10):
        await lost.wait()
    keeper.close()


async def test_a_server_that_is_away_gives_a_typed_error_in_bounded_time(
    server: EtcdServer, client: EtcdClient
) -> None:
    """A call names etcd and ends, instead of hanging."""
    await server.kill()
    async with asyncio.timeout(10):
        with pytest.raises(EtcdUnavailableError, match="did not answer within"):
            await client.put("/a", b"")


async def test_a_second_member_answers_when_the_first_is_away(server: EtcdServer) -> None:
    """Any member will do."""
    endpoints = [f"http://127.0.0.1:{free_port()}", *server.endpoints]
    async with asyncio.timeout(20), await EtcdClient.connect(endpoints, Credentials()) as client:
        await client.put("/a", b"1")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:2379", "ftp://a:1", "http://", ""])
async def test_a_malformed_endpoint_is_named(endpoint: str) -> None:
    """A typing error in a flag is found at the start."""
    with pytest.raises(InvalidParameterError, match="endpoint"):
        await EtcdClient.connect([endpoint], Credentials())


def test_an_unavailable_etcd_is_an_unavailable_service() -> None:
    """Callers need not know etcd's own class."""
    assert issubclass(EtcdUnavailableError, UnavailableError)
    assert EtcdUnavailableError.aws_name == UnavailableError.aws_name


async def _events(batches: AsyncIterator[Snapshot | Changes], count: int) -> list[Put | Delete]:
    seen: list[Put | Delete] = []
    while len(seen) < count:
        batch = await anext(batches)
        assert isinstance(batch, Changes)
        seen.extend(batch.events)
    return seen
