"""The client: one member at a time, the next one when it does not answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import grpc.aio
from aetcd.rpc import rpc_pb2

from lambent_common.etcd.codec import key_value
from lambent_common.etcd.errors import (
    EtcdCompactedError,
    EtcdFullError,
    EtcdUnavailableError,
    EtcdUnsupportedError,
    LeaseLostError,
    error_of,
)
from lambent_common.etcd.members import REQUIRE_LEADER, Member, Members
from lambent_common.etcd.model import KeyValue, Snapshot, WatchBatch, prefix_end
from lambent_common.etcd.transaction import MAX_OPERATIONS, Compare, Operation, TxnResult
from lambent_common.etcd.version import unsupported_reason
from lambent_common.etcd.watch import watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from lambent_common.credentials import Credentials

_REQUEST_TIMEOUT_S = 5.0
"""Bound of one request over all members: a leader election takes 1 to 2 s with etcd's default timings."""

_RETRY_WAIT_S = 0.05

_MAX_PAGE_SIZE = 500

_RANGE_ATTEMPTS = 3
"""Auto-compaction runs minutes apart, so that a listing meets it once at most."""


@dataclass(frozen=True, slots=True)
class EtcdStatus:
    """How the member that answered is.

    Attributes:
        version: Version of etcd.
        db_size_bytes: Size of its database.
        alarms: Names of raised alarms, for example "NOSPACE".
    """

    version: str
    db_size_bytes: int
    alarms: tuple[str, ...]


class EtcdClient:
    """Reads, writes and watches keys. Made by `connect`; keys are text, values are bytes.

    Every request ends within its bound (5 s): with an answer or with an error of `lambent_common.etcd.errors`. Reads go
    to another member when one does not answer. Writes do so only when they have certainly had no effect; otherwise they
    raise EtcdUnavailableError with `dispatched=True`. See `txn` for the one exception.
    """

    def __init__(
        self, endpoints: Sequence[str], credentials: Credentials, *, timeout_s: float = _REQUEST_TIMEOUT_S
    ) -> None:
        self._members = Members(endpoints, credentials)
        self._timeout_s = timeout_s

    @classmethod
    async def connect(
        cls, endpoints: Sequence[str], credentials: Credentials, *, timeout_s: float = _REQUEST_TIMEOUT_S
    ) -> Self:
        """Make a client and see that a member answers.

        Args:
            endpoints: `http://host:port` or `https://host:port` of each member.
            credentials: Authority and client certificate, for https.
            timeout_s: Bound of every request.

        Raises:
            EtcdUnavailableError: None answers in time.
            EtcdUnsupportedError: The member is too old, or of a release that may lose data.
            InvalidParameterError: An endpoint is malformed.
        """
        client = cls(endpoints, credentials, timeout_s=timeout_s)
        try:
            reason = unsupported_reason((await client.status()).version)
        except BaseException:
            await client.close()
            raise
        if reason is not None:
            await client.close()
            raise EtcdUnsupportedError(f"etcd at {', '.join(endpoints)} cannot be used: {reason}")
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; requests and watches under way raise EtcdUnavailableError."""
        await self._members.close()

    async def get(self, key: str) -> KeyValue | None:
        """Give one key, or None."""
        response = await self._read(lambda member: member.kv.Range, rpc_pb2.RangeRequest(key=key.encode()))
        return key_value(response.kvs[0]) if response.kvs else None

    async def range(self, prefix: str, *, page_size: int = _MAX_PAGE_SIZE, revision: int = 0) -> Snapshot:
        """Give every key that begins with `prefix`, in order, all at one revision, read page by page.

        Args:
            prefix: Beginning of the keys.
            page_size: Keys per request.
            revision: Revision to read at; 0 means the newest.

        Raises:
            EtcdCompactedError: `revision` has been compacted.
        """
        for attempt in range(1, _RANGE_ATTEMPTS + 1):
            try:
                return await self._range_once(prefix, page_size, revision)
            except EtcdCompactedError:
                # Between two pages: begin again at a newer revision.
                if revision or attempt == _RANGE_ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """Write a key and give the revision.

        Raises:
            LeaseLostError: The lease does not exist.
        """
        request = rpc_pb2.PutRequest(key=key.encode(), value=value, lease=lease_id)
        response, _ = await self._call(lambda member: member.kv.Put, request, is_write=True)
        return int(response.header.revision)

    async def delete(self, key: str) -> bool:
        """Delete a key; False when it did not exist."""
        request = rpc_pb2.DeleteRangeRequest(key=key.encode())
        response, _ = await self._call(lambda member: member.kv.DeleteRange, request, is_write=True)
        return bool(response.deleted)

    async def txn(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> TxnResult:
        """Do `success` when every comparison holds, otherwise `failure`; all or nothing, at most 128 of each.

        A transaction that compares something and does nothing on failure is sent again when its answer was lost, since
        one that compares what it writes cannot happen twice. It may then fail by its own first success: the result says
        that it was `resent`, and the caller reads to see.

        Raises:
            LeaseLostError: A lease does not exist.
        """
        assert max(len(compare), len(success), len(failure)) <= MAX_OPERATIONS, "too large a transaction"
        request = rpc_pb2.TxnRequest(compare=compare, success=success, failure=failure)
        response, resent = await self._call(
            lambda member: member.kv.Txn, request, is_write=True, resend=bool(compare) and not failure
        )
        return TxnResult(succeeded=bool(response.succeeded), revision=int(response.header.revision), resent=resent)

    async def grant_lease(self, ttl_s: int) -> int:
        """Make a lease and give its id. etcd lengthens what is under one and a half election timeouts."""
        # Sending it again leaves at worst a lease that nobody renews.
        response = await self._read(lambda member: member.lease.LeaseGrant, rpc_pb2.LeaseGrantRequest(TTL=ttl_s))
        return int(response.ID)

    async def revoke_lease(self, lease_id: int) -> None:
        """End a lease and delete its keys. One that has lapsed is no error."""
        try:
            await self._read(lambda member: member.lease.LeaseRevoke, rpc_pb2.LeaseRevokeRequest(ID=lease_id))
        except LeaseLostError:
            return

    async def compact(self, revision: int) -> None:
        """Forget what was before `revision`; returns when the space is free within the database."""
        request = rpc_pb2.CompactionRequest(revision=revision, physical=True)
        await self._call(lambda member: member.kv.Compact, request, is_write=True)

    async def status(self) -> EtcdStatus:
        """Ask the member in use how it is."""
        status = await self._read(lambda member: member.maintenance.Status, rpc_pb2.StatusRequest())
        alarms = await self._read(lambda member: member.maintenance.Alarm, rpc_pb2.AlarmRequest())
        names = tuple(sorted({rpc_pb2.AlarmType.Name(alarm.alarm) for alarm in alarms.alarms}))
        return EtcdStatus(version=str(status.version), db_size_bytes=int(status.dbSize), alarms=names)

    def watch(self, prefix: str) -> AsyncIterator[WatchBatch]:
        """Give a Snapshot of the prefix, then Changes for ever.

        A lost connection is resumed from the last event seen. When etcd has compacted that revision, or has gone back
        behind it, a new Snapshot comes instead: whatever is not in it is gone. While no member answers it waits.

        Raises:
            EtcdRequestError: etcd refuses the watch.
            EtcdUnavailableError: The client was closed.
        """
        return watch(prefix, self._members, self.range, timeout_s=self._timeout_s)

    async def _range_once(self, prefix: str, page_size: int, revision: int) -> Snapshot:
        items: list[KeyValue] = []
        start, end = prefix.encode() or b"\0", prefix_end(prefix)
        while True:
            request = rpc_pb2.RangeRequest(key=start, range_end=end, limit=page_size, revision=revision)
            response = await self._read(lambda member: member.kv.Range, request)
            revision = revision or int(response.header.revision)
            items.extend(key_value(kv) for kv in response.kvs)
            if not response.more:
                return Snapshot(revision=revision, items=items)
            start = response.kvs[-1].key + b"\0"

    async def _read(self, method: Callable[[Member], Any], request: Any) -> Any:
        response, _ = await self._call(method, request, is_write=False)
        return response

    async def _call(
        self, method: Callable[[Member], Any], request: Any, *, is_write: bool, resend: bool = False
    ) -> tuple[Any, bool]:
        """Send a request until a member answers; True beside the answer when it may have been done before that."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        failure: EtcdUnavailableError | None = None
        resent = False
        while (left_s := deadline - loop.time()) > _RETRY_WAIT_S:
            try:
                member = await self._members.connected(left_s)
                # Where there are others, one that is silent leaves time for a second one.
                attempt_s = left_s if len(self._members) == 1 else max(left_s / 2, 2 * _RETRY_WAIT_S)
                return await self._attempt(member, method(member), request, attempt_s, is_write=is_write), resent
            except (EtcdFullError, LeaseLostError):
                raise  # a member did answer
            except EtcdUnavailableError as error:
                if (error.dispatched and not resend) or self._members.closed:
                    raise
                resent = resent or error.dispatched
                failure = error
            await asyncio.sleep(_RETRY_WAIT_S)
        assert failure is not None, "the first attempt had the whole time"
        message = f"etcd did not answer within {self._timeout_s:g} s; {failure.message}"
        raise EtcdUnavailableError(message, dispatched=resent) from failure

    async def _attempt(self, member: Member, method: Any, request: Any, timeout_s: float, *, is_write: bool) -> Any:
        try:
            return await method(request, timeout=timeout_s, metadata=REQUIRE_LEADER)
        except grpc.aio.AioRpcError as error:
            failure = error_of(error, member.target, is_write=is_write)
            if isinstance(failure, EtcdUnavailableError) and not isinstance(failure, EtcdFullError | LeaseLostError):
                self._members.leave(member)
            raise failure from error
        except (grpc.aio.UsageError, asyncio.CancelledError) as error:
            # Closing the channel cancels its calls, which must not look like a cancelled caller.
            if self._members.closed and not _is_cancelled():
                raise EtcdUnavailableError("the etcd client was closed", dispatched=is_write) from error
            raise


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
