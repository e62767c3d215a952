"""Frames between the node agent and the runtime process of one execution environment.

A frame is a 4-byte big-endian body length, a 1-byte kind, the 8-byte key of the invocation that it belongs to, and the
body. The agent sends INVOKE; the runtime answers READY or INIT_ERROR once, then for each INVOKE either RESULT, ERROR,
or any number of CHUNK closed by STREAM_END or STREAM_ERROR. The runtime has flushed stdout and stderr before each frame
but INVOKE and CHUNK.

An answer repeats the key of its INVOKE. Each key is drawn anew, so that what was written before an invocation was sent,
or is said of an earlier one, cannot be its answer.

The agent must treat what it reads as hostile: function code holds the same descriptor. It bounds every frame by its
kind, `FROM_RUNTIME`, before it buffers a body.
"""

from __future__ import annotations

import enum
import select
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(enum.IntEnum):
    """What a frame means."""

    INVOKE = 1
    """Agent to runtime: `encode_invoke`'s body."""
    RESTORE = 2
    """Agent to runtime, with SnapStart, once before the first INVOKE: run the hooks after the restore; empty body."""
    READY = 10
    """Init is done; `encode_ready`'s body."""
    INIT_ERROR = 11
    """Init, or a hook after the restore, failed; error JSON. The process exits with status 1 next."""
    RESULT = 12
    """The handler's answer as JSON, or the joined bytes of a generator handler that was not invoked for streaming."""
    ERROR = 13
    """The handler failed; error JSON."""
    CHUNK = 14
    """A piece of a streamed answer."""
    STREAM_END = 15
    """The streamed answer is complete; empty body."""
    STREAM_ERROR = 16
    """The handler failed while it streamed; error JSON."""
    TOO_LARGE = 17
    """In place of RESULT: the answer is over `MAX_RESULT_BYTES`; empty body."""
    RESTORED = 18
    """The hooks after the restore have run; empty body."""


MAX_EVENT_BYTES = 6_291_456
"""AWS Lambda quotas: synchronous request payload, 6 MiB."""
MAX_RESULT_BYTES = 6_291_556
"""AWS Lambda's check of the response payload: 6 MiB and 100 bytes."""
MAX_ERROR_BYTES = 256 * 1024
"""Error JSON: our own bound, ample for the bounded message and stack trace that `faults` makes."""
MAX_CHUNK_BYTES = 64 * 1024
"""One frame of a streamed answer, so that a large answer does not hold up others on shared streams."""
MAX_INVOKE_HEADER_BYTES = 0xFFFF
"""The header's length travels in two bytes; a client context has at most 3,583 bytes."""

KEY_BYTES = 8
"""No function guesses the key of a call to come: at a million frames a second it would take 300,000 years."""
NO_KEY = bytes(KEY_BYTES)
"""Of frames before the first INVOKE."""

HEADER = struct.Struct(f">IB{KEY_BYTES}s")
_HEADER_LENGTH = struct.Struct(">H")
_LOAD = struct.Struct(">I")

RESTORE_FRAME = HEADER.pack(0, Kind.RESTORE, NO_KEY)

FROM_RUNTIME: Mapping[int, int] = {
    Kind.READY: _LOAD.size,
    Kind.INIT_ERROR: MAX_ERROR_BYTES,
    Kind.RESULT: MAX_RESULT_BYTES,
    Kind.ERROR: MAX_ERROR_BYTES,
    Kind.CHUNK: MAX_CHUNK_BYTES,
    Kind.STREAM_END: 0,
    Kind.STREAM_ERROR: MAX_ERROR_BYTES,
    Kind.TOO_LARGE: 0,
    Kind.RESTORED: 0,
}
"""Largest body by kind, of frames that the agent accepts."""
FROM_AGENT: Mapping[int, int] = {Kind.INVOKE: _HEADER_LENGTH.size + MAX_INVOKE_HEADER_BYTES + MAX_EVENT_BYTES}
"""Largest body by kind, of frames that the runtime accepts."""


class ProtocolError(Exception):
    """The peer sent what is not a frame, or one that its kind does not allow.

    Attributes:
        kind: The kind byte of the offending frame.
        length: The body length it announced.
    """

    def __init__(self, message: str, kind: int = 0, length: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.length = length


class InvokeHeader:
    """What the runtime is told about one invocation beside its event.

    It travels as text, the fields one after another with a NUL between them; the last may hold some of its own.

    Attributes:
        key: What its answer is known by; travels in the frame's own header.
        request_id: The invocation's id, a UUID.
        deadline_ms: When the invocation times out, in milliseconds since the epoch.
        invoked_function_arn: The ARN as the caller gave it, with its qualifier if there was one.
        trace_id: Value of `_X_AMZN_TRACE_ID`; empty for none.
        streaming: The caller wants the answer in chunks as they are made.
        client_context: JSON text of the caller's client context, or None.
    """

    __slots__ = ("client_context", "deadline_ms", "invoked_function_arn", "key", "request_id", "streaming", "trace_id")

    def __init__(
        self,
        request_id: str,
        deadline_ms: int,
        invoked_function_arn: str,
        trace_id: str = "",
        *,
        client_context: str | None = None,
        streaming: bool = False,
        key: bytes = NO_KEY,
    ) -> None:
        self.key = key
        self.request_id = request_id
        self.deadline_ms = deadline_ms
        self.invoked_function_arn = invoked_function_arn
        self.trace_id = trace_id
        self.client_context = client_context
        self.streaming = streaming


def encode_invoke(header: InvokeHeader, event: bytes, *more: bytes) -> list[bytes]:
    """Return the INVOKE frame for one invocation, in pieces: a large event is not copied to join it.

    Args:
        header: What is told beside the event.
        event: The event, or its first piece.
        more: Further pieces.

    Raises:
        ValueError: The header or the event is over its bound.
    """
    text = "\0".join(
        (
            header.request_id,
            str(header.deadline_ms),
            header.invoked_function_arn,
            header.trace_id,
            "1" if header.streaming else "",
            header.client_context or "",
        )
    ).encode()
    if len(text) > MAX_INVOKE_HEADER_BYTES:
        raise ValueError(f"the invocation's header has {len(text)} bytes, more than {MAX_INVOKE_HEADER_BYTES}")
    size = len(event) + sum(map(len, more))
    if size > MAX_EVENT_BYTES:
        raise ValueError(f"the event has {size} bytes, more than {MAX_EVENT_BYTES}")
    length = _HEADER_LENGTH.size + len(text) + size
    start = b"".join((HEADER.pack(length, Kind.INVOKE, header.key), _HEADER_LENGTH.pack(len(text)), text, event))
    return [start, *more]


def decode_invoke(body: bytes | bytearray, key: bytes = NO_KEY) -> tuple[InvokeHeader, memoryview]:
    """Take an INVOKE body apart into header and event, without a copy of the event.

    Args:
        body: What stood behind the frame's header.
        key: What stood in it.

    Raises:
        ProtocolError: The body is shorter than it says, or the header is not what it must be.
    """
    if len(body) < _HEADER_LENGTH.size:
        raise ProtocolError("INVOKE without a header", Kind.INVOKE, len(body))
    (size,) = _HEADER_LENGTH.unpack_from(body)
    start = _HEADER_LENGTH.size + size
    if len(body) < start:
        raise ProtocolError("INVOKE is shorter than its header says", Kind.INVOKE, len(body))
    try:
        text = body[_HEADER_LENGTH.size : start].decode()
        request_id, deadline_ms, arn, trace_id, streaming, client_context = text.split("\0", 5)
        header = InvokeHeader(
            request_id,
            int(deadline_ms),
            arn,
            trace_id,
            client_context=client_context or None,
            streaming=bool(streaming),
            key=key,
        )
    except ValueError as error:
        raise ProtocolError(f"INVOKE header: {error}", Kind.INVOKE, len(body)) from error
    return header, memoryview(body)[start:]


def encode_ready(load_us: int) -> bytes:
    """Return the body of READY.

    Args:
        load_us: What loading the handler took, in microseconds. The function may have replaced the clock: what does
            not fit is cut.
    """
    return _LOAD.pack(min(max(0, load_us), 0xFFFFFFFF))


def decode_ready(body: bytes) -> int:
    """Return what the body of READY says; any body within the kind's bound says something."""
    return int.from_bytes(body, "big")


class BlockingChannel:
    """The runtime's side: whole frames over a blocking stream socket.

    Each frame that it sends belongs to the invocation that it has received last.

    Args:
        connection: A connected stream socket; owned from now on.
    """

    __slots__ = ("_connection", "_key", "_readable")

    def __init__(self, connection: socket.SocketType) -> None:
        self._connection = connection
        self._key = NO_KEY
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Send one frame; waits while the agent does not read.

        Raises:
            OSError: The channel is gone.
        """
        if len(body) <= MAX_CHUNK_BYTES:
            self._connection.sendall(HEADER.pack(len(body), kind, self._key) + body)
        else:
            self._connection.sendall(HEADER.pack(len(body), kind, self._key))
            self._connection.sendall(body)

    def receive_invoke(self) -> tuple[InvokeHeader, memoryview] | None:
        """Wait for the next invocation; None when the agent has closed the channel.

        Raises:
            OSError: The channel is gone.
            ProtocolError: The agent sent something else.
        """
        # Not recv alone: on a Unix socket it wakes a second time, for nothing, when the agent reads the last answer.
        self._readable.poll()
        first = self._connection.recv(MAX_CHUNK_BYTES)
        if not first:
            return None
        while len(first) < HEADER.size:
            first += self._more(MAX_CHUNK_BYTES)
        length, kind, key = HEADER.unpack_from(first)
        if length > FROM_AGENT.get(kind, -1):
            raise ProtocolError(f"frame of kind {kind} and {length} bytes", kind, length)
        if len(first) - HEADER.size > length:
            raise ProtocolError("a second invocation before the answer to the first", kind, length)
        if len(first) - HEADER.size == length:
            invocation = decode_invoke(first[HEADER.size :], key)
        else:
            invocation = decode_invoke(self._fill(first[HEADER.size :], length), key)
        self._key = key
        return invocation

    def receive_restore(self) -> bool:
        """Wait for RESTORE; False when the agent has closed the channel.

        Raises:
            OSError: The channel is gone.
            ProtocolError: The agent sent something else.
        """
        first = self._connection.recv(HEADER.size)
        if not first:
            return False
        while len(first) < HEADER.size:
            first += self._more(HEADER.size - len(first))
        length, kind, _key = HEADER.unpack(first)
        if kind != Kind.RESTORE or length:
            raise ProtocolError(f"frame of kind {kind} and {length} bytes instead of RESTORE", kind, length)
        return True

    def _fill(self, start: bytes, length: int) -> bytearray:
        body = bytearray(length)
        body[: len(start)] = start
        view = memoryview(body)
        filled = len(start)
        while filled < length:
            count = self._connection.recv_into(view[filled:], 0, socket.MSG_WAITALL)
            if not count:
                raise ProtocolError("the channel ended inside a frame", Kind.INVOKE, length)
            filled += count
        return body

    def _more(self, size: int) -> bytes:
        data = self._connection.recv(size)
        if not data:
            raise ProtocolError("the channel ended inside a frame")
        return data
