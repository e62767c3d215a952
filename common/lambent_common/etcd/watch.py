"""List, then watch: resumes after a lost connection, lists again after compaction."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog
from aetcd.rpc import rpc_pb2

from lambent_common.etcd.codec import event
from lambent_common.etcd.errors import EtcdUnavailableError, error_of
from lambent_common.etcd.members import REQUIRE_LEADER
from lambent_common.etcd.model import Changes, Delete, Put, Snapshot, WatchBatch, prefix_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lambent.errors import ServiceError
    from lambent_common.etcd.members import Member, Members

log = structlog.get_logger()

_FIRST_RETRY_WAIT_S = 0.05
_MAX_RETRY_WAIT_S = 1.0
"""A restarted etcd is noticed at once; one that is away for long is asked by each watch about once a second."""


class _RelistError(Exception):
    """What was seen cannot be continued: the reason."""


class _Cursor:
    """How far one watch has come.

    The header of a response with events may be ahead of its events (etcd sends a long backlog in parts, all under the
    newest revision), so that only an event's own revision, or a timed progress notice, moves the cursor. Progress is
    never requested: before 3.4.25 and 3.5.8 the answer may be out of step with the events (etcd-io/etcd issue 15220).
    """

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.cluster_id = 0

    def check_created(self, header: Any) -> None:
        """Compare the member with what was seen: another store, or an older state of it, cannot be resumed."""
        if self.cluster_id not in (0, header.cluster_id):
            raise _RelistError("this is another cluster")
        self.cluster_id = header.cluster_id
        if header.revision < self.revision:
            raise _RelistError(f"etcd is back at revision {header.revision}")


async def watch(
    prefix: str,
    members: Members,
    list_prefix: Callable[[str], Awaitable[Snapshot]],
    *,
    timeout_s: float,
) -> AsyncIterator[WatchBatch]:
    """Give a Snapshot, then Changes, for ever; see `EtcdClient.watch`."""
    cursor: _Cursor | None = None
    wait_s = _FIRST_RETRY_WAIT_S
    while True:
        try:
            if cursor is None:
                snapshot = await list_prefix(prefix)
                cursor = _Cursor(snapshot.revision)
                yield snapshot
            async for changes in _follow(prefix, cursor, members, timeout_s):
                wait_s = _FIRST_RETRY_WAIT_S
                if changes is not None:
                    yield changes
        except _RelistError as error:
            log.warning("watch_relists", prefix=prefix, reason=str(error))
            cursor = None
        except EtcdUnavailableError as error:
            if members.closed:
                raise
            log.warning("watch_interrupted", prefix=prefix, error=error.message)
        # Not all watches of all daemons in the same moment.
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311, no secret
        wait_s = min(wait_s * 2, _MAX_RETRY_WAIT_S)


async def _follow(prefix: str, cursor: _Cursor, members: Members, timeout_s: float) -> AsyncIterator[Changes | None]:
    """Give None once the member watches, then changes after the cursor, until the stream fails."""
    member = await members.connected(timeout_s)
    stream = member.watch.Watch(metadata=REQUIRE_LEADER)
    try:
        async with asyncio.timeout(timeout_s):
            await _write(stream, _create_request(prefix, cursor.revision + 1), member, members)
            created = await _read(stream, member, members)
        _check_cancelled(created, member)
        cursor.check_created(created.header)
        yield None
        events: list[Put | Delete] = []
        while True:
            response = await _read(stream, member, members)
            _check_cancelled(response, member)
            events.extend(event(message) for message in response.events)
            if response.fragment:
                continue
            if not events:
                cursor.revision = max(cursor.revision, int(response.header.revision))
                continue
            cursor.revision = _revision_of(events[-1])
            yield Changes(revision=cursor.revision, events=events)
            events = []
    except TimeoutError as error:
        members.leave(member)
        raise EtcdUnavailableError(f"etcd at {member.target} did not begin to watch within {timeout_s:g} s") from error
    except EtcdUnavailableError:
        members.leave(member)
        raise
    finally:
        stream.cancel()


def _create_request(prefix: str, start_revision: int) -> Any:
    return rpc_pb2.WatchRequest(
        create_request=rpc_pb2.WatchCreateRequest(
            key=prefix.encode() or b"\0",
            range_end=prefix_end(prefix),
            start_revision=start_revision,
            # Every 10 minutes of quiet the cursor moves on, so that compaction does not overtake it.
            progress_notify=True,
            # Large transactions come in pieces instead of one message over gRPC's limit.
            fragment=True,
        )
    )


def _revision_of(last: Put | Delete) -> int:
    return last.item.mod_revision if isinstance(last, Put) else last.mod_revision


def _check_cancelled(response: Any, member: Member) -> None:
    if response.compact_revision:
        raise _RelistError(f"etcd has compacted up to revision {response.compact_revision}")
    if response.canceled:
        raise EtcdUnavailableError(f"etcd at {member.target} cancelled the watch: {response.cancel_reason}")


async def _write(stream: Any, request: Any, member: Member, members: Members) -> None:
    try:
        await stream.write(request)
    except asyncio.InvalidStateError as error:  # gRPC's word for a stream that has ended
        raise EtcdUnavailableError(f"etcd at {member.target} ended the watch") from error
    except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError) as error:
        failure = _failure(error, member, members)
        if failure is None:
            raise
        raise failure from error


async def _read(stream: Any, member: Member, members: Members) -> Any:
    try:
        response = await stream.read()
    except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError) as error:
        failure = _failure(error, member, members)
        if failure is None:
            raise
        raise failure from error
    if response is grpc.aio.EOF:
        raise EtcdUnavailableError(f"etcd at {member.target} ended the watch")
    return response


def _failure(error: BaseException, member: Member, members: Members) -> ServiceError | None:
    """Tell apart a failed stream, a closed client (gRPC cancels its calls) and a cancelled watcher (None)."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error_of(error, member.target, is_write=False)
    task = asyncio.current_task()
    if members.closed and not (task is not None and task.cancelling()):
        return EtcdUnavailableError("the etcd client was closed")
    return None
