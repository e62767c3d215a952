"""LogService: gives the log of a function out of JetStream, and follows it."""
# ruff: noqa: N802, ARG002 - the methods' names and arguments are gRPC's

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import DecodeError

from lambent.errors import InvalidParameterError, ThrottledError
from lambent.v1 import log_pb2, log_pb2_grpc
from lambent_common.log_streams import log_subject, shard_of, stream_name
from lambent_common.stream_reader import StreamReader
from lambent_scheduler.functions import model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

    from lambent_scheduler.functions.names import Naming
    from lambent_scheduler.functions.table import FunctionTable

log = structlog.get_logger(__name__)

# A reader holds up to 8 MiB and a consumer on the server; this many are half a GiB at worst.
_READERS = 64
# How long one wait for news may take before the consumer is looked after.
_WAIT_S = 5.0
# Environments write to the log in parallel: a batch stored after `since` may hold older lines, and is stored at most
# this much later than its first line (the agent's batches are 200 ms, and more when JetStream was away).
_SINCE_SLACK_S = 60.0
_NANOSECONDS = 1_000_000_000


class LogServicer(log_pb2_grpc.LogServiceServicer):
    """Serves LogService. Methods raise classes of `lambent.errors`; the server's interceptor maps them."""

    def __init__(self, js: JetStreamContext, naming: Naming, table: FunctionTable) -> None:
        self._js = js
        self._naming = naming
        self._table = table
        self._readers = 0

    async def TailLogs(
        self, request: log_pb2.TailLogsRequest, context: object
    ) -> AsyncIterator[log_pb2.TailLogsResponse]:
        """Give what is stored, oldest first, then with `follow` what is added, until the caller goes.

        A slow caller slows the reading down; nothing is read ahead but one batch.

        Raises:
            FunctionNotFoundError: There is neither such a function nor a log of one.
            ThrottledError: 64 callers are reading.
            UnavailableError: JetStream does not answer.
        """
        function, _ = self._naming.read(request.account, request.function_name)
        since_ns = _since(request, time.time_ns())
        if self._readers >= _READERS:
            raise ThrottledError(
                f"{_READERS} callers are reading logs. Please try again later.",
                details={"Reason": "CallerRateLimitExceeded"},
            )
        self._readers += 1
        try:
            stream = stream_name(shard_of(function.account, function.name))
            subject = log_subject(function.account, function.name)
            start_time = None if since_ns is None else _time(since_ns - int(_SINCE_SLACK_S * _NANOSECONDS))
            async with StreamReader(self._js, stream, subject, start_time=start_time) as reader:
                if not reader.pending and not self._table.exists(function):
                    raise model.not_found(self._naming.arn(function))
                while reader.pending:
                    for message in await reader.read():
                        if (batch := _batch(message, since_ns)) is not None:
                            yield log_pb2.TailLogsResponse(batch=batch)
                while request.follow:
                    for message in await reader.wait(_WAIT_S):
                        if (batch := _batch(message, since_ns)) is not None:
                            yield log_pb2.TailLogsResponse(batch=batch)
        finally:
            self._readers -= 1


def _since(request: log_pb2.TailLogsRequest, now_ns: int) -> int | None:
    """Give the Unix time in nanoseconds from which on lines are wanted; None for all."""
    if not request.HasField("since"):
        return None
    since_ns = request.since.ToNanoseconds()
    if since_ns < 0:
        raise InvalidParameterError("`since` is a length of time and cannot be negative")
    return max(0, now_ns - since_ns)


def _time(time_ns: int) -> datetime:
    return datetime.fromtimestamp(max(0, time_ns) / _NANOSECONDS, UTC)


def _batch(message: Msg, since_ns: int | None) -> log_pb2.LogBatch | None:
    """Read a message, less the lines before `since_ns`; None when nothing is left of it."""
    try:
        batch = log_pb2.LogBatch.FromString(message.data)
    except DecodeError:
        log.warning("log_batch_unreadable", subject=message.subject, bytes=len(message.data))
        return None
    if since_ns is None:
        return batch
    events = [event for event in batch.events if event.event_time.ToNanoseconds() >= since_ns]
    if not events and batch.events:
        return None
    del batch.events[:]
    batch.events.extend(events)
    return batch
