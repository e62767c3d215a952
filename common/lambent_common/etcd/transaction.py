"""Parts of a transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from aetcd.rpc import rpc_pb2

from lambent_common.etcd.model import prefix_end

Compare: TypeAlias = Any
"""An etcdserverpb.Compare; the stubs have no types."""

Operation: TypeAlias = Any
"""An etcdserverpb.RequestOp; the stubs have no types."""

MAX_OPERATIONS = 128
"""etcd's default --max-txn-ops."""


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Outcome of a transaction.

    Attributes:
        succeeded: True when every comparison held, and `success` was done.
        revision: Revision of the store after it.
        resent: True when an earlier sending's answer was lost. A comparison may then have failed by our own success.
    """

    succeeded: bool
    revision: int
    resent: bool = False


def mod_revision_is(key: str, revision: int) -> Compare:
    """Compare the revision that last wrote `key`; 0 means that the key must not exist."""
    return rpc_pb2.Compare(
        result=rpc_pb2.Compare.EQUAL, target=rpc_pb2.Compare.MOD, key=key.encode(), mod_revision=revision
    )


def prefix_unchanged_since(prefix: str, revision: int) -> Compare:
    """Compare every key that begins with `prefix`: none may have been written after `revision`.

    Deletions are not seen; whoever relies on a key names it as well.
    """
    return rpc_pb2.Compare(
        result=rpc_pb2.Compare.LESS,
        target=rpc_pb2.Compare.MOD,
        key=prefix.encode(),
        range_end=prefix_end(prefix),
        mod_revision=revision + 1,
    )


def put_op(key: str, value: bytes, *, lease_id: int = 0) -> Operation:
    """Write a key."""
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key.encode(), value=value, lease=lease_id))


def delete_op(key: str) -> Operation:
    """Delete a key; one that does not exist is no error."""
    return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key.encode()))


def delete_prefix_op(prefix: str) -> Operation:
    """Delete every key that begins with `prefix`."""
    return rpc_pb2.RequestOp(
        request_delete_range=rpc_pb2.DeleteRangeRequest(key=prefix.encode(), range_end=prefix_end(prefix))
    )
