"""All functions as this scheduler knows them, kept current by a watch: what invocations are resolved against.

One writer (`apply`), and no I/O in any answer. Reading here may be a moment behind etcd; who has just written waits
for its write with `wait_for_revision`.
"""

from __future__ import annotations

import asyncio
import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from lambent.errors import AliasNotFoundError, UnavailableError
from lambent.v1 import record_pb2
from lambent_common import keys, records
from lambent_common.etcd import Changes, Delete, Put, Snapshot
from lambent_scheduler.core.version import VersionKey, VersionSpec
from lambent_scheduler.functions import model, record_keys
from lambent_scheduler.functions.names import LATEST, FunctionId, Naming, is_version_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lambent.v1 import function_pb2
    from lambent_common.etcd import EtcdClient, KeyValue

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Target:
    """What a name and qualifier lead to: one version, or a second one with a probability."""

    primary: VersionSpec
    other: VersionSpec | None = None
    weight: float = 0.0


@dataclass(slots=True)
class _Entry:
    """One function. `specs` keeps one object per revision; `cached` lists the keys of `_targets` that lead here."""

    latest: record_pb2.FunctionRecord | None = None
    versions: dict[str, record_pb2.VersionRecord] = field(default_factory=dict)
    aliases: dict[str, record_pb2.AliasRecord] = field(default_factory=dict)
    reserved: int | None = None
    specs: dict[str, VersionSpec] = field(default_factory=dict)
    cached: list[tuple[str, str, str]] = field(default_factory=list)

    def is_empty(self) -> bool:
        return self.latest is None and not self.versions and not self.aliases and self.reserved is None


class FunctionTable:
    """The functions of all accounts."""

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self._entries: dict[FunctionId, _Entry] = {}
        self._names: dict[str, list[str]] = {}
        self._targets: dict[tuple[str, str, str], _Target] = {}
        self._reserved: dict[tuple[str, str], int] = {}
        self._account_reserved: dict[str, int] = {}
        self._mod_revisions: dict[str, int] = {}
        self._revision = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._callbacks: list[Callable[[str, str], None]] = []
        self._ready = asyncio.Event()

    async def follow(self, etcd: EtcdClient) -> None:
        """Keep the table current, for ever."""
        async for batch in etcd.watch(keys.ACCOUNTS):
            self.apply(batch)

    async def wait_until_ready(self) -> None:
        """Wait until the table holds what etcd held when `follow` began."""
        await self._ready.wait()

    async def wait_for_revision(self, revision: int, *, timeout_s: float = 5.0) -> None:
        """Wait until a write to a function, which made this revision, shows here.

        Raises:
            UnavailableError: It does not show in time: the watch is interrupted.
        """
        if revision <= self._revision:
            return
        future = asyncio.get_running_loop().create_future()
        waiter = (revision, future)
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError as error:
            raise UnavailableError(f"etcd's revision {revision} does not show in the watch") from error
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def on_change(self, callback: Callable[[str, str], None]) -> None:
        """Have `callback(account, function_name)` called after each change of what belongs to a function."""
        self._callbacks.append(callback)

    def resolve(self, account: str, function_name: str, qualifier: str, draw: float) -> VersionSpec:
        """Give the version that an invocation runs: the same object for the same revision, every time.

        Args:
            account: Empty means the default one.
            function_name: Name or ARN, qualified or not.
            qualifier: Version, alias or empty.
            draw: Random number in [0, 1), which decides between the versions of an alias.

        Raises:
            FunctionNotFoundError: No such function or version.
            AliasNotFoundError: No such alias.
            ResourceConflictError: The version is not ACTIVE.
            InvalidParameterError, ResourceNotFoundError, PermissionDeniedError: See `Naming.read`.
        """
        target = self._targets.get((account, function_name, qualifier))
        if target is None:
            target = self._find(account, function_name, qualifier)
        if target.other is not None and draw < target.weight:
            return target.other
        return target.primary

    def reserved(self, account: str, function_name: str) -> int | None:
        """Give the reserved concurrency of a function, by its plain name; None when none is reserved."""
        return self._reserved.get((account, function_name))

    def account_reserved(self, account: str) -> int:
        """Give the sum of an account's reservations."""
        return self._account_reserved.get(account, 0)

    def functions(self, account: str, *, after: str, count: int) -> list[function_pb2.Function]:
        """Give up to `count` functions ($LATEST of each) by name, beginning after a name."""
        names = self._names.get(account, [])
        begin = bisect.bisect_right(names, after)
        entries = (self._entries[FunctionId(account, name)] for name in names[begin : begin + count])
        return [entry.latest.function for entry in entries if entry.latest is not None]

    def exists(self, function: FunctionId) -> bool:
        """Tell whether there is such a function."""
        entry = self._entries.get(function)
        return entry is not None and entry.latest is not None

    def is_under_way(self, function: FunctionId) -> bool:
        """Tell whether something of a function is PENDING or IN_PROGRESS."""
        entry = self._entries.get(function)
        if entry is None or entry.latest is None:
            return False
        return model.is_under_way(entry.latest.function) or any(
            model.is_under_way(version.function) for version in entry.versions.values()
        )

    def all_functions(self) -> list[FunctionId]:
        """Give every function of every account."""
        return [FunctionId(account, name) for account, names in self._names.items() for name in names]

    def count(self) -> int:
        """Give the number of functions of all accounts."""
        return sum(len(names) for names in self._names.values())

    def current_keys(self, account: str, function_name: str) -> frozenset[VersionKey]:
        """Give the keys of all versions of a function that can be invoked now; none when it does not exist."""
        entry = self._entries.get(FunctionId(account, function_name))
        if entry is None or entry.latest is None:
            return frozenset()
        versions = [model.serving(entry.latest), *(record.function for record in entry.versions.values())]
        return frozenset((account, function_name, version.version, version.revision_id) for version in versions)

    def current(self, account: str, function_name: str, version: str, revision_id: str) -> VersionSpec | None:
        """Give a version if it is still of this revision: what a warm environment of it may serve."""
        if (account, function_name, version, revision_id) not in self.current_keys(account, function_name):
            return None
        return self.resolve(account, function_name, version, 0.0)

    def apply(self, batch: Snapshot | Changes) -> None:
        """Take in what the watch says."""
        changed: dict[FunctionId, None] = {}
        for event in self._as_events(batch):
            function = self._put(event.item) if isinstance(event, Put) else self._delete(event.key)
            if function is not None:
                changed[function] = None
        for function in changed:
            self._refresh(function)
        self._revision = max(self._revision, batch.revision)
        self._ready.set()
        self._wake()
        for function in changed:
            for callback in self._callbacks:
                callback(function.account, function.name)

    def _as_events(self, batch: Snapshot | Changes) -> Iterable[Put | Delete]:
        """Give a snapshot as the events that lead to it."""
        if isinstance(batch, Changes):
            return batch.events
        present = {item.key for item in batch.items}
        gone = [Delete(key, batch.revision) for key in self._mod_revisions if key not in present]
        new = [Put(item) for item in batch.items if self._mod_revisions.get(item.key) != item.mod_revision]
        return [*gone, *new]

    def _put(self, item: KeyValue) -> FunctionId | None:
        self._mod_revisions[item.key] = item.mod_revision
        match record_keys.parse(item.key):
            case record_keys.LatestKey(account, name):
                entry = self._entry(account, name)
                entry.latest = records.decode(item.value, record_pb2.FunctionRecord)
            case record_keys.VersionKey(account, name, number):
                entry = self._entry(account, name)
                entry.versions[str(number)] = records.decode(item.value, record_pb2.VersionRecord)
            case record_keys.AliasKey(account, name, alias):
                self._entry(account, name).aliases[alias] = records.decode(item.value, record_pb2.AliasRecord)
            case record_keys.ConcurrencyKey(account, name):
                record = records.decode(item.value, record_pb2.ReservedConcurrencyRecord)
                self._entry(account, name).reserved = record.reserved_concurrent_executions
            case record_keys.AccountReservedKey(account):
                total = records.decode(item.value, record_pb2.AccountReservationRecord)
                self._account_reserved[account] = total.reserved_concurrent_executions
                return None
            case _:
                return None  # of a newer version of Lambent
        return FunctionId(account, name)

    def _delete(self, key: str) -> FunctionId | None:
        self._mod_revisions.pop(key, None)
        match record_keys.parse(key):
            case record_keys.LatestKey(account, name):
                self._entry(account, name).latest = None
            case record_keys.VersionKey(account, name, number):
                self._entry(account, name).versions.pop(str(number), None)
            case record_keys.AliasKey(account, name, alias):
                self._entry(account, name).aliases.pop(alias, None)
            case record_keys.ConcurrencyKey(account, name):
                self._entry(account, name).reserved = None
            case record_keys.AccountReservedKey(account):
                self._account_reserved.pop(account, None)
                return None
            case _:
                return None
        return FunctionId(account, name)

    def _entry(self, account: str, name: str) -> _Entry:
        return self._entries.setdefault(FunctionId(account, name), _Entry())

    def _refresh(self, function: FunctionId) -> None:
        """Bring what is derived from an entry up to date."""
        entry = self._entries[function]
        for key in entry.cached:
            self._targets.pop(key, None)
        entry.cached.clear()
        names = self._names.setdefault(function.account, [])
        at = bisect.bisect_left(names, function.name)
        listed = at < len(names) and names[at] == function.name
        if entry.latest is not None and not listed:
            names.insert(at, function.name)
        if entry.latest is None and listed:
            del names[at]
        if entry.reserved is None:
            self._reserved.pop((function.account, function.name), None)
        else:
            self._reserved[(function.account, function.name)] = entry.reserved
        entry.specs = {
            version: spec
            for version, spec in entry.specs.items()
            if (found := _version_of(entry, version)) is not None and found.revision_id == spec.revision_id
        }
        if entry.is_empty():
            del self._entries[function]

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for revision, future in waiting:
            if revision > self._revision:
                self._waiting.append((revision, future))
            elif not future.done():
                future.set_result(None)

    def _find(self, account: str, function_name: str, given_qualifier: str) -> _Target:
        function, qualifier = self._naming.read(account, function_name, given_qualifier)
        qualifier = qualifier or LATEST
        entry = self._entries.get(function)
        if entry is None or entry.latest is None:
            raise model.not_found(self._naming.arn(function, qualifier))
        if qualifier == LATEST or is_version_number(qualifier):
            target = _Target(self._spec(function, entry, qualifier))
        elif (record := entry.aliases.get(qualifier)) is not None:
            target = self._alias_target(function, entry, record.alias)
        else:
            raise AliasNotFoundError(f"Function not found: {self._naming.arn(function, qualifier)}")
        key = (account, function_name, given_qualifier)
        self._targets[key] = target
        entry.cached.append(key)
        return target

    def _alias_target(self, function: FunctionId, entry: _Entry, alias: function_pb2.Alias) -> _Target:
        primary = self._spec(function, entry, alias.function_version)
        for other, weight in alias.additional_version_weights.items():
            return _Target(primary, self._spec(function, entry, other), weight)
        return _Target(primary)

    def _spec(self, function: FunctionId, entry: _Entry, version: str) -> VersionSpec:
        found = _version_of(entry, version)
        if found is None:
            raise model.not_found(self._naming.arn(function, version))
        model.require_invocable(found)
        spec = entry.specs.get(version)
        if spec is None:
            spec = entry.specs[version] = self._make_spec(function, found)
        return spec

    def _make_spec(self, function: FunctionId, version: function_pb2.Function) -> VersionSpec:
        return VersionSpec(
            account=function.account,
            function_name=function.name,
            version=version.version,
            revision_id=version.revision_id,
            runtime=version.runtime,
            handler=version.handler,
            code_sha256=version.code_sha256,
            code_size_bytes=version.code_size_bytes,
            environment_variables=dict(version.environment_variables),
            memory_mib=version.memory_mib,
            ephemeral_storage_mib=version.ephemeral_storage_mib,
            timeout_us=version.timeout.ToMicroseconds(),
            function_arn=self._naming.arn(function),
            partition=keys.partition_of(function.account, function.name),
        )


def _version_of(entry: _Entry, version: str) -> function_pb2.Function | None:
    """Give the version that an invocation runs."""
    if version == LATEST:
        return None if entry.latest is None else model.serving(entry.latest)
    record = entry.versions.get(version)
    return None if record is None else record.function
