"""Every key that the cluster keeps in etcd. The account is in each, so that tenants can be added."""

from __future__ import annotations

import zlib

ROOT = "/lambent/v1/"
PARTITIONS = 256
"""Parts of the function space that scheduler instances own."""

ACCOUNTS = f"{ROOT}accounts/"
NODES = f"{ROOT}nodes/"
HEALTH = f"{ROOT}health/"
SCHEDULERS = f"{ROOT}schedulers/"
PARTITION_OWNERS = f"{ROOT}partitions/"
CONCURRENCY = f"{ROOT}concurrency/"


def functions_prefix(account: str) -> str:
    """Prefix of all functions of an account."""
    return f"{ACCOUNTS}{account}/functions/"


def function_prefix(account: str, function_name: str) -> str:
    """Prefix of everything that belongs to one function."""
    return f"{functions_prefix(account)}{function_name}/"


def function_latest(account: str, function_name: str) -> str:
    """FunctionRecord: $LATEST."""
    return f"{function_prefix(account, function_name)}latest"


def function_version(account: str, function_name: str, version: str) -> str:
    """VersionRecord of a published version."""
    return f"{function_prefix(account, function_name)}versions/{version}"


def function_alias(account: str, function_name: str, alias: str) -> str:
    """AliasRecord."""
    return f"{function_prefix(account, function_name)}aliases/{alias}"


def function_concurrency(account: str, function_name: str) -> str:
    """ReservedConcurrencyRecord."""
    return f"{function_prefix(account, function_name)}concurrency"


def account_reserved(account: str) -> str:
    """AccountReservationRecord: the sum of an account's reservations."""
    return f"{ACCOUNTS}{account}/reserved"


def node(node_id: str) -> str:
    """NodeRecord."""
    return f"{NODES}{node_id}"


def health(node_id: str) -> str:
    """NodeHealthRecord."""
    return f"{HEALTH}{node_id}"


def scheduler(scheduler_id: str) -> str:
    """SchedulerRecord."""
    return f"{SCHEDULERS}{scheduler_id}"


def partition_owner(partition: int) -> str:
    """PartitionRecord; its mod revision is the owner's epoch."""
    return f"{PARTITION_OWNERS}{partition}"


def concurrency(partition: int) -> str:
    """PartitionConcurrencyRecord."""
    return f"{CONCURRENCY}{partition}"


def last_part(key: str) -> str:
    """What follows the last slash: the id in a node's, scheduler's or partition's key."""
    return key.rpartition("/")[2]


def partition_of(account: str, function_name: str) -> int:
    """Give the partition of a function. Range: [0, 255]. The same in every process and for all time."""
    return zlib.crc32(f"{account}/{function_name}".encode()) % PARTITIONS
