"""List, then watch: resumes after a lost connection, lists again after compaction."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog
from aetcd.rpc import kv_pb2, rpc_pb2

from lambent_common.etcd.errors import EtcdUnavailableError
from lambent_common.etcd.model import Changes, Delete, KeyValue, Put, Snapshot, WatchBatch, prefix_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

log = structlog.get_logger()

_RETRY_WAIT_S = 0.2
"""Between attempts while no member answers: a restarted etcd is noticed at once, and a dead one is not hammered."""

_SILENCE_TIMEOUT_S = 15.0
"""A watch asks for progress notices when nothing happens for this long; a member that is cut off answers none."""


class _CompactedError(Exception):
    """The revision to resume from is gone."""


async def watch(
    prefix: str,
    list_prefix: Callable[[str], Awaitable[Snapshot]],
    open_stream: Callable[[], Any],
    rotate: Callable[[], None],
) -> AsyncIterator[WatchBatch]:
    """Give a Snapshot, then Changes, for ever; see `EtcdClient.watch`."""
    revision: int | None = None
    while True:
        try:
            if revision is None:
                snapshot = await list_prefix(prefix)
                revision = snapshot.revision
                yield snapshot
            async for changes in _follow(prefix, revision + 1, open_stream):
                revision = changes.revision
                if changes.events:
                    yield changes
        except _CompactedError:
            log.warning("watch_compacted", prefix=prefix, revision=revision)
            revision = None
        except (grpc.aio.AioRpcError, EtcdUnavailableError, TimeoutError, asyncio.InvalidStateError) as error:
            log.warning("watch_interrupted", prefix=prefix, error=str(error) or type(error).__name__)
            rotate()
            await asyncio.sleep(_RETRY_WAIT_S)


async def _follow(prefix: str, start_revision: int, open_stream: Callable[[], Any]) -> AsyncIterator[Changes]:
    """Give changes from `start_revision` on until the stream ends."""
    stream = open_stream()
    try:
        await stream.write(
            rpc_pb2.WatchRequest(
                create_request=rpc_pb2.WatchCreateRequest(
                    key=prefix.encode(),
                    range_end=prefix_end(prefix),
                    start_revision=start_revision,
                    # Large transactions come in pieces instead of one message over gRPC's limit.
                    fragment=True,
                )
            )
        )
        events: list[Put | Delete] = []
        while (response := await _read(stream)) is not grpc.aio.EOF:
            if response.compact_revision:
                raise _CompactedError
            if response.canceled:
                raise TimeoutError(f"etcd cancelled the watch: {response.cancel_reason}")
            events.extend(_event(event) for event in response.events)
            if not response.fragment and not response.created:
                yield Changes(revision=int(response.header.revision), events=events)
                events = []
        raise TimeoutError("etcd ended the watch")
    finally:
        stream.cancel()


async def _read(stream: Any) -> Any:
    """Read the next message; after a silence ask for a sign of life and wait once more."""
    reading = asyncio.ensure_future(stream.read())
    try:
        done, _ = await asyncio.wait((reading,), timeout=_SILENCE_TIMEOUT_S)
        if not done:
            await stream.write(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))
        async with asyncio.timeout(_SILENCE_TIMEOUT_S):
            return await reading
    finally:
        reading.cancel()


def _event(event: Any) -> Put | Delete:
    kv = event.kv
    if event.type == kv_pb2.Event.DELETE:
        return Delete(key=kv.key.decode(), mod_revision=int(kv.mod_revision))
    return Put(
        KeyValue(
            key=kv.key.decode(),
            value=kv.value,
            create_revision=int(kv.create_revision),
            mod_revision=int(kv.mod_revision),
            lease_id=int(kv.lease),
        )
    )
