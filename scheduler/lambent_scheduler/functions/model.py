"""The life of a function as rules: what each operation makes of the records, and what it refuses.

Everything here is pure. Time and new revision ids are arguments; records given are not changed, new ones are
returned. The repository writes them, comparing what was read. The rules and messages are AWS Lambda's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from lambent.errors import (
    FunctionNotFoundError,
    InvalidParameterError,
    PreconditionFailedError,
    ResourceConflictError,
)
from lambent.v1 import function_pb2, record_pb2
from lambent_scheduler.functions.names import LATEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lambent_scheduler.functions.configuration import Changes

_PENDING = function_pb2.FUNCTION_STATE_PENDING
_ACTIVE = function_pb2.FUNCTION_STATE_ACTIVE
_FAILED = function_pb2.FUNCTION_STATE_FAILED
_SUCCESSFUL = function_pb2.LAST_UPDATE_STATUS_SUCCESSFUL
_UPDATE_FAILED = function_pb2.LAST_UPDATE_STATUS_FAILED
_IN_PROGRESS = function_pb2.LAST_UPDATE_STATUS_IN_PROGRESS

_CREATING_REASON = "The function is being created."
_CREATING_CODE = "Creating"
_PREPARING_REASON = "The first environment of the version is being initialised."

STALE_REVISION = (
    "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve "
    "the latest Revision Id"
)

# AWS Lambda quota: what must stay for the functions without a reservation.
UNRESERVED_MINIMUM = 100


@dataclass(frozen=True, slots=True)
class Code:
    """A stored package: lower-case hexadecimal SHA-256 and size in bytes."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Change:
    """The moment of a change: Unix time in nanoseconds, and the revision id that the result gets."""

    time_ns: int
    revision_id: str


@dataclass(frozen=True, slots=True)
class Preparation:
    """How the preparation of a version with SnapStart ended.

    Attributes:
        optimized: True when an environment of it is initialised; False when none could be made for want of memory.
        init_error: Why its code cannot be initialised; empty when it can, or when that is not known.
    """

    optimized: bool
    init_error: str = ""


@dataclass(frozen=True, slots=True)
class FunctionRecords:
    """All records of one function, at one moment.

    Attributes:
        latest: The function itself and its counters.
        versions: Published versions by number.
        aliases: By name.
        reserved: Reserved concurrency; None when none is reserved.
    """

    latest: record_pb2.FunctionRecord
    versions: Mapping[int, record_pb2.VersionRecord] = field(default_factory=dict)
    aliases: Mapping[str, record_pb2.AliasRecord] = field(default_factory=dict)
    reserved: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation makes of a function: its new record, and a version when one is published."""

    latest: record_pb2.FunctionRecord
    published: record_pb2.VersionRecord | None = None

    @property
    def reply(self) -> function_pb2.Function:
        """What the caller is told: the published version if there is one, else $LATEST."""
        return self.latest.function if self.published is None else self.published.function


def create(
    name: str, architecture: str, configuration: Changes, code: Code, change: Change, *, publish: bool
) -> Outcome:
    """Make a function in state PENDING, with version 1 when it is to be published at once."""
    function = function_pb2.Function(function_name=name, version=LATEST, architectures=[architecture])
    configuration.apply(function)
    _set_code(function, code)
    _touch(function, change)
    function.state = _PENDING
    function.state_reason = _CREATING_REASON
    function.state_reason_code = _CREATING_CODE
    latest = record_pb2.FunctionRecord(function=function, next_version=1)
    return _publish(latest, function.description) if publish else Outcome(latest)


def update_code(
    record: record_pb2.FunctionRecord, code: Code, change: Change, *, arn: str, revision_id: str, publish: bool
) -> Outcome:
    """Give $LATEST another code.

    Raises:
        PreconditionFailedError: `revision_id` is given and is not the current one.
        ResourceConflictError: The function is being created or changed.
    """
    updated = _begin_update(record, change, arn=arn, revision_id=revision_id)
    _set_code(updated.function, code)
    return _publish(updated, updated.function.description) if publish else Outcome(updated)


def update_configuration(
    record: record_pb2.FunctionRecord, configuration: Changes, change: Change, *, arn: str, revision_id: str
) -> Outcome:
    """Change the configuration of $LATEST.

    Raises:
        PreconditionFailedError, ResourceConflictError: As `update_code`.
    """
    updated = _begin_update(record, change, arn=arn, revision_id=revision_id)
    configuration.apply(updated.function)
    return Outcome(updated)


def publish(records: FunctionRecords, *, arn: str, code_sha256: str, description: str, revision_id: str) -> Outcome:
    """Freeze $LATEST as a version; nothing changes when the newest version is the same, and has not FAILED.

    Raises:
        PreconditionFailedError: `revision_id` is given and is not the current one.
        InvalidParameterError: `code_sha256` is given and is not the current one.
        ResourceConflictError: The function is being created or changed.
    """
    record = records.latest
    require_settled(record, arn=arn)
    require_invocable(record.function)
    if record.function.last_update_status == _UPDATE_FAILED:
        raise ResourceConflictError(
            "The operation cannot be performed at this time. The last update failed: "
            f"{record.function.last_update_status_reason}"
        )
    require_revision(record.function.revision_id, revision_id)
    if code_sha256 and code_sha256 != record.function.code_sha256:
        raise InvalidParameterError(
            f"CodeSHA256 ({code_sha256[:64]}) is different from current CodeSHA256 in $LATEST "
            f"({record.function.code_sha256}). Please try again with the CodeSHA256 in $LATEST."
        )
    newest = records.versions.get(record.newest_version)
    if (
        newest is not None
        and newest.function.state != _FAILED
        and record.published_revision_id == record.function.revision_id
    ):
        return Outcome(record, newest)
    return _publish(record, description or record.function.description)


def settle(
    records: FunctionRecords,
    change: Change,
    *,
    missing_code: frozenset[str],
    prepared: Mapping[str, Preparation] = MappingProxyType({}),
) -> tuple[record_pb2.FunctionRecord, dict[int, record_pb2.VersionRecord]] | None:
    """End what is under way: PENDING becomes ACTIVE, IN_PROGRESS becomes SUCCESSFUL, under a new revision id.

    A version with SnapStart stays PENDING until it is prepared, and then keeps its revision id, which environments of
    it bear.

    Args:
        records: The function.
        change: When, and the revision id of what changes.
        missing_code: SHA-256 of packages that are not in the store; what needs them becomes FAILED.
        prepared: How the preparation of versions ended, by version.

    Returns:
        The new record and the versions that changed; None when nothing is under way.
    """
    versions = {
        number: _settled_version(version, change, missing_code)
        for number, version in records.versions.items()
        if version.function.state == _PENDING and not version.preparing
    } | {
        number: _prepared_version(version, prepared[str(number)])
        for number, version in records.versions.items()
        if version.preparing and str(number) in prepared
    }
    latest = records.latest
    if not is_under_way(latest.function):
        return (latest, versions) if versions else None
    settled = _copy(latest)
    function = settled.function
    if latest.published_revision_id == function.revision_id:
        settled.published_revision_id = change.revision_id
    function.revision_id = change.revision_id
    _end(function, failed=function.code_sha256 in missing_code)
    if function.last_update_status != _UPDATE_FAILED:
        settled.ClearField("serving")
    return settled, versions


def is_under_way(function: function_pb2.Function) -> bool:
    """Tell whether a function or version is being created or changed."""
    return function.state == _PENDING or function.last_update_status == _IN_PROGRESS


def waits_for_settling(record: record_pb2.VersionRecord) -> bool:
    """Tell whether a version waits for `settle`, and not for its preparation."""
    return record.function.state == _PENDING and not record.preparing


def has_snap_start(function: function_pb2.Function) -> bool:
    """Tell whether environments of a version are to be initialised before calls come for them."""
    return (
        function.snap_start.apply_on == function_pb2.SNAP_START_APPLY_ON_PUBLISHED_VERSIONS
        and function.version != LATEST
    )


def prepared_versions(
    latest: record_pb2.FunctionRecord,
    versions: Mapping[str, record_pb2.VersionRecord],
    aliases: Iterable[record_pb2.AliasRecord],
) -> list[function_pb2.Function]:
    """Give the versions that are to have an environment prepared: the newest, those of aliases, and what waits for it.

    Args:
        latest: The function.
        versions: Its versions, by number in decimal.
        aliases: Its aliases.
    """
    wanted = {str(latest.newest_version)}
    for record in aliases:
        wanted |= {record.alias.function_version, *record.alias.additional_version_weights}
    return [
        record.function
        for version, record in sorted(versions.items())
        if record.preparing or (version in wanted and has_snap_start(record.function) and is_invocable(record.function))
    ]


def serving(record: record_pb2.FunctionRecord) -> function_pb2.Function:
    """Give what an invocation of $LATEST runs: during an update, and after one that failed, what was there before."""
    return record.serving if record.HasField("serving") else record.function


def is_invocable(function: function_pb2.Function) -> bool:
    """Tell whether a version is ACTIVE."""
    return function.state == _ACTIVE


def require_invocable(function: function_pb2.Function) -> None:
    """Refuse the invocation of what is not ACTIVE.

    Raises:
        ResourceConflictError: It is not.
    """
    if not is_invocable(function):
        raise _wrong_state(function)


def require_settled(record: record_pb2.FunctionRecord, *, arn: str) -> None:
    """Refuse a change of what is being created or changed.

    Raises:
        ResourceConflictError: It is.
    """
    if record.function.state == _PENDING:
        raise _wrong_state(record.function)
    if record.function.last_update_status == _IN_PROGRESS:
        raise ResourceConflictError(
            f"The operation cannot be performed at this time. An update is in progress for resource: {arn}"
        )


def require_revision(current: str, given: str) -> None:
    """Refuse a revision id that is not the current one; an empty one means that the caller does not mind.

    Raises:
        PreconditionFailedError: It is not.
    """
    if given and given != current:
        raise PreconditionFailedError(STALE_REVISION)


def reserve(*, account_limit: int, account_reserved: int, before: int | None, requested: int) -> int:
    """Give the account's sum of reservations when one function's changes from `before` to `requested`.

    Raises:
        InvalidParameterError: Fewer than 100 would stay unreserved.
    """
    total = account_reserved - (before or 0) + requested
    # Giving back is always allowed, also where the limit was lowered since.
    if account_limit - total < UNRESERVED_MINIMUM and requested > (before or 0):
        raise InvalidParameterError(
            "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution "
            f"below its minimum value of [{UNRESERVED_MINIMUM}]."
        )
    return total


def not_found(arn: str) -> FunctionNotFoundError:
    """Give AWS's error for a function or version that does not exist."""
    return FunctionNotFoundError(f"Function not found: {arn}")


def _begin_update(
    record: record_pb2.FunctionRecord, change: Change, *, arn: str, revision_id: str
) -> record_pb2.FunctionRecord:
    require_settled(record, arn=arn)
    require_revision(record.function.revision_id, revision_id)
    updated = _copy(record)
    if not record.HasField("serving") and record.function.state == _ACTIVE:
        updated.serving.CopyFrom(record.function)
    function = updated.function
    _touch(function, change)
    function.last_update_status = _IN_PROGRESS
    function.last_update_status_reason = _CREATING_REASON
    function.last_update_status_reason_code = _CREATING_CODE
    return updated


def _publish(record: record_pb2.FunctionRecord, description: str) -> Outcome:
    """Copy $LATEST into the next version. A version of a package that is still to be looked for is PENDING, too."""
    version = record_pb2.VersionRecord(function=record.function)
    function = version.function
    function.version = str(record.next_version)
    function.description = description
    if is_under_way(function):
        function.state = _PENDING
        function.state_reason = _CREATING_REASON
        function.state_reason_code = _CREATING_CODE
        _clear_update(function, function_pb2.LAST_UPDATE_STATUS_UNSPECIFIED)
    elif has_snap_start(function):
        _prepare(version)
    latest = _copy(record)
    latest.newest_version = record.next_version
    latest.next_version = record.next_version + 1
    latest.published_revision_id = record.function.revision_id
    return Outcome(latest, version)


def _settled_version(
    version: record_pb2.VersionRecord, change: Change, missing_code: frozenset[str]
) -> record_pb2.VersionRecord:
    settled = record_pb2.VersionRecord(function=version.function)
    settled.function.revision_id = change.revision_id
    _end(settled.function, failed=version.function.code_sha256 in missing_code)
    if is_invocable(settled.function) and has_snap_start(settled.function):
        _prepare(settled)
    return settled


def _prepare(version: record_pb2.VersionRecord) -> None:
    version.preparing = True
    function = version.function
    function.state = _PENDING
    function.state_reason = _PREPARING_REASON
    function.state_reason_code = _CREATING_CODE


def _prepared_version(version: record_pb2.VersionRecord, preparation: Preparation) -> record_pb2.VersionRecord:
    prepared = record_pb2.VersionRecord(function=version.function)
    function = prepared.function
    function.snap_start.optimized = preparation.optimized
    function.state = _FAILED if preparation.init_error else _ACTIVE
    function.state_reason = preparation.init_error
    function.state_reason_code = "FunctionError" if preparation.init_error else ""
    return prepared


def _end(function: function_pb2.Function, *, failed: bool) -> None:
    """Take a function out of PENDING or IN_PROGRESS."""
    if not failed:
        function.state = _ACTIVE
        function.state_reason = ""
        function.state_reason_code = ""
        _clear_update(function, _SUCCESSFUL)
        return
    reason = f"The code package {function.code_sha256} is missing from the store. Please upload it again."
    if function.last_update_status == _IN_PROGRESS:
        function.last_update_status = _UPDATE_FAILED
        function.last_update_status_reason = reason
        function.last_update_status_reason_code = "InternalError"
    else:
        function.state = _FAILED
        function.state_reason = reason
        function.state_reason_code = "InternalError"


def _clear_update(function: function_pb2.Function, status: function_pb2.LastUpdateStatus.ValueType) -> None:
    function.last_update_status = status
    function.last_update_status_reason = ""
    function.last_update_status_reason_code = ""


def _wrong_state(function: function_pb2.Function) -> ResourceConflictError:
    name = function_pb2.FunctionState.Name(function.state).removeprefix("FUNCTION_STATE_").capitalize()
    return ResourceConflictError(
        f"The operation cannot be performed at this time. The function is currently in the following state: {name}"
    )


def _set_code(function: function_pb2.Function, code: Code) -> None:
    function.code_sha256 = code.sha256
    function.code_size_bytes = code.size_bytes


def _touch(function: function_pb2.Function, change: Change) -> None:
    function.revision_id = change.revision_id
    function.last_modified_time.FromNanoseconds(change.time_ns)


def _copy(record: record_pb2.FunctionRecord) -> record_pb2.FunctionRecord:
    copy = record_pb2.FunctionRecord()
    copy.CopyFrom(record)
    return copy
