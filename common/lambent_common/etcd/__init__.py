"""A thin etcd client on `grpc.aio`: several endpoints, TLS, paged ranges, resuming watches, leases."""

from lambent_common.etcd.client import EtcdClient, EtcdStatus
from lambent_common.etcd.errors import (
    EtcdCompactedError,
    EtcdFullError,
    EtcdRequestError,
    EtcdUnavailableError,
    EtcdUnsupportedError,
    LeaseLostError,
)
from lambent_common.etcd.lease import LeaseKeeper
from lambent_common.etcd.model import Changes, Delete, KeyValue, Put, Snapshot
from lambent_common.etcd.transaction import (
    TxnResult,
    delete_op,
    delete_prefix_op,
    mod_revision_is,
    prefix_unchanged_since,
    put_op,
)

__all__ = [
    "Changes",
    "Delete",
    "EtcdClient",
    "EtcdCompactedError",
    "EtcdFullError",
    "EtcdRequestError",
    "EtcdStatus",
    "EtcdUnavailableError",
    "EtcdUnsupportedError",
    "KeyValue",
    "LeaseKeeper",
    "LeaseLostError",
    "Put",
    "Snapshot",
    "TxnResult",
    "delete_op",
    "delete_prefix_op",
    "mod_revision_is",
    "prefix_unchanged_since",
    "put_op",
]
