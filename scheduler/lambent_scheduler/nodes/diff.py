"""What a batch from etcd means for the set of nodes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from lambent_common import keys
from lambent_common.etcd import Put, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lambent.v1 import record_pb2
    from lambent_common.etcd import KeyValue
    from lambent_common.etcd.model import WatchBatch


@dataclass(frozen=True, slots=True)
class Joined:
    """A node that was not there, or another life of one that was: its agent started anew."""

    record: record_pb2.NodeRecord


@dataclass(frozen=True, slots=True)
class Changed:
    """The same agent says something else of itself."""

    record: record_pb2.NodeRecord


@dataclass(frozen=True, slots=True)
class Lost:
    """The node's lease has lapsed, it left, or another life of it takes its place."""

    node_id: str


NodeEvent: TypeAlias = Joined | Changed | Lost
Nodes: TypeAlias = "Mapping[str, record_pb2.NodeRecord]"


def node_events(
    known: Nodes, batch: WatchBatch, read: Callable[[KeyValue], record_pb2.NodeRecord | None]
) -> list[NodeEvent]:
    """Give what changed, in order.

    Args:
        known: The nodes by id, as the batches before this one left them.
        batch: A snapshot replaces everything that is known.
        read: Decodes a record; None for one that cannot be used, which leaves the node as it was.
    """
    nodes = dict(known)
    events: list[NodeEvent] = []
    if isinstance(batch, Snapshot):
        present = {keys.last_part(item.key) for item in batch.items}
        for node_id in sorted(nodes.keys() - present):
            events += _lose(nodes, node_id)
        for item in batch.items:
            events += _put(nodes, item, read)
        return events
    for event in batch.events:
        events += _put(nodes, event.item, read) if isinstance(event, Put) else _lose(nodes, keys.last_part(event.key))
    return events


def after(known: Nodes, events: list[NodeEvent]) -> dict[str, record_pb2.NodeRecord]:
    """Give the nodes as they are after the events."""
    nodes = dict(known)
    for event in events:
        match event:
            case Joined(record) | Changed(record):
                nodes[record.node_id] = record
            case Lost(node_id):
                del nodes[node_id]
    return nodes


def _lose(nodes: dict[str, record_pb2.NodeRecord], node_id: str) -> list[NodeEvent]:
    return [Lost(node_id)] if nodes.pop(node_id, None) is not None else []


def _put(
    nodes: dict[str, record_pb2.NodeRecord],
    item: KeyValue,
    read: Callable[[KeyValue], record_pb2.NodeRecord | None],
) -> list[NodeEvent]:
    record = read(item)
    if record is None:
        return []
    before = nodes.get(record.node_id)
    nodes[record.node_id] = record
    if before is None:
        return [Joined(record)]
    if before == record:
        return []
    if before.start_time != record.start_time:
        # The agent died with its environments, and came back before its lease had lapsed.
        return [Lost(record.node_id), Joined(record)]
    return [Changed(record)]
