"""The scheduler's half of InvocationService.Session: many calls of one caller on one stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import grpc.aio
import structlog

from lambent.errors import InvalidRequestContentError, ServiceError, ThrottledError
from lambent.framing import MAX_FRAME_BYTES, Body, FrameWriter
from lambent.message_stream import MessageStreamError
from lambent.rpc_errors import to_frame
from lambent.v1 import frame_pb2, invocation_pb2

if TYPE_CHECKING:
    from lambent_scheduler.invocation.relay import Relay
    from lambent_scheduler.invocation.relayed_call import RelayedCall

log = structlog.get_logger()

_Frame = invocation_pb2.SessionResponseFrame

_MAX_CALLS = 1_024
"""Calls of one session whose END has not left: just over the account's concurrency, so that one client can use all of
it, while what a session can make us hold stays bounded: of a call 160 KiB of its payload, or 32 KiB of its answer and
256 KiB of its error."""


class CallerStream(Protocol):
    """Both directions of a session: a gRPC call, or a connection to the session port."""

    async def read(self) -> object:
        """Give the next SessionRequest; anything else once the caller has ended the session."""

    async def write(self, frames: list[invocation_pb2.SessionResponseFrame], /) -> None:
        """Send a batch of frames as one message; waits while the caller takes no more."""


class _SessionReply:
    """Where the answer of one call goes, until its END has left.

    Attributes:
        relayed: The call; None before it is admitted and once it has ended.
    """

    __slots__ = ("_body", "_call_id", "_end", "_session", "relayed")

    def __init__(self, session: CallerSession, call_id: int) -> None:
        self.relayed: RelayedCall | None = None
        self._session = session
        self._call_id = call_id
        self._body: Body[_Frame] | None = None
        self._end: _Frame | None = None

    def data(self, call: RelayedCall, payload: bytes) -> None:  # noqa: ARG002 - it is `relayed`
        """Pass on a piece, as far as the caller's credit goes."""
        self._opened_body().push(payload)

    def end(self, end: frame_pb2.End) -> None:
        """Pass on the outcome, behind the pieces."""
        self.relayed = None
        frame = _Frame(call_id=self._call_id)
        frame.end.CopyFrom(end)
        size = len(end.error_payload) if end.function_error else len(end.payload)
        if self._body is None or not self._body.buffered_bytes:
            self._session.calls.pop(self._call_id, None)
            self._session.writer.send(frame, size)
        else:
            self._end = frame
            self._body.finish(frame)

    def window(self, credit_bytes: int) -> None:
        """Let the caller send more of the payload."""
        frame = _Frame(call_id=self._call_id)
        frame.window.credit_bytes = credit_bytes
        self._session.writer.send(frame)

    def discard(self) -> None:
        """Drop the pieces that have not left yet."""
        if self._body is not None:
            self._body.abandon()
            self._body = None

    def grant(self, credit_bytes: int) -> None:
        """The caller can take more of the answer, whether or not some of it has come."""
        self._opened_body().grant(credit_bytes)

    def cancel_ended(self) -> None:
        """The caller does not want the rest of an answer that is here already: it gets the END at once."""
        if (frame := self._end) is not None:
            self.discard()
            self._session.calls.pop(self._call_id, None)
            self._session.writer.send(frame, MAX_FRAME_BYTES)

    def _opened_body(self) -> Body[_Frame]:
        if self._body is None:
            self._body = Body(self._session.writer, self._data_frame, self._sent)
        return self._body

    def _sent(self, size: int) -> None:
        if self.relayed is not None:
            self.relayed.answer_sent(size)
        elif self._body is not None and not self._body.buffered_bytes:
            self._session.calls.pop(self._call_id, None)  # the END needs no credit: it leaves next

    def _data_frame(self, piece: bytes) -> _Frame:
        frame = _Frame(call_id=self._call_id)
        frame.data.payload = piece
        return frame


class CallerSession:
    """One stream of one caller.

    Attributes:
        writer: The way to the caller.
        calls: Calls in flight, and answers that have ended on the node's side and still flow to the caller.
    """

    def __init__(self, relay: Relay, stream: CallerStream) -> None:
        self._relay = relay
        self._stream = stream
        self.writer: FrameWriter[_Frame] = FrameWriter(stream.write, lambda: len(self.calls))
        self.calls: dict[int, _SessionReply] = {}

    async def run(self) -> None:
        """Serve the stream until the caller ends it or is lost."""
        try:
            # Whichever half fails first ends the other.
            async with asyncio.TaskGroup() as halves:
                writing = halves.create_task(self.writer.run(), name="session-writer")
                await self._read()
                writing.cancel()
        except* (grpc.aio.BaseError, MessageStreamError) as errors:
            log.info("session_lost", error=str(errors.exceptions[0]))
        finally:
            for reply in list(self.calls.values()):
                if reply.relayed is not None:
                    self._relay.leave(reply.relayed)
            self.calls.clear()

    async def _read(self) -> None:
        while isinstance(request := await self._stream.read(), invocation_pb2.SessionRequest):
            for frame in request.frames:
                self._receive(frame)
            # A caller that sends and does not read stops being read.
            await self.writer.wait_writable()

    def _receive(self, frame: invocation_pb2.SessionRequestFrame) -> None:
        call_id = frame.call_id
        kind = frame.WhichOneof("frame")
        if kind == "open":
            self._open(call_id, frame.open)
            return
        if (reply := self.calls.get(call_id)) is None:
            return  # The call has ended; the caller did not know yet.
        if kind == "window":
            reply.grant(frame.window.credit_bytes)
            return
        if (relayed := reply.relayed) is None:
            if kind == "cancel":
                reply.cancel_ended()
            return
        try:
            if kind == "data":
                relayed.payload_piece(frame.data.payload)
            elif kind == "end":
                relayed.payload_end(frame.end.payload)
            elif kind == "cancel":
                self._relay.cancel(relayed)
        except ServiceError as error:
            self._relay.give_up(relayed, error)

    def _open(self, call_id: int, opening: invocation_pb2.InvocationOpen) -> None:
        calls = self.calls
        if len(calls) >= _MAX_CALLS:
            error = ThrottledError(
                f"a session carries at most {_MAX_CALLS} calls in flight; open another session",
                details={"Reason": "CallerRateLimitExceeded"},
            )
            self._refuse(call_id, error)
        elif not call_id or call_id in calls:
            self._refuse(call_id, InvalidRequestContentError(f"the call id {call_id} is in use, or 0"))
        else:
            reply = calls[call_id] = _SessionReply(self, call_id)
            reply.relayed = self._relay.open(opening, reply)

    def _refuse(self, call_id: int, error: ServiceError) -> None:
        end = frame_pb2.End(service_error=to_frame(error))
        self.writer.send(_Frame(call_id=call_id, end=end))
