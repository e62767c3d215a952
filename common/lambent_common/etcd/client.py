"""The client: one member at a time, the next one when it does not answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
import structlog
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from lambent_common.etcd.endpoints import aio_channel, parse
from lambent_common.etcd.errors import EtcdUnavailableError
from lambent_common.etcd.model import KeyValue, Snapshot, WatchBatch, prefix_end
from lambent_common.etcd.transaction import MAX_OPERATIONS, Compare, Operation, TxnResult
from lambent_common.etcd.watch import watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from lambent_common.credentials import Credentials

log = structlog.get_logger()

_REQUEST_TIMEOUT_S = 5.0
"""Bound of one request over all members: a leader election takes 1 to 2 s with etcd's default timings."""

_ATTEMPT_TIMEOUT_S = 2.5
"""Bound of one attempt, so that a second member gets its turn within the request's bound."""

_RETRY_WAIT_S = 0.05

_MAX_PAGE_SIZE = 500

# Members answer these when they cannot serve now; another member, or the same one a little later, can.
_ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


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

    Every request ends within 5 s: with an answer, with EtcdUnavailableError when no member answered (then a write may
    or may not have happened), or with the member's own refusal as InternalError of the edge.
    """

    def __init__(self, endpoints: Sequence[str], credentials: Credentials) -> None:
        self._targets = parse(endpoints)
        self._credentials = credentials
        self._index = 0
        self._channel = self._open()

    @classmethod
    async def connect(cls, endpoints: Sequence[str], credentials: Credentials) -> Self:
        """Make a client and see that a member answers.

        Args:
            endpoints: `http://host:port` or `https://host:port` of each member.
            credentials: Authority and client certificate, for https.

        Raises:
            EtcdUnavailableError: None answers within 5 s.
            InvalidParameterError: An endpoint is malformed.
        """
        client = cls(endpoints, credentials)
        try:
            await client.status()
        except BaseException:
            await client.close()
            raise
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def get(self, key: str) -> KeyValue | None:
        """Give one key, or None."""
        response = await self._kv(lambda kv: kv.Range, rpc_pb2.RangeRequest(key=key.encode()))
        return _item(response.kvs[0]) if response.kvs else None

    async def range(self, prefix: str, *, page_size: int = _MAX_PAGE_SIZE) -> Snapshot:
        """Give every key that begins with `prefix`, all at one revision, read page by page."""
        items: list[KeyValue] = []
        start, end, revision = prefix.encode(), prefix_end(prefix), 0
        while True:
            request = rpc_pb2.RangeRequest(key=start, range_end=end, limit=page_size, revision=revision)
            response = await self._kv(lambda kv: kv.Range, request)
            revision = revision or response.header.revision
            items.extend(_item(kv) for kv in response.kvs)
            if not response.more:
                return Snapshot(revision=revision, items=items)
            start = response.kvs[-1].key + b"\0"

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """Write a key and give the revision."""
        request = rpc_pb2.PutRequest(key=key.encode(), value=value, lease=lease_id)
        response = await self._kv(lambda kv: kv.Put, request)
        return int(response.header.revision)

    async def delete(self, key: str) -> bool:
        """Delete a key; False when it did not exist."""
        response = await self._kv(lambda kv: kv.DeleteRange, rpc_pb2.DeleteRangeRequest(key=key.encode()))
        return bool(response.deleted)

    async def txn(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> TxnResult:
        """Do `success` when every comparison holds, otherwise `failure`; all or nothing, at most 128 operations."""
        assert len(success) <= MAX_OPERATIONS, f"{len(success)} operations in a transaction"
        request = rpc_pb2.TxnRequest(compare=compare, success=success, failure=failure)
        response = await self._kv(lambda kv: kv.Txn, request)
        return TxnResult(succeeded=response.succeeded, revision=int(response.header.revision))

    async def grant_lease(self, ttl_s: int) -> int:
        """Make a lease and give its id."""
        response = await self._request(
            lambda channel: rpc_pb2_grpc.LeaseStub(channel).LeaseGrant, rpc_pb2.LeaseGrantRequest(TTL=ttl_s)
        )
        return int(response.ID)

    async def revoke_lease(self, lease_id: int) -> None:
        """End a lease and delete its keys. One that has lapsed is no error."""
        try:
            await self._request(
                lambda channel: rpc_pb2_grpc.LeaseStub(channel).LeaseRevoke, rpc_pb2.LeaseRevokeRequest(ID=lease_id)
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise

    async def status(self) -> EtcdStatus:
        """Ask the member how it is."""
        status = await self._request(
            lambda channel: rpc_pb2_grpc.MaintenanceStub(channel).Status, rpc_pb2.StatusRequest()
        )
        alarms = await self._request(
            lambda channel: rpc_pb2_grpc.MaintenanceStub(channel).Alarm, rpc_pb2.AlarmRequest()
        )
        names = tuple(sorted({rpc_pb2.AlarmType.Name(alarm.alarm) for alarm in alarms.alarms}))
        return EtcdStatus(version=status.version, db_size_bytes=int(status.dbSize), alarms=names)

    def watch(self, prefix: str) -> AsyncIterator[WatchBatch]:
        """Give a Snapshot of the prefix, then Changes for ever.

        A lost connection is resumed from the last revision seen. When etcd has compacted that revision, a new Snapshot
        comes instead: whatever is not in it is gone.
        """
        return watch(prefix, self.range, self._watch_stream, self.rotate)

    def rotate(self) -> None:
        """Go to the next member."""
        old = self._channel
        self._index = (self._index + 1) % len(self._targets)
        if len(self._targets) > 1:
            self._channel = self._open()
            # Requests under way on the old channel end by themselves within their bound.
            asyncio.get_running_loop().call_later(_REQUEST_TIMEOUT_S, lambda: asyncio.ensure_future(old.close()))

    def _open(self) -> grpc.aio.Channel:
        target, tls = self._targets[self._index]
        return aio_channel(target, tls, self._credentials)

    def _watch_stream(self) -> Any:
        return rpc_pb2_grpc.WatchStub(self._channel).Watch()

    async def _kv(self, method: Callable[[Any], Any], request: Any) -> Any:
        return await self._request(lambda channel: method(rpc_pb2_grpc.KVStub(channel)), request)

    async def _request(self, method: Callable[[grpc.aio.Channel], Any], request: Any) -> Any:
        reason = "no member answered"
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                while True:
                    try:
                        return await method(self._channel)(request, timeout=_ATTEMPT_TIMEOUT_S)
                    except grpc.aio.AioRpcError as error:
                        if error.code() not in _ELSEWHERE:
                            raise
                        reason = error.details() or error.code().name
                    self.rotate()
                    await asyncio.sleep(_RETRY_WAIT_S)
        except TimeoutError as error:
            members = ", ".join(target for target, _ in self._targets)
            raise EtcdUnavailableError(
                f"etcd at {members} did not answer within {_REQUEST_TIMEOUT_S:g} s: {reason}"
            ) from error


def _item(kv: Any) -> KeyValue:
    return KeyValue(
        key=kv.key.decode(),
        value=kv.value,
        create_revision=int(kv.create_revision),
        mod_revision=int(kv.mod_revision),
        lease_id=int(kv.lease),
    )
