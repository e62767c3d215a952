"""One invocation as a call on a scheduler's stream: its payload comes in, its answer goes out, both under credit."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, Protocol

from lambent.errors import CancelledError, InvalidRequestContentError, RequestTooLargeError, ServiceError
from lambent.framing import GRANT_AT_BYTES, INITIAL_CREDIT_BYTES, MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, Body, FrameWriter
from lambent.rpc_errors import to_frame
from lambent.v1 import frame_pb2, node_pb2
from lambent_node_agent.environment.failures import MAX_STREAMED_BYTES
from lambent_node_agent.environment.trace import xray_trace_id
from lambent_runtime.channel import KEY_BYTES, NO_KEY, InvokeHeader, encode_invoke

if TYPE_CHECKING:
    from collections.abc import Callable

# What a streamed answer may have waiting here before the runtime is no longer read.
_STREAM_HIGH_BYTES: Final = INITIAL_CREDIT_BYTES


class CallStream(Protocol):
    """The scheduler's stream that a call came on."""

    writer: FrameWriter[node_pb2.NodeEvent]

    def forget(self, call: Call) -> None:
        """The call's END has left."""


class Call:
    """A call between its OPEN and its END.

    Args:
        call_id: Its id on the stream.
        opening: Its OPEN.
        stream: Where it came from, and where its answer goes.
    """

    __slots__ = (
        "_answer",
        "_end",
        "_granted",
        "_on_room",
        "_pieces",
        "_size_bytes",
        "_stream",
        "answered_bytes",
        "call_id",
        "complete",
        "ended",
        "key",
        "opening",
        "too_large",
    )

    def __init__(self, call_id: int, opening: node_pb2.InvokeOpen, stream: CallStream) -> None:
        self.call_id = call_id
        self.opening = opening
        self.key = NO_KEY
        self.complete = opening.complete
        self.ended = False
        self.too_large = False
        self.answered_bytes = 0
        self._stream: CallStream | None = stream
        self._size_bytes = len(opening.payload)
        self._pieces: list[bytes] = []
        self._granted = 0
        self._answer: Body[node_pb2.NodeEvent] | None = None
        self._on_room: Callable[[], None] | None = None
        # The END of an answer that waits for credit.
        self._end: frame_pb2.End | None = None

    def abandon(self) -> None:
        """The scheduler is gone: nothing is sent any more, nothing waits for credit, a payload stays incomplete."""
        if not self.complete:
            self.ended = True
            self._pieces.clear()
        self._drop_answer()
        self._stream = None
        self._make_room()

    def discard_answer(self) -> None:
        """Nobody wants the answer any more: what of it waits for credit is dropped, and the END waits for nothing."""
        stream, end = self._stream, self._end
        self._drop_answer()
        self._make_room()
        if stream is None or end is None:
            return
        request_id = self.opening.request_id
        error = CancelledError(f"The answer of invocation {request_id} was not read to its end.", dispatched=True)
        cut = frame_pb2.End(report=end.report, service_error=to_frame(error))
        stream.forget(self)
        stream.writer.send(self._end_event(cut))

    # Payload, in

    def payload_piece(self, payload: bytes) -> None:
        """Take a piece of the payload and give credit for more.

        Raises:
            RequestTooLargeError: The payload is over 6 MiB.
            InvalidRequestContentError: It had ended.
        """
        if self.complete:
            raise InvalidRequestContentError("a frame of payload came after the end of the payload")
        self._size_bytes += len(payload)
        if self._size_bytes > MAX_PAYLOAD_BYTES:
            raise RequestTooLargeError(
                f"Request must be smaller than {MAX_PAYLOAD_BYTES} bytes for the InvokeFunction operation"
            )
        self._pieces.append(payload)
        self._granted += len(payload)
        if self._granted >= GRANT_AT_BYTES and self._stream is not None:
            event = node_pb2.NodeEvent(call_id=self.call_id)
            event.window.credit_bytes = self._granted
            self._stream.writer.send(event)
            self._granted = 0

    def payload_end(self, payload: bytes) -> None:
        """Take the last piece. Raises as `payload_piece`."""
        self.payload_piece(payload)
        self.complete = True

    def invoke_frame(self, timeout_s: float) -> list[bytes]:
        """Make the frame that the runtime gets, in pieces, and draw its key; the payload is not kept.

        Raises:
            ValueError: The header or the payload is over its bound.
        """
        opening = self.opening
        self.key = os.urandom(KEY_BYTES)
        header = InvokeHeader(
            request_id=opening.request_id,
            deadline_ms=int((time.time() + timeout_s) * 1000),
            invoked_function_arn=opening.invoked_function_arn,
            trace_id=xray_trace_id(opening.traceparent),
            client_context=opening.client_context.decode(errors="replace") if opening.client_context else None,
            streaming=opening.streaming,
            key=self.key,
        )
        pieces, self._pieces = self._pieces, []
        return encode_invoke(header, opening.payload, *pieces)

    # Answer, out

    def chunk(self, data: bytes) -> None:
        """Take a piece of a streamed answer and send it on."""
        self.answered_bytes += len(data)
        if self.answered_bytes > MAX_STREAMED_BYTES:
            self.too_large = True
        elif self._stream is not None:
            self._body(self._stream).push(data)

    def has_room(self, on_room: Callable[[], None]) -> bool:
        """Tell whether more of a streamed answer can be taken; if not, `on_room` is called once it can."""
        if self._answer is None or self._answer.buffered_bytes < _STREAM_HIGH_BYTES:
            return True
        self._on_room = on_room
        return False

    def grant(self, credit_bytes: int) -> None:
        """The scheduler can take more of the answer."""
        if self._answer is not None:
            self._answer.grant(credit_bytes)

    def answer(self, end: frame_pb2.End, payload: bytes = b"") -> None:
        """Send the rest of the body and the END."""
        assert not self.ended, self.opening.request_id
        self.ended = True
        stream = self._stream
        if stream is None:
            return
        if self._answer is None and len(payload) <= MAX_FRAME_BYTES:
            end.payload = payload
            stream.forget(self)
            size = len(payload) + len(end.error_payload)
            stream.writer.send(self._end_event(end), size)
            return
        body = self._body(stream)
        body.push(payload)
        if body.buffered_bytes:
            self._end = end
        else:
            stream.forget(self)
        body.finish(self._end_event(end))

    def fail(self, error: ServiceError) -> None:
        """Answer that the call failed outside the function."""
        self._pieces.clear()
        self.answer(frame_pb2.End(service_error=to_frame(error)))

    def _body(self, stream: CallStream) -> Body[node_pb2.NodeEvent]:
        if self._answer is None:
            self._answer = Body(stream.writer, self._data_event, self._sent)
        return self._answer

    def _data_event(self, piece: bytes) -> node_pb2.NodeEvent:
        event = node_pb2.NodeEvent(call_id=self.call_id)
        event.data.payload = piece
        return event

    def _end_event(self, end: frame_pb2.End) -> node_pb2.NodeEvent:
        event = node_pb2.NodeEvent(call_id=self.call_id)
        event.end.CopyFrom(end)
        return event

    def _sent(self, _size: int) -> None:
        assert self._answer is not None
        if self.ended and not self._answer.buffered_bytes and self._stream is not None:
            self._stream.forget(self)  # the END needs no credit: it leaves next
        if self._answer.buffered_bytes < _STREAM_HIGH_BYTES // 2:
            self._make_room()

    def _make_room(self) -> None:
        on_room, self._on_room = self._on_room, None
        if on_room is not None:
            on_room()

    def _drop_answer(self) -> None:
        if self._answer is not None:
            self._answer.abandon()
        self._answer = self._end = None
