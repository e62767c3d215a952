"""Many invocations on one stream to a scheduler: the client half of InvocationService.Session."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
from typing import TYPE_CHECKING

from lambent import errors
from lambent.connection import transport_errors
from lambent.framing import GRANT_AT_BYTES, MAX_FRAME_BYTES, Body, FrameWriter
from lambent.message_stream import MessageStreamError
from lambent.v1 import frame_pb2, invocation_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from lambent.session_stream import SessionStream

_Frame = invocation_pb2.SessionRequestFrame

_GOODBYE_S = 1.0
"""What waits at a close is a few frames, and the answer to it is one message; a peer that takes longer is left."""


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

    def __init__(self, stream: SessionStream) -> None:
        self._stream = stream
        self._writer: FrameWriter[_Frame] = FrameWriter(stream.write, lambda: len(self._calls))
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
    ) -> AsyncGenerator[bytes | frame_pb2.End, None]:
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
        """End the stream once what waits was sent. Calls in flight fail; their functions finish.

        What waits may be the CANCEL of a call that nobody reads any more: a stream that is cut off loses it.
        """
        try:
            if self._failure is None:
                self._end_calls(errors.UnavailableError("the session was closed by its owner", dispatched=True))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GOODBYE_S):
                        await self._say_goodbye()
        finally:
            self._stream.abort()
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _open(self, call: _Call, opening: invocation_pb2.InvocationOpen, payload: bytes) -> int:
        if self._failure is not None:
            # Nothing was sent, so it is safe to send it on another session.
            raise errors.UnavailableError(self._failure.message)
        self._last_call_id = call_id = self._last_call_id + 1
        self._calls[call_id] = call
        size = len(payload)
        if size <= MAX_FRAME_BYTES:
            opening.payload = payload
            opening.complete = True
            self._writer.send(_open_frame(call_id, opening), size)
        else:
            opening.payload = payload[:MAX_FRAME_BYTES]
            self._writer.send(_open_frame(call_id, opening), MAX_FRAME_BYTES)
            call.body = Body(self._writer, functools.partial(_data_frame, call_id))
            call.body.push(memoryview(payload)[MAX_FRAME_BYTES:])
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
        if call.consumed >= GRANT_AT_BYTES and call_id in self._calls:
            frame = _Frame(call_id=call_id)
            frame.window.credit_bytes = call.consumed
            self._writer.send(frame)
            call.consumed = 0

    async def _read(self) -> None:
        while (response := await self._stream.read()) is not None:
            for frame in response.frames:
                self._receive(frame)

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

    async def _run(self, half: Awaitable[None]) -> None:
        """Run one half of the stream; whatever ends it fails the calls in flight."""
        try:
            with transport_errors():
                await half
            failure: errors.ServiceError = errors.UnavailableError("the scheduler ended the session", dispatched=True)
        except errors.ServiceError as error:
            failure = error
        except (MessageStreamError, asyncio.InvalidStateError) as error:
            # The latter is what grpc.aio says when the stream has ended under a write.
            failure = errors.UnavailableError(f"the session is lost: {error}", dispatched=True)
        except Exception as error:  # noqa: BLE001 - a defect is handed to those whom it keeps waiting
            failure = errors.InternalError(
                f"the session ended by a defect of Lambent ({type(error).__name__}: {error})", dispatched=True
            )
            failure.__cause__ = error
        self._fail(failure)

    async def _say_goodbye(self) -> None:
        writing, reading = self._tasks
        await asyncio.wait((writing,))
        await self._stream.finish()
        await asyncio.wait((reading,))  # The scheduler ends its side once it has read ours.

    def _fail(self, failure: errors.ServiceError) -> None:
        if self._failure is None:
            self._end_calls(failure)
            self._stream.abort()

    def _end_calls(self, failure: errors.ServiceError) -> None:
        self._failure = failure
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if call.body is not None:
                call.body.abandon()
            # One of its own for each call: whoever raises an exception adds to its traceback.
            own = copy.copy(failure)
            own.__cause__ = failure.__cause__
            if call.done is not None and not call.done.done():
                call.done.set_exception(own)
            elif call.pieces is not None:
                call.pieces.put_nowait(own)
        self._writer.close()


def _open_frame(call_id: int, opening: invocation_pb2.InvocationOpen) -> _Frame:
    """Filled in as `_data_frame` is: docs/adr/0002 says what protobuf's constructors cost."""
    frame = _Frame(call_id=call_id)
    frame.open.CopyFrom(opening)
    return frame


def _data_frame(call_id: int, piece: bytes) -> _Frame:
    frame = _Frame(call_id=call_id)
    frame.data.payload = piece
    return frame
