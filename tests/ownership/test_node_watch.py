"""Nodes come, change and go as their records in etcd do."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from lambent.v1 import record_pb2
from lambent_common import keys
from lambent_common.etcd import Changes, Delete, EtcdClient, KeyValue, Put, Snapshot
from lambent_common.records import decode, encode
from lambent_scheduler.nodes.diff import Changed, Joined, Lost, after, node_events
from lambent_scheduler.nodes.watcher import watch_nodes

_IDS = ("n1", "n2", "n3")

_records = st.builds(
    lambda node_id, start, draining: _record(node_id, start=start, draining=draining),
    st.sampled_from(_IDS),
    st.integers(1, 3),
    st.booleans(),
)
_events = st.one_of(
    _records.map(lambda record: Put(_item(record))),
    st.sampled_from(_IDS).map(lambda node_id: Delete(keys.node(node_id), 1)),
)
_batches = st.one_of(
    st.lists(_events, max_size=6).map(lambda events: Changes(1, events)),
    st.lists(_records, max_size=3, unique_by=lambda record: record.node_id).map(
        lambda records: Snapshot(1, [_item(record) for record in records])
    ),
)


def _record(node_id: str, *, start: int = 1, draining: bool = False) -> record_pb2.NodeRecord:
    record = record_pb2.NodeRecord(node_id=node_id, address="127.0.0.1:1", draining=draining)
    record.start_time.seconds = start
    return record


def _item(record: record_pb2.NodeRecord) -> KeyValue:
    return KeyValue(keys.node(record.node_id), encode(record), 1, 1, 1)


def _read(item: KeyValue) -> record_pb2.NodeRecord:
    return decode(item.value, record_pb2.NodeRecord)


@given(st.lists(_batches, max_size=8))
def test_who_follows_the_events_knows_what_etcd_holds(batches: list[Snapshot | Changes]) -> None:
    """In whatever batches it comes, a listener knows the nodes that etcd holds; no life of one runs into another."""
    nodes: dict[str, record_pb2.NodeRecord] = {}
    truth: dict[str, record_pb2.NodeRecord] = {}
    for batch in batches:
        if isinstance(batch, Snapshot):
            truth = {keys.last_part(item.key): _read(item) for item in batch.items}
        else:
            for event in batch.events:
                if isinstance(event, Put):
                    truth[keys.last_part(event.item.key)] = _read(event.item)
                else:
                    truth.pop(keys.last_part(event.key), None)
        events = node_events(nodes, batch, _read)
        alive = dict(nodes)
        for told in events:
            match told:
                case Joined(record):
                    assert record.node_id not in alive
                    alive[record.node_id] = record
                case Changed(record):
                    assert alive[record.node_id].start_time == record.start_time
                    assert alive[record.node_id] != record
                    alive[record.node_id] = record
                case Lost(node_id):
                    del alive[node_id]
        nodes = after(nodes, events)
        assert nodes == alive == truth


def test_an_agent_that_started_anew_is_lost_first() -> None:
    """Its environments died with it, even when its lease never lapsed."""
    old, new = _record("n1", start=1), _record("n1", start=2)
    assert node_events({"n1": old}, Changes(2, [Put(_item(new))]), _read) == [Lost("n1"), Joined(new)]


class _Listener:
    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, str, bool]] = asyncio.Queue()

    def node_seen(self, record: record_pb2.NodeRecord) -> None:
        self.told.put_nowait(("seen", record.node_id, record.draining))

    def node_gone(self, node_id: str) -> None:
        self.told.put_nowait(("gone", node_id, False))


async def test_a_listener_hears_of_nodes_and_bad_records_do_no_harm(client: EtcdClient) -> None:
    """One agent's nonsense does not blind the scheduler to the others."""
    listener = _Listener()
    lease_id = await client.grant_lease(60)
    await client.put(keys.node("bad"), b"not json")
    await client.put(keys.node("masked"), encode(_record("n1")))
    await client.put(keys.node("n1"), encode(_record("n1")), lease_id=lease_id)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        watching = group.create_task(watch_nodes(client, listener))
        assert await listener.told.get() == ("seen", "n1", False)
        await client.put(keys.node("n1"), encode(_record("n1", draining=True)), lease_id=lease_id)
        assert await listener.told.get() == ("seen", "n1", True)
        await client.delete(keys.node("bad"))
        await client.put(keys.node("n1"), encode(_record("n1", start=2)), lease_id=lease_id)
        assert [await listener.told.get() for _ in range(2)] == [("gone", "n1", False), ("seen", "n1", False)]
        await client.revoke_lease(lease_id)
        assert await listener.told.get() == ("gone", "n1", False)
        watching.cancel()
