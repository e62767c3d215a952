"""etcd's messages as our values. The stubs carry no types, so that Any ends here."""

from __future__ import annotations

from typing import Any

from aetcd.rpc import kv_pb2

from lambent_common.etcd.model import Delete, KeyValue, Put


def key_value(kv: Any) -> KeyValue:
    """Read an mvccpb.KeyValue."""
    return KeyValue(
        key=kv.key.decode(),
        value=bytes(kv.value),
        create_revision=int(kv.create_revision),
        mod_revision=int(kv.mod_revision),
        lease_id=int(kv.lease),
    )


def event(message: Any) -> Put | Delete:
    """Read an mvccpb.Event."""
    if message.type == kv_pb2.Event.DELETE:
        return Delete(key=message.kv.key.decode(), mod_revision=int(message.kv.mod_revision))
    return Put(key_value(message.kv))
