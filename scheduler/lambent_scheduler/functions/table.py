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

from lambent.errors import AliasNotFoundError, InternalError, ServiceError, UnavailableError
from lambent.v1 import record_pb2
from lambent_common import keys, records
from lambent_common.etcd import Changes, Delete, Put, Snapshot
from lambent_scheduler.core.version import VersionKey, VersionSpec
from lambent_scheduler.functions import model, record_keys
from lambent_scheduler.functions.names import LATEST, FunctionId, Naming, is_version_number
from lambent_scheduler.functions.network import required_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lambent.v1 import function_pb2
    from lambent_common.etcd import EtcdClient, KeyValue

log = structlog.get_logger(__name__)


# Records read at a stretch: some 25 ms.
_RECORDS_AT_ONCE = 100
# Ways of naming one function that are remembered: more than its versions and aliases in use. Past it they are all
# forgotten and found again, since callers could think of ever more.
_NAMES_REMEMBERED = 1_024


@dataclass(frozen=True, slots=True)
class Target:
    """What a name and qualifier lead to: one version, or a second one with a probability.

    Attributes:
        primary: The version.
        invoked_arn: ARN of the function, with the qualifier if one was given.
        other: The second version of an alias.
        weight: Probability of the second one.
    """

    primary: VersionSpec
    invoked_arn: str
    other: VersionSpec | None = None
    weight: float = 0.0

    def drawn(self, draw: float) -> VersionSpec:
        """Give the version that a random number in [0, 1) decides on."""
        return self.other if self.other is not None and draw < self.weight else self.primary


@dataclass(slots=True)
class _Entry:
    """One function. `specs` keeps one object per revision; `cached` lists the keys of `_targets` that lead here.

    `unreadable` lists the keys whose last value is no record; what they held before stands.
    """

    latest: record_pb2.FunctionRecord | None = None
    versions: dict[str, record_pb2.VersionRecord] = field(default_factory=dict)
    aliases: dict[str, record_pb2.AliasRecord] = field(default_factory=dict)
    reserved: int | None = None
    specs: dict[str, VersionSpec] = field(default_factory=dict)
    cached: list[tuple[str, str, str]] = field(default_factory=list)
    unreadable: set[str] = field(default_factory=set)

    def is_empty(self) -> bool:
        held = self.versions or self.aliases or self.unreadable
        return self.latest is None and not held and self.reserved is None


class FunctionTable:
    """The functions of all accounts."""

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self._entries: dict[FunctionId, _Entry] = {}
        self._names: dict[str, list[str]] = {}
        self._targets: dict[tuple[str, str, str], Target] = {}
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
            if not self._ready.is_set() and isinstance(batch, Snapshot):
                # Nobody asks yet, so that a part may be seen; and whoever stops the process is to be heard meanwhile.
                for first in range(0, len(batch.items), _RECORDS_AT_ONCE):
                    self._take_in([Put(item) for item in batch.items[first : first + _RECORDS_AT_ONCE]])
                    await asyncio.sleep(0)
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

    def find(self, account: str, function_name: str, qualifier: str) -> Target:
        """Give what an invocation runs: the same version object for the same revision, every time.

        Args:
            account: Empty means the default one.
            function_name: Name or ARN, qualified or not.
            qualifier: Version, alias or empty.

        Raises:
            FunctionNotFoundError: No such function or version.
            AliasNotFoundError: No such alias.
            ResourceConflictError: The version is not ACTIVE.
            InternalError: The function's record cannot be read.
            InvalidParameterError, ResourceNotFoundError, PermissionDeniedError: See `Naming.read`.
        """
        target = self._targets.get((account, function_name, qualifier))
        return self._find(account, function_name, qualifier) if target is None else target

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
        """Tell whether something of a function is PENDING or IN_PROGRESS, but for what is being prepared."""
        entry = self._entries.get(function)
        if entry is None or entry.latest is None:
            return False
        return model.is_under_way(entry.latest.function) or any(
            model.waits_for_settling(version) for version in entry.versions.values()
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
        entry = self._entries.get(FunctionId(account, function_name))
        if entry is None or (found := _version_of(entry, version)) is None:
            return None
        if found.revision_id != revision_id or not model.is_invocable(found):
            return None
        return self._spec(FunctionId(account, function_name), entry, version)

    def to_be_prepared(self, account: str, function_name: str) -> list[VersionSpec]:
        """Give the versions of a function that are to have an environment prepared; see `model.prepared_versions`."""
        function = FunctionId(account, function_name)
        entry = self._entries.get(function)
        if entry is None or entry.latest is None:
            return []
        found = model.prepared_versions(entry.latest, entry.versions, entry.aliases.values())
        return [self._spec_of(function, entry, version) for version in found]

    def is_preparing(self, account: str, function_name: str, version: str) -> bool:
        """Tell whether a version waits for its preparation."""
        entry = self._entries.get(FunctionId(account, function_name))
        record = None if entry is None else entry.versions.get(version)
        return record is not None and record.preparing

    def apply(self, batch: Snapshot | Changes) -> None:
        """Take in what the watch says."""
        self._take_in(self._as_events(batch))
        self._revision = max(self._revision, batch.revision)
        self._ready.set()
        self._wake()

    def _take_in(self, events: Iterable[Put | Delete]) -> None:
        changed: dict[FunctionId, None] = {}
        for event in events:
            function = self._put(event.item) if isinstance(event, Put) else self._delete(event.key)
            if function is not None:
                changed[function] = None
        for function in changed:
            self._refresh(function)
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
        function = _function_of(item.key)
        try:
            self._take(item)
        except InternalError as error:
            # A person may have written it: the other functions are not to suffer for it.
            log.error("record_unreadable", key=item.key, error=error.message)  # noqa: TRY400, the message says it all
            if function is not None:
                self._entry(function.account, function.name).unreadable.add(item.key)
        else:
            if function is not None:
                self._entry(function.account, function.name).unreadable.discard(item.key)
        return function

    def _take(self, item: KeyValue) -> None:
        """Take in a record. Raises InternalError, and changes nothing, when it cannot be read."""
        key, value = item.key, item.value
        match record_keys.parse(key):
            case record_keys.LatestKey(account, name):
                latest = records.decode(value, record_pb2.FunctionRecord, key=key)
                self._entry(account, name).latest = latest
            case record_keys.VersionKey(account, name, number):
                version = records.decode(value, record_pb2.VersionRecord, key=key)
                self._entry(account, name).versions[str(number)] = version
            case record_keys.AliasKey(account, name, alias):
                self._entry(account, name).aliases[alias] = records.decode(value, record_pb2.AliasRecord, key=key)
            case record_keys.ConcurrencyKey(account, name):
                record = records.decode(value, record_pb2.ReservedConcurrencyRecord, key=key)
                self._entry(account, name).reserved = record.reserved_concurrent_executions
            case record_keys.AccountReservedKey(account):
                total = records.decode(value, record_pb2.AccountReservationRecord, key=key)
                self._account_reserved[account] = total.reserved_concurrent_executions
            case None:
                pass  # of a newer version of Lambent

    def _delete(self, key: str) -> FunctionId | None:
        self._mod_revisions.pop(key, None)
        function = _function_of(key)
        if function is not None:
            self._entry(function.account, function.name).unreadable.discard(key)
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
            case None:
                pass
        return function

    def _entry(self, account: str, name: str) -> _Entry:
        return self._entries.setdefault(FunctionId(account, name), _Entry())

    def _refresh(self, function: FunctionId) -> None:
        """Bring what is derived from an entry up to date."""
        entry = self._entries[function]
        self._forget_names(entry)
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

    def _find(self, account: str, function_name: str, given_qualifier: str) -> Target:
        function, invoked_qualifier = self._naming.read(account, function_name, given_qualifier)
        qualifier = invoked_qualifier or LATEST
        invoked_arn = self._naming.arn(function, invoked_qualifier)
        entry = self._entries.get(function)
        if entry is None or entry.latest is None:
            raise self._missing(function, entry, model.not_found(self._naming.arn(function, qualifier)))
        if qualifier == LATEST or is_version_number(qualifier):
            target = Target(self._spec(function, entry, qualifier), invoked_arn)
        elif (record := entry.aliases.get(qualifier)) is not None:
            target = self._alias_target(function, entry, record.alias, invoked_arn)
        else:
            missing = AliasNotFoundError(f"Function not found: {self._naming.arn(function, qualifier)}")
            raise self._missing(function, entry, missing)
        if len(entry.cached) >= _NAMES_REMEMBERED:
            self._forget_names(entry)
        key = (account, function_name, given_qualifier)
        self._targets[key] = target
        entry.cached.append(key)
        return target

    @staticmethod
    def _missing(function: FunctionId, entry: _Entry | None, error: ServiceError) -> ServiceError:
        """Give the error for something that is not there, or may be and cannot be read."""
        if entry is None or not entry.unreadable:
            return error
        return InternalError(f"function {function.name}: no record can be read from {', '.join(entry.unreadable)}")

    def _forget_names(self, entry: _Entry) -> None:
        for key in entry.cached:
            self._targets.pop(key, None)
        entry.cached.clear()

    def _alias_target(self, function: FunctionId, entry: _Entry, alias: function_pb2.Alias, invoked_arn: str) -> Target:
        primary = self._spec(function, entry, alias.function_version)
        for other, weight in alias.additional_version_weights.items():
            found = _version_of(entry, other)
            if found is not None and not model.is_invocable(found):
                break  # PENDING or FAILED: that takes no call from the version that works
            return Target(primary, invoked_arn, self._spec(function, entry, other), weight)
        return Target(primary, invoked_arn)

    def _spec(self, function: FunctionId, entry: _Entry, version: str) -> VersionSpec:
        found = _version_of(entry, version)
        if found is None:
            raise self._missing(function, entry, model.not_found(self._naming.arn(function, version)))
        model.require_invocable(found)
        return self._spec_of(function, entry, found)

    def _spec_of(self, function: FunctionId, entry: _Entry, version: function_pb2.Function) -> VersionSpec:
        spec = entry.specs.get(version.version)
        if spec is None:
            spec = entry.specs[version.version] = self._make_spec(function, version)
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
            snap_start=model.has_snap_start(version),
            labels=required_labels(version),
            network_mode=version.network_mode,
            subnet_ids=tuple(version.vpc_config.subnet_ids),
            security_group_ids=tuple(version.vpc_config.security_group_ids),
        )


def _function_of(key: str) -> FunctionId | None:
    """Give the function that a key belongs to; None when it belongs to none."""
    match record_keys.parse(key):
        case None | record_keys.AccountReservedKey():
            return None
        case parsed:
            return FunctionId(parsed.account, parsed.name)


def _version_of(entry: _Entry, version: str) -> function_pb2.Function | None:
    """Give the version that an invocation runs."""
    if version == LATEST:
        return None if entry.latest is None else model.serving(entry.latest)
    record = entry.versions.get(version)
    return None if record is None else record.function
