"""Follows the records of nodes in etcd; a record lives as long as its node's lease."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog

from lambent.errors import InternalError
from lambent.v1 import record_pb2
from lambent_common import keys
from lambent_common.records import decode
from lambent_scheduler.nodes.diff import Changed, Joined, Lost, after, node_events

if TYPE_CHECKING:
    from lambent_common.etcd import EtcdClient, KeyValue
    from lambent_scheduler.nodes.diff import NodeEvent

log = structlog.get_logger()


class NodeListener(Protocol):
    """Who hears of nodes."""

    def node_seen(self, record: record_pb2.NodeRecord) -> None:
        """A node joined, or its record changed."""

    def node_gone(self, node_id: str) -> None:
        """A node's lease has lapsed, it left, or its agent started anew; then `node_seen` follows."""


async def watch_nodes(etcd: EtcdClient, listener: NodeListener) -> None:
    """Tell `listener` of every node, now and whenever that changes, until cancelled."""
    nodes: dict[str, record_pb2.NodeRecord] = {}
    async for batch in etcd.watch(keys.NODES):
        events = node_events(nodes, batch, _read_node)
        nodes = after(nodes, events)
        for event in events:
            _tell(listener, event)


def _tell(listener: NodeListener, event: NodeEvent) -> None:
    match event:
        case Joined(record):
            log.info("node_joined", node_id=record.node_id, address=record.address)
            listener.node_seen(record)
        case Changed(record):
            log.info("node_changed", node_id=record.node_id, address=record.address, draining=record.draining)
            listener.node_seen(record)
        case Lost(node_id):
            log.warning("node_lost", node_id=node_id)
            listener.node_gone(node_id)


def _read_node(item: KeyValue) -> record_pb2.NodeRecord | None:
    try:
        record = decode(item.value, record_pb2.NodeRecord, key=item.key)
    except InternalError as error:
        # One agent's bad record must not take the scheduler down.
        log.error("record_unreadable", key=item.key, error=error.message)  # noqa: TRY400, the message says it all
        return None
    if record.node_id != keys.last_part(item.key):
        log.error("record_misplaced", key=item.key, node_id=record.node_id)
        return None
    return record
