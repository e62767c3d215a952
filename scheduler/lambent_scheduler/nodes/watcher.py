"""Follows the node records in etcd; a record lives as long as its node's lease."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog
from lambent.v1 import record_pb2
from lambent_common import keys
from lambent_common.etcd import Put, Snapshot
from lambent_common.records import decode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lambent_common.etcd import EtcdClient, KeyValue

log = structlog.get_logger()


class NodeListener(Protocol):
    """Who hears of nodes."""

    def node_seen(self, record: record_pb2.NodeRecord) -> None:
        """A node joined, or its record changed."""

    def node_gone(self, node_id: str) -> None:
        """A node's lease has lapsed, or it left."""


async def watch_nodes(etcd: EtcdClient, listener: NodeListener) -> None:
    """Tell `listener` of every node, now and whenever that changes, until cancelled."""
    known: set[str] = set()
    async for batch in etcd.watch(keys.NODES):
        if isinstance(batch, Snapshot):
            gone = known - {keys.last_part(item.key) for item in batch.items}
            _tell_gone(listener, known, gone)
            for item in batch.items:
                _tell_seen(listener, known, item)
            continue
        for event in batch.events:
            if isinstance(event, Put):
                _tell_seen(listener, known, event.item)
            else:
                _tell_gone(listener, known, [keys.last_part(event.key)])


def _tell_seen(listener: NodeListener, known: set[str], item: KeyValue) -> None:
    record = decode(item.value, record_pb2.NodeRecord, key=item.key)
    if record.node_id not in known:
        log.info("node_joined", node_id=record.node_id, address=record.address, revision=item.mod_revision)
    known.add(record.node_id)
    listener.node_seen(record)


def _tell_gone(listener: NodeListener, known: set[str], gone: Iterable[str]) -> None:
    for node_id in gone:
        known.discard(node_id)
        log.warning("node_left", node_id=node_id)
        listener.node_gone(node_id)
