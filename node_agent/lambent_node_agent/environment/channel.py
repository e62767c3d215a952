"""The agent's end of a runtime's channel, as an asyncio protocol.

Function code holds the same descriptor as the runtime, so whatever arrives may be hostile. Each frame is bounded by its
kind before its body is kept, and the first thing that is no frame ends the conversation. Two kinds of frames are read
and thrown away as they come, without keeping them: a RESULT over the limit, an honest mistake after which the runtime
can go on, and what names another invocation than the one that was sent last. What comes faster than an environment is
allowed waits in the socket for the environment's turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, cast

from lambent_node_agent.environment.turns import Allowance
from lambent_runtime.channel import FROM_RUNTIME, HEADER, MAX_CHUNK_BYTES, NO_KEY, Kind

if TYPE_CHECKING:
    from lambent_node_agent.environment.turns import Turns

_PIECES_A_TURN = 4
"""Of 32 KiB as a rule, each of which takes the kernel some microseconds."""

FRAMES_A_WINDOW: Final = 512
"""Frames and reads of one environment in 50 ms: twice what the fastest handler answers calls with. They take the agent
some 5 ms when each comes alone."""

FRAMES_A_TURN: Final = 256
"""Of those that stand one after the other in what was read, each of which takes half a microsecond."""

_DISCARDED_A_FRAME_BYTES: Final = 512
"""Of what is thrown away that count as a frame: function code may write 4 GiB of it."""


class ChannelListener(Protocol):
    """Hears what a runtime says."""

    def frame_received(self, kind: int, body: bytes) -> None:
        """A frame of a kind that runtimes send, within the kind's bound; CHUNKs that came together are one."""

    def result_too_large(self) -> None:
        """A RESULT over the limit has been read to its end and thrown away."""

    def stray_frame(self, kind: int) -> None:
        """A frame begins that does not belong to the invocation that was sent last; it is thrown away."""

    def protocol_violated(self, what: str) -> None:
        """What arrived is no frame; nothing more is read."""

    def channel_ended(self) -> None:
        """The other end is closed."""


class RuntimeChannel(asyncio.Protocol):
    """Cuts what arrives into frames; holds at most one incomplete frame and one read.

    Args:
        listener: Hears them.
        turns: The line for environments that bring more than their allowance.
    """

    def __init__(self, listener: ChannelListener, turns: Turns) -> None:
        self._listener = listener
        self._turns = turns
        self._allowance = Allowance(FRAMES_A_WINDOW)
        self._transport: asyncio.Transport | None = None
        self._key = NO_KEY
        self._buffer = bytearray()
        self._wanted = HEADER.size
        self._discard = 0
        self._discard_is_result = False
        self._paused = False  # by the listener
        self._in_line = False
        self._reading = True
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
        left = self._allowance.left()
        if left and self._reading and not self._buffer and not self._discard and len(data) >= HEADER.size:
            length, kind, key = HEADER.unpack_from(data)
            if len(data) == HEADER.size + length and key == self._key and length <= FROM_RUNTIME.get(kind, -1):
                self._allowance.spend()
                self._listener.frame_received(kind, data[HEADER.size :])  # the usual case: one frame, whole
                return
        self._buffer += data
        self._cut(left)

    def send(self, frame: list[bytes], key: bytes) -> None:
        """Write an INVOKE frame given in pieces; from now on frames with its key are heard, and no others.

        What the runtime does not read yet is held: one frame at most, since it gets one at a time.
        """
        self._key = key
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
        """Hear no more frames for now; the runtime blocks once the socket is full."""
        self._paused = True
        self._read_or_not()

    def resume(self) -> None:
        """Hear frames again, from the next turn of the event loop on."""
        if self._paused:
            self._paused = False
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._in_line:
            self._cut(self._allowance.left())

    def _take_turn(self) -> None:
        self._in_line = False
        self._cut(FRAMES_A_TURN)

    def _read_or_not(self) -> None:
        """Read exactly while what is read can be heard."""
        wanted = not (self._paused or self._in_line)
        if self._transport is not None and wanted is not self._reading:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def close(self) -> None:
        """Close at once; nothing is heard any more."""
        transport, self._transport = self._transport, None
        self._buffer.clear()
        self._unsent.clear()
        if transport is not None:
            transport.abort()

    def _cut(self, most: int) -> None:
        """Pass on what was read, at most so many frames; for the rest the environment waits for its turn."""
        position, count = 0, 0
        while self._transport is not None and not self._paused and self._available(position) and count < most:
            if self._discard:
                discarded = self._throw_away(len(self._buffer) - position)
                position += discarded
                count += max(1, discarded // _DISCARDED_A_FRAME_BYTES)
                continue
            length, kind, key = HEADER.unpack_from(self._buffer, position)
            limit = FROM_RUNTIME.get(kind, -1)
            end = position + HEADER.size + length
            count += 1
            if length > limit and kind != Kind.RESULT:
                self._refuse(kind, length, limit)
            elif key != self._key or length > limit:
                self._begin_to_discard(kind, HEADER.size + length, is_result=key == self._key)
            elif len(self._buffer) < end:
                self._wanted = HEADER.size + length
            elif kind == Kind.CHUNK and length:
                body, position, chunks = self._join_chunks(position, most - count + 1)
                count += chunks - 1
                self._pass_on(kind, body)
            else:
                body = bytes(memoryview(self._buffer)[position + HEADER.size : end])
                position = end
                self._pass_on(kind, body)
        del self._buffer[:position]
        self._allowance.spend(max(1, count))
        unheard = most == 0 or self._available(0)
        if unheard and not self._paused and not self._in_line and self._transport is not None:
            self._in_line = True
            self._turns.wait(self._take_turn)
        self._read_or_not()

    def _available(self, position: int) -> bool:
        """Tell whether something can be done with what was read from there on."""
        there = len(self._buffer) - position
        return there >= self._wanted or (self._discard > 0 and there > 0)

    def _pass_on(self, kind: int, body: bytes) -> None:
        self._wanted = HEADER.size
        self._listener.frame_received(kind, body)

    def _join_chunks(self, position: int, most: int) -> tuple[bytes, int, int]:
        """Take CHUNK frames that stand one after the other, up to the bound of one.

        Returns:
            Their bodies as one, where they end, and how many there were.
        """
        buffer, size = self._buffer, 0
        bodies: list[bytearray] = []
        while len(bodies) < most and len(buffer) - position >= HEADER.size:
            length, kind, key = HEADER.unpack_from(buffer, position)
            start, end = position + HEADER.size, position + HEADER.size + length
            size += length
            if kind != Kind.CHUNK or key != self._key or not length or size > MAX_CHUNK_BYTES or end > len(buffer):
                break
            bodies.append(buffer[start:end])
            position = end
        return b"".join(bodies), position, len(bodies)

    def _begin_to_discard(self, kind: int, size: int, *, is_result: bool) -> None:
        self._discard = size
        self._discard_is_result = is_result
        if not is_result:
            self._listener.stray_frame(kind)

    def _throw_away(self, there: int) -> int:
        count = min(self._discard, there)
        self._discard -= count
        self._wanted = HEADER.size
        if not self._discard and self._discard_is_result:
            self._listener.result_too_large()
        return count

    def _refuse(self, kind: int, length: int, limit: int) -> None:
        self.close()
        if limit < 0:
            self._listener.protocol_violated(f"frame of unknown kind {kind}")
        else:
            self._listener.protocol_violated(f"{Kind(kind).name} frame of {length} bytes, more than {limit}")
