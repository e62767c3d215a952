"""The records of functions in etcd: read at one revision, written only if nothing that was read has changed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from lambent.errors import ResourceConflictError
from lambent.v1 import record_pb2
from lambent_common import keys, records
from lambent_common.etcd import delete_op, delete_prefix_op, mod_revision_is, prefix_unchanged_since, put_op
from lambent_scheduler.functions import record_keys
from lambent_scheduler.functions.model import FunctionRecords, not_found

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

    from lambent_common.etcd import EtcdClient, KeyValue
    from lambent_common.etcd.transaction import Compare, Operation
    from lambent_scheduler.functions.names import FunctionId

_Result = TypeVar("_Result")

# With so many lost races in a row the function is being written by more clients than it could serve one after the
# other.
_ATTEMPTS = 32


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a decision is made from.

    Attributes:
        records: The function; None when it does not exist.
        account_reserved: Sum of the account's reservations; 0 unless it was asked for.
        revision: etcd's revision of the newest write among what was read; 0 for nothing.
    """

    records: FunctionRecords | None
    account_reserved: int = 0
    revision: int = 0

    def require(self, arn: str) -> FunctionRecords:
        """Give the function.

        Raises:
            FunctionNotFoundError: It does not exist.
        """
        if self.records is None:
            raise not_found(arn)
        return self.records


@dataclass(frozen=True, slots=True)
class Write:
    """What a decision changes. Keys that are written or named in `requires` must be as they were read.

    Attributes:
        puts: New values by key.
        deletes: Keys that go.
        requires: Further keys that must not have changed.
        delete_function: Everything of the function goes.
    """

    puts: Mapping[str, Message] = field(default_factory=dict)
    deletes: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()
    delete_function: bool = False

    def __bool__(self) -> bool:
        return bool(self.puts or self.deletes or self.delete_function)


class FunctionRepository:
    """Reads and changes the records of functions. All methods raise UnavailableError when etcd does not answer."""

    def __init__(self, etcd: EtcdClient) -> None:
        self._etcd = etcd

    async def load(self, function: FunctionId) -> Loaded:
        """Give the function with its versions and aliases."""
        return (await self._load(function, whole=True, with_account=False)).loaded

    async def change(
        self,
        function: FunctionId,
        decide: Callable[[Loaded], tuple[Write, _Result]],
        *,
        whole: bool = False,
        with_account: bool = False,
    ) -> tuple[_Result, int]:
        """Read, decide and write until nobody else wrote in between.

        Args:
            function: What is read and changed.
            decide: Gives what to write, and the result. Called once per attempt; what it raises is passed on.
            whole: Versions, aliases and reservation are read too, and none of them may have changed.
            with_account: The account's sum of reservations is read too.

        Returns:
            The result, and etcd's revision of the write; 0 when there was nothing to write.

        Raises:
            ResourceConflictError: Too many others change the function at the same time.
        """
        pending: _Attempt[_Result] | None = None
        for _ in range(_ATTEMPTS):
            found = await self._load(function, whole=whole, with_account=with_account)
            if pending is not None and pending.is_done(found, function, whole=whole):
                return pending.result, found.loaded.revision
            write, result = decide(found.loaded)
            if not write:
                return result, 0
            pending = _Attempt(write, {key: records.encode(message) for key, message in write.puts.items()}, result)
            outcome = await self._etcd.txn(
                compare=_comparisons(function, found, write, whole=whole),
                success=_operations(function, pending),
            )
            if outcome.succeeded:
                return result, outcome.revision
        raise ResourceConflictError(
            f"The function {function.name} is being changed by too many callers at once. Please try again."
        )

    async def referenced_code(self) -> set[str]:
        """Give the SHA-256 of every package that some function refers to."""
        snapshot = await self._etcd.range(keys.ACCOUNTS)
        referenced: set[str] = set()
        for item in snapshot.items:
            referenced.update(_code_of(item))
            await asyncio.sleep(0)  # a record takes a quarter of a millisecond, and calls are not to wait for thousands
        return referenced

    async def _load(self, function: FunctionId, *, whole: bool, with_account: bool) -> _Found:
        account, name = function.account, function.name
        revision = 0
        if whole:
            snapshot = await self._etcd.range(keys.function_prefix(account, name))
            items, revision = list(snapshot.items), snapshot.revision
        else:
            item = await self._etcd.get(keys.function_latest(account, name))
            items = [] if item is None else [item]
        account_reserved = 0
        function_records = read_records(items)
        if with_account:
            total = await self._etcd.get(keys.account_reserved(account))
            if total is not None:
                items.append(total)
                record = records.decode(total.value, record_pb2.AccountReservationRecord, key=total.key)
                account_reserved = record.reserved_concurrent_executions
        newest = max((item.mod_revision for item in items), default=0)
        return _Found(Loaded(function_records, account_reserved, newest), {item.key: item for item in items}, revision)


@dataclass(frozen=True, slots=True)
class _Found:
    """What was read: decoded, by key, and the revision at which the function was read as a whole."""

    loaded: Loaded
    items: Mapping[str, KeyValue]
    revision: int


@dataclass(frozen=True, slots=True)
class _Attempt(Generic[_Result]):
    """A write whose comparison failed.

    By somebody else's write; or by our own, whose acknowledgement was lost, so that the client sent it again.
    """

    write: Write
    values: Mapping[str, bytes]
    result: _Result

    def is_done(self, found: _Found, function: FunctionId, *, whole: bool) -> bool:
        """Tell whether etcd holds what was to be written. Revision ids make a new value unlike any other."""
        if self.write.delete_function:
            return found.loaded.records is None
        latest = keys.function_latest(function.account, function.name)
        read = self.values.keys() if whole else self.values.keys() & {latest}
        written = all(key in found.items and found.items[key].value == self.values[key] for key in read)
        return bool(read) and written and not self.write.deletes & found.items.keys()


def _comparisons(function: FunctionId, found: _Found, write: Write, *, whole: bool) -> list[Compare]:
    compared = {keys.function_latest(function.account, function.name), *write.puts, *write.deletes, *write.requires}
    comparisons = [
        mod_revision_is(key, found.items[key].mod_revision if key in found.items else 0) for key in sorted(compared)
    ]
    if whole:
        comparisons.append(
            prefix_unchanged_since(keys.function_prefix(function.account, function.name), found.revision)
        )
    return comparisons


def _operations(function: FunctionId, attempt: _Attempt[_Result]) -> list[Operation]:
    operations = [put_op(key, value) for key, value in attempt.values.items()]
    operations += [delete_op(key) for key in sorted(attempt.write.deletes)]
    if attempt.write.delete_function:
        operations.append(delete_prefix_op(keys.function_prefix(function.account, function.name)))
    return operations


def read_records(items: list[KeyValue]) -> FunctionRecords | None:
    """Read the records of one function; None when its main record is not among them."""
    latest: record_pb2.FunctionRecord | None = None
    versions: dict[int, record_pb2.VersionRecord] = {}
    aliases: dict[str, record_pb2.AliasRecord] = {}
    reserved: int | None = None
    for item in items:
        match record_keys.parse(item.key):
            case record_keys.LatestKey():
                latest = records.decode(item.value, record_pb2.FunctionRecord)
            case record_keys.VersionKey(number=number):
                versions[number] = records.decode(item.value, record_pb2.VersionRecord)
            case record_keys.AliasKey(alias=alias):
                aliases[alias] = records.decode(item.value, record_pb2.AliasRecord)
            case record_keys.ConcurrencyKey():
                record = records.decode(item.value, record_pb2.ReservedConcurrencyRecord)
                reserved = record.reserved_concurrent_executions
            case _:
                pass  # of a newer version of Lambent
    return None if latest is None else FunctionRecords(latest, versions, aliases, reserved)


def _code_of(item: KeyValue) -> list[str]:
    match record_keys.parse(item.key):
        case record_keys.LatestKey():
            record = records.decode(item.value, record_pb2.FunctionRecord)
            return [record.function.code_sha256, record.serving.code_sha256]
        case record_keys.VersionKey():
            return [records.decode(item.value, record_pb2.VersionRecord).function.code_sha256]
        case _:
            return []
