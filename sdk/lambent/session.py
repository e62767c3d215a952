"""One stream to a scheduler that carries many invocations: the client half of InvocationService.Session."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from lambent import errors
from lambent.framing import INITIAL_CREDIT_BYTES, MAX_PIECE_BYTES, Body, FrameWriter
from lambent.rpc_errors import from_rpc_error
from lambent.v1 import frame_pb2, invocation_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lambent.v1 import invocation_pb2_grpc

_Frame = invocation_pb2.SessionRequestFrame
_GRANT_AT_BYTES = INITIAL_CREDIT_BYTES // 2
"""Credit is given back when half of it is used: often enough that the sender never stops, and seldom enough."""


class _Call:
    """What the session knows of a call in flight. A buffered call resolves `done`; a streamed one fills `pieces`."""

    __slots__ = ("body", "consumed", "done", "pieces", "received")

    def __init__(self, done: asyncio.Future[tuple[bytes, frame_pb2.End]] | None) -> None:
        self.done = done
        # Bounded by the credit that we give: at most INITIAL_CREDIT_BYTES wait here.
        self.pieces: asyncio.Queue[bytes | frame_pb2.End | errors.ServiceError] | None = (
            asyncio.Queue() if done is None else None
        )
        self.received: list[bytes] = []
        self.body: Body[_Frame] | None = None
        self.consumed = 0


class Session:
    """Carries calls until it is closed or the stream is lost; then `closed` is true and a new one is needed."""

    def __init__(self, stub: invocation_pb2_grpc.InvocationServiceStub, metadata: tuple[tuple[str, str], ...]) -> None:
        self._stream = stub.Session(metadata=metadata)
        self._writer: FrameWriter[_Frame] = FrameWriter(self._write)
        self._calls: dict[int, _Call] = {}
        self._last_call_id = 0
        self._failure: errors.ServiceError | None = None
        self._loop = asyncio.get_running_loop()
        self._tasks = (
            self._loop.create_task(self._run(self._writer.run()), name="session-writer"),
            self._loop.create_task(self._run(self._read()), name="session-reader"),
        )

    @property
    def closed(self) -> bool:
        """True once no further call can be sent."""
        return self._failure is not None

    async def wait_open(self) -> None:
        """Return once the scheduler has accepted the stream. A failure before that means that nothing was dispatched.

        Raises:
            ServiceError: The scheduler cannot be reached or refuses; `dispatched` is false.
        """
        try:
            await self._stream.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            failure.dispatched = False
            self._failure = self._failure or failure
            raise failure from error

    async def invoke(self, opening: invocation_pb2.InvocationOpen, payload: bytes) -> tuple[bytes, frame_pb2.End]:
        """Send one call and wait for its whole answer.

        Cancelling the wait cancels the invocation: its environment is reset.

        Returns:
            The body, and the END frame with report, function error or service error.

        Raises:
            UnavailableError: The stream was lost; `dispatched` is true, since the function may have run.
        """
        done: asyncio.Future[tuple[bytes, frame_pb2.End]] = self._loop.create_future()
        call_id = self._open(_Call(done), opening, payload)
        try:
            return await done
        except asyncio.CancelledError:
            self._cancel(call_id)
            raise

    async def stream(
        self, opening: invocation_pb2.InvocationOpen, payload: bytes
    ) -> AsyncIterator[bytes | frame_pb2.End]:
        """Send one call and give its answer piece by piece; the END frame is the last item.

        A reader that stops reading stops the function once the credit is used. Closing the iterator early cancels the
        invocation.

        Raises:
            UnavailableError: The stream was lost.
        """
        call = _Call(None)
        pieces = call.pieces
        assert pieces is not None
        call_id = self._open(call, opening, payload)
        try:
            while True:
                item = await pieces.get()
                if isinstance(item, errors.ServiceError):
                    raise item
                if isinstance(item, bytes):
                    yield item
                    self._consumed(call_id, call, len(item))
                    continue
                yield item
                return
        finally:
            self._cancel(call_id)

    async def close(self) -> None:
        """End the stream. Calls in flight fail; the functions finish."""
        self._fail(errors.UnavailableError("the session was closed by its owner", dispatched=True))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _open(self, call: _Call, opening: invocation_pb2.InvocationOpen, payload: bytes) -> int:
        if self._failure is not None:
            # Nothing was sent, so it is safe to send it on another session.
            raise errors.UnavailableError(str(self._failure))
        self._last_call_id = call_id = self._last_call_id + 1
        self._calls[call_id] = call
        size = len(payload)
        if size <= MAX_PIECE_BYTES:
            opening.payload = payload
            opening.complete = True
            self._writer.send(_Frame(call_id=call_id, open=opening), size)
        else:
            opening.payload = payload[:MAX_PIECE_BYTES]
            self._writer.send(_Frame(call_id=call_id, open=opening), MAX_PIECE_BYTES)
            call.body = Body(self._writer, lambda piece: _Frame(call_id=call_id, data=frame_pb2.Data(payload=piece)))
            call.body.push(payload[MAX_PIECE_BYTES:])
            call.body.finish(_Frame(call_id=call_id, end=frame_pb2.End()))
        return call_id

    def _cancel(self, call_id: int) -> None:
        call = self._calls.pop(call_id, None)
        if call is None or self._failure is not None:
            return
        if call.body is not None:
            call.body.abandon()
        self._writer.send(_Frame(call_id=call_id, cancel=frame_pb2.Cancel()))

    def _consumed(self, call_id: int, call: _Call, size: int) -> None:
        call.consumed += size
        if call.consumed >= _GRANT_AT_BYTES and call_id in self._calls:
            self._writer.send(_Frame(call_id=call_id, window=frame_pb2.Window(credit_bytes=call.consumed)))
            call.consumed = 0

    async def _write(self, frames: list[_Frame]) -> None:
        await self._stream.write(invocation_pb2.SessionRequest(frames=frames))

    async def _read(self) -> None:
        while (response := await self._stream.read()) is not grpc.aio.EOF:
            assert isinstance(response, invocation_pb2.SessionResponse)
            for frame in response.frames:
                self._receive(frame)
        # The status says why the server ended the stream: a missing token, a shutdown.
        code, details = await self._stream.code(), await self._stream.details()
        message = f"the scheduler ended the session: {details or code}"
        if code is grpc.StatusCode.UNAUTHENTICATED:
            self._fail(errors.UnauthenticatedError(details or message))
        self._fail(errors.UnavailableError(message, dispatched=True))

    def _receive(self, frame: invocation_pb2.SessionResponseFrame) -> None:
        call_id = frame.call_id
        call = self._calls.get(call_id)
        if call is None:
            return  # It was cancelled; its last frames were under way.
        kind = frame.WhichOneof("frame")
        if kind == "end":
            del self._calls[call_id]
            if call.body is not None:
                call.body.abandon()
            self._finish(call, frame.end)
        elif kind == "data":
            payload = frame.data.payload
            if call.pieces is not None:
                call.pieces.put_nowait(payload)
            else:
                call.received.append(payload)
                self._consumed(call_id, call, len(payload))
        elif kind == "window" and call.body is not None:
            call.body.grant(frame.window.credit_bytes)

    @staticmethod
    def _finish(call: _Call, end: frame_pb2.End) -> None:
        if call.pieces is not None:
            if end.payload:
                call.pieces.put_nowait(end.payload)
            call.pieces.put_nowait(end)
            return
        assert call.done is not None
        if call.done.done():
            return
        if call.received:
            call.received.append(end.payload)
            call.done.set_result((b"".join(call.received), end))
        else:
            call.done.set_result((end.payload, end))

    async def _run(self, half: object) -> None:
        """Run one half of the stream; whatever ends it fails the calls in flight."""
        try:
            await half  # type: ignore[misc]  # a coroutine of either half
        except grpc.aio.AioRpcError as error:
            self._fail(from_rpc_error(error))
        except asyncio.InvalidStateError as error:
            # grpc.aio says so when the stream has ended under a write.
            self._fail(errors.UnavailableError(f"the session's stream is closed: {error}", dispatched=True))

    def _fail(self, failure: errors.ServiceError) -> None:
        if self._failure is not None:
            return
        self._failure = failure
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if call.done is not None and not call.done.done():
                call.done.set_exception(failure)
            elif call.pieces is not None:
                call.pieces.put_nowait(failure)
        self._writer.close()
        self._stream.cancel()
