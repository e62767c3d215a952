"""Watches of a real server that is killed, compacted, emptied and far ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.etcd_fixtures import next_events
from tests.etcd_server import EtcdServer

from lambent_common.etcd import Changes, Delete, EtcdClient, EtcdUnavailableError, Put, Snapshot, put_op

_BACKLOG = 2500
"""etcd sends at most 1,000 revisions of a backlog in one response (mvcc: watchBatchMaxRevs)."""


async def test_a_watch_begins_with_what_is_there_and_tells_every_change(client: EtcdClient) -> None:
    """Nothing falls between the list and the watch."""
    await client.put("/w/a", b"1")
    async with asyncio.timeout(20):
        batches = client.watch("/w/")
        snapshot = await anext(batches)
        assert isinstance(snapshot, Snapshot)
        assert [item.key for item in snapshot.items] == ["/w/a"]
        await client.put("/w/b", b"2")
        await client.put("/x/unseen", b"")
        await client.delete("/w/a")
        seen = await next_events(batches, 2)
    assert [type(event) for event in seen] == [Put, Delete]


async def test_the_writes_of_one_transaction_come_together(client: EtcdClient) -> None:
    """A follower never shows half of a change, even of one larger than a message."""
    value = b"x" * 100_000
    async with asyncio.timeout(20):
        batches = client.watch("/w/")
        await anext(batches)
        await asyncio.gather(
            client.txn([], [put_op(f"/w/{n}", value) for n in range(12)]),
            client.txn([], [put_op(f"/w/{n}", value) for n in range(12, 24)]),
        )
        counts: dict[int, int] = {}
        while sum(counts.values()) < 24:
            batch = await anext(batches)
            assert isinstance(batch, Changes)
            revisions = [event.item.mod_revision for event in batch.events if isinstance(event, Put)]
            assert not counts.keys() & set(revisions)
            for revision in revisions:
                counts[revision] = counts.get(revision, 0) + 1
    assert list(counts.values()) == [12, 12]


async def test_a_watch_goes_on_after_the_server_was_killed(server: EtcdServer, client: EtcdClient) -> None:
    """A restart of etcd costs a scheduler nothing that happened meanwhile."""
    async with asyncio.timeout(40):
        batches = await _watch_that_saw(client, "/w/a")
        await server.kill()
        await server.start()
        await client.put("/w/b", b"2")
        (event,) = await next_events(batches, 1)
    assert isinstance(event, Put)
    assert event.item.key == "/w/b"


async def test_a_backlog_that_is_cut_off_is_seen_once_and_whole(server: EtcdServer, client: EtcdClient) -> None:
    """Etcd sends a backlog in parts under its newest revision; to resume from that would lose the rest."""
    async with asyncio.timeout(60):
        batches = client.watch("/w/")
        await anext(batches)
        await asyncio.gather(*(client.put(f"/w/{n}", b"") for n in range(_BACKLOG)))
        first = await anext(batches)
        assert isinstance(first, Changes)
        assert len(first.events) < _BACKLOG
        assert first.revision == _revision(first.events[-1])
        await server.kill()
        await server.start()
        seen = [*first.events, *await next_events(batches, _BACKLOG - len(first.events))]
    assert [_revision(event) for event in seen] == list(range(2, _BACKLOG + 2))


async def test_a_watch_lists_again_when_its_revision_was_compacted(server: EtcdServer, client: EtcdClient) -> None:
    """A scheduler that was away for long sees what is, not what was."""
    async with asyncio.timeout(40):
        batches = await _watch_that_saw(client, "/w/gone")
        await server.kill()
        await server.start()
        # The watch comes back only when it is read, so all of this happens behind its back.
        await client.delete("/w/gone")
        await client.compact(await client.put("/w/new", b"2"))
        batch = await anext(batches)
    assert isinstance(batch, Snapshot)
    assert [item.key for item in batch.items] == ["/w/new"]


async def test_a_watch_lists_again_when_etcd_lost_its_data(server: EtcdServer, client: EtcdClient) -> None:
    """An etcd restored from nothing never comes to the revision that a watch waits for."""
    async with asyncio.timeout(40):
        batches = await _watch_that_saw(client, "/w/a")
        await server.kill()
        server.forget()
        await server.start()
        batch = await anext(batches)
    assert batch == Snapshot(revision=1, items=[])


async def test_closing_the_client_ends_a_watch_with_an_error(client: EtcdClient) -> None:
    """Not by cancelling it, which to a task group would look like an order to end quietly."""
    async with asyncio.timeout(20):
        batches = client.watch("/w/")
        await anext(batches)
        await client.put("/w/a", b"")
        await next_events(batches, 1)
        waiting = asyncio.ensure_future(anext(batches))
        await client.get("/w/a")
        await client.close()
        with pytest.raises(EtcdUnavailableError, match="closed"):
            await waiting


async def test_a_cancelled_watcher_is_cancelled(client: EtcdClient) -> None:
    """A daemon that stops is not held up by its watches."""

    async def follow() -> None:
        async for _ in client.watch("/w/"):
            seen.set()

    seen = asyncio.Event()
    following = asyncio.create_task(follow())
    async with asyncio.timeout(20):
        await seen.wait()
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following


async def _watch_that_saw(client: EtcdClient, key: str) -> AsyncIterator[Snapshot | Changes]:
    """A watch of `/w/` that has told what was there and one change."""
    batches = client.watch("/w/")
    await anext(batches)
    await client.put(key, b"1")
    await next_events(batches, 1)
    return batches


def _revision(event: Put | Delete) -> int:
    return event.item.mod_revision if isinstance(event, Put) else event.mod_revision
