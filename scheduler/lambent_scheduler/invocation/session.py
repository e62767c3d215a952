"""The scheduler's half of InvocationService.Session: many calls of one caller on one stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from lambent.errors import ServiceError, ThrottledError
from lambent.framing import Body, FrameWriter
from lambent.rpc_errors import to_frame
from lambent.v1 import frame_pb2, invocation_pb2

if TYPE_CHECKING:
    from typing import Any

    import grpc.aio

    from lambent_scheduler.invocation.relay import Relay
    from lambent_scheduler.invocation.relayed_call import RelayedCall

_Frame = invocation_pb2.SessionResponseFrame

_MAX_CALLS = 1_024
"""Calls in flight of one session: just over the account's concurrency, so that one client can use all of it, while the
payloads that a session can make us hold stay bounded (320 KiB a call)."""


class _SessionReply:
    """Where the answer of one call goes."""

    __slots__ = ("_body", "_call_id", "_session")

    def __init__(self, session: CallerSession, call_id: int) -> None:
        self._session = session
        self._call_id = call_id
        self._body: Body[_Frame] | None = None

    def data(self, call: RelayedCall, payload: bytes) -> None:
        """Pass on a piece, as far as the caller's credit goes."""
        if self._body is None:
            self._body = Body(self._session.writer, self._data_frame, call.answer_sent)
        self._body.push(payload)

    def end(self, end: frame_pb2.End) -> None:
        """Pass on the outcome, behind the pieces."""
        frame = _Frame(call_id=self._call_id, end=end)
        self._session.calls.pop(self._call_id, None)
        if self._body is not None:
            self._session.bodies[self._call_id] = self._body
            self._body.finish(frame)
        else:
            self._session.writer.send(frame, len(end.payload))

    def window(self, credit_bytes: int) -> None:
        """Let the caller send more of the payload."""
        self._session.writer.send(_Frame(call_id=self._call_id, window=frame_pb2.Window(credit_bytes=credit_bytes)))

    def grant(self, credit_bytes: int) -> None:
        """The caller can take more of the answer."""
        if self._body is not None:
            self._body.grant(credit_bytes)

    def _data_frame(self, piece: bytes) -> _Frame:
        return _Frame(call_id=self._call_id, data=frame_pb2.Data(payload=piece))


class CallerSession:
    """One stream of one caller."""

    def __init__(self, relay: Relay, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._relay = relay
        self._context = context
        self.writer: FrameWriter[_Frame] = FrameWriter(self._write)
        self.calls: dict[int, tuple[RelayedCall, _SessionReply]] = {}
        # Answers that have ended on the node's side and still flow to a caller who reads slowly.
        self.bodies: dict[int, Body[_Frame]] = {}

    async def run(self) -> None:
        """Serve the stream until the caller ends it or is lost."""
        await self._context.send_initial_metadata(())
        writing = asyncio.create_task(self.writer.run(), name="session-writer")
        try:
            while isinstance(request := await self._context.read(), invocation_pb2.SessionRequest):
                for frame in request.frames:
                    self._receive(frame)
                # A caller that sends and does not read stops being read.
                await self.writer.wait_writable()
                if writing.done():
                    break
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            calls, self.calls = self.calls, {}
            for relayed, _ in calls.values():
                self._relay.leave(relayed)

    def _receive(self, frame: invocation_pb2.SessionRequestFrame) -> None:
        call_id = frame.call_id
        kind = frame.WhichOneof("frame")
        if kind == "open":
            self._open(call_id, frame.open)
            return
        if kind == "window" and (body := self.bodies.get(call_id)) is not None:
            body.grant(frame.window.credit_bytes)
            return
        if (known := self.calls.get(call_id)) is None:
            return  # The call has ended; the caller did not know yet.
        relayed, reply = known
        try:
            if kind == "data":
                relayed.payload_piece(frame.data.payload)
            elif kind == "end":
                relayed.payload_end(frame.end.payload)
            elif kind == "window":
                reply.grant(frame.window.credit_bytes)
            elif kind == "cancel":
                self._relay.cancel(relayed)
        except ServiceError as error:
            self._relay.leave(relayed)
            reply.end(frame_pb2.End(service_error=to_frame(error)))

    def _open(self, call_id: int, opening: invocation_pb2.InvocationOpen) -> None:
        reply = _SessionReply(self, call_id)
        if len(self.calls) >= _MAX_CALLS:
            error = ThrottledError(
                f"a session carries at most {_MAX_CALLS} calls in flight; open another session",
                details={"Reason": "CallerRateLimitExceeded"},
            )
            reply.end(frame_pb2.End(service_error=to_frame(error)))
            return
        if (relayed := self._relay.open(opening, reply)) is not None:
            self.calls[call_id] = (relayed, reply)

    async def _write(self, frames: list[_Frame]) -> None:
        await self._context.write(invocation_pb2.SessionResponse(frames=frames))
