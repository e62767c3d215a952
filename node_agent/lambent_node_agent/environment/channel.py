"""The agent's end of a runtime's channel, as an asyncio protocol.

Function code holds the same descriptor as the runtime, so whatever arrives may be hostile: each frame is bounded by its
kind before its body is kept, and the first thing that is no frame ends the conversation. A RESULT over the limit is the
one exception: it is an honest mistake, and is read and thrown away so that the runtime can go on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol, cast

from lambent_runtime.channel import FROM_RUNTIME, HEADER, Kind

_PIECES_A_TURN = 4
"""Of 32 KiB as a rule, each of which takes the kernel some microseconds."""


class ChannelListener(Protocol):
    """Hears what a runtime says."""

    def frame_received(self, kind: int, body: bytes) -> None:
        """A frame of a kind that runtimes send, within the kind's bound."""

    def result_too_large(self) -> None:
        """A RESULT over the limit has been read to its end and thrown away."""

    def protocol_violated(self, what: str) -> None:
        """What arrived is no frame; nothing more is read."""

    def channel_ended(self) -> None:
        """The other end is closed."""


class RuntimeChannel(asyncio.Protocol):
    """Cuts what arrives into frames; holds at most one incomplete frame and one read."""

    def __init__(self, listener: ChannelListener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._wanted = HEADER.size
        self._discard = 0
        self._paused = False
        self._unsent: deque[bytes] = deque()
        self._writable = True
        self._sends_later = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        # uvloop's transports have the interface and not the base class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason does not matter
        """Called by the event loop."""
        self._unsent.clear()
        if self._transport is not None:
            self._transport = None
            self._listener.channel_ended()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if not self._buffer and not self._discard and len(data) >= HEADER.size:
            length, kind = HEADER.unpack_from(data)
            if len(data) == HEADER.size + length and length <= FROM_RUNTIME.get(kind, -1):
                self._listener.frame_received(kind, data[HEADER.size :])  # the usual case: one frame, whole
                return
        self._buffer += data
        if self._discard:
            self._throw_away()
        if len(self._buffer) >= self._wanted:
            self._cut()

    def send(self, frame: list[bytes]) -> None:
        """Write a frame given in pieces.

        What the runtime does not read yet is held: one frame at most, since it gets one at a time.
        """
        if self._transport is not None:
            self._unsent.extend(frame)
            self._send_some()

    def pause_writing(self) -> None:
        """Called by the event loop: the socket is full."""
        self._writable = False

    def resume_writing(self) -> None:
        """Called by the event loop: the socket takes more."""
        self._writable = True
        self._send_some()

    def _send_some(self) -> None:
        """Write some pieces, and others at the next turn of the loop: in between the agent's other work is done."""
        if self._sends_later:
            return
        for _ in range(_PIECES_A_TURN):
            if not (self._unsent and self._writable and self._transport is not None):
                return
            self._transport.write(self._unsent.popleft())
        if self._unsent:
            self._sends_later = True
            asyncio.get_running_loop().call_soon(self._send_later)

    def _send_later(self) -> None:
        self._sends_later = False
        self._send_some()

    def pause(self) -> None:
        """Stop reading; the runtime blocks once the socket is full."""
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Close at once; nothing is heard any more."""
        transport, self._transport = self._transport, None
        self._buffer.clear()
        self._unsent.clear()
        if transport is not None:
            transport.abort()

    def _cut(self) -> None:
        buffer, position = self._buffer, 0
        while self._transport is not None and len(buffer) - position >= HEADER.size:
            length, kind = HEADER.unpack_from(buffer, position)
            limit = FROM_RUNTIME.get(kind)
            if limit is None or (length > limit and kind != Kind.RESULT):
                self._refuse(kind, length, limit)
                return
            if length > limit:
                self._discard = HEADER.size + length
                del buffer[:position]
                position = 0
                self._throw_away()
                continue
            end = position + HEADER.size + length
            if len(buffer) < end:
                self._wanted = HEADER.size + length
                break
            body = bytes(memoryview(buffer)[position + HEADER.size : end])
            position = end
            self._wanted = HEADER.size
            self._listener.frame_received(kind, body)
        del buffer[:position]

    def _throw_away(self) -> None:
        count = min(self._discard, len(self._buffer))
        del self._buffer[:count]
        self._discard -= count
        self._wanted = HEADER.size
        if not self._discard:
            self._listener.result_too_large()

    def _refuse(self, kind: int, length: int, limit: int | None) -> None:
        self.close()
        if limit is None:
            self._listener.protocol_violated(f"frame of unknown kind {kind}")
        else:
            self._listener.protocol_violated(f"{Kind(kind).name} frame of {length} bytes, more than {limit}")
