"""Protobuf messages over one TCP connection, where every microsecond counts: between daemons, and under a session.

A message is its length in four bytes, big-endian, and its bytes. docs/adr/0005 says why this is not gRPC. What is
sent is a batch: a message whose field 1 repeats frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
import sys
from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast

from google.protobuf.message import DecodeError

from lambent.framing import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LENGTH_BYTES = 4

_COPIED_BYTES = 1 << 16
"""Bodies up to this size are copied behind their length: cheaper than a second write."""

_WAITING_MESSAGES = 16
"""Messages that may wait to be read; then TCP tells the peer to stop sending."""

_KEEPALIVE = {"TCP_KEEPIDLE": 4, "TCP_KEEPALIVE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""A peer whose machine died sends nothing: three probes after 4 s of silence, 2 s apart, find out within 10 s. Systems
have one of the first two names."""

_UNACKNOWLEDGED_MS = 10_000
"""How long what was sent may stay unacknowledged, be it only because the peer does not read: then that daemon hangs."""

_SILENT_S = 20.0
"""The same for a patient stream, whose peer may do as it likes for as long as its machine acknowledges."""

_LOOK_S = 5.0
"""How often a patient stream looks."""

_TCP_INFO_BYTES = 60
_UNANSWERED_PROBES, _UNACKNOWLEDGED, _SINCE_ACKNOWLEDGEMENT_MS = 3, 24, 56
"""Where linux/tcp.h has these in its tcp_info: a byte, segments, and milliseconds."""

_FRAME_TAG = b"\x0a"
"""Field 1 with a length, in protobuf's encoding: what every batch repeats."""


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name


FrameT = TypeVar("FrameT", bound=_Message)
ReceivedT = TypeVar("ReceivedT")


class MessageStreamError(Exception):
    """The connection is lost, or what came over it is no message."""


class MessageStream(asyncio.Protocol, Generic[FrameT, ReceivedT]):
    """Both directions of one connection: the asyncio protocol that `create_connection` and `create_server` ask for.

    Frames are sent, in batches; whole messages are received.

    Args:
        parse: Makes a message of its bytes.
        connected: Called once the connection stands.
        patient: True for a peer whose own code may keep it from reading for a while: a user's program, not a daemon.

    Attributes:
        max_message_bytes: What the peer may send at most in one message.
    """

    def __init__(
        self,
        parse: Callable[[bytes], ReceivedT],
        connected: Callable[[MessageStream[FrameT, ReceivedT]], None] | None = None,
        *,
        patient: bool = False,
    ) -> None:
        self.max_message_bytes = MAX_MESSAGE_BYTES
        self._patient = patient
        self._look: asyncio.TimerHandle | None = None
        self._parse = parse
        self._connected = connected
        self._transport: asyncio.Transport | None = None
        self._partial = bytearray()
        self._messages: deque[ReceivedT] = deque()
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._reading = True
        self._ended = False
        self._error: MessageStreamError | None = None

    async def read(self) -> ReceivedT | None:
        """Give the next message; None once the peer has closed the connection.

        Raises:
            MessageStreamError: The connection is lost, or the peer does not speak this protocol.
        """
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._readable = asyncio.get_running_loop().create_future()
            await self._readable
        message = self._messages.popleft()
        if not self._reading and not self._ended and len(self._messages) < _WAITING_MESSAGES:
            self._reading = True
            self._open_transport().resume_reading()
        return message

    async def write(self, frames: Sequence[FrameT], /) -> None:
        """Send a batch of frames as one message; returns at once while the connection takes what it is given.

        Raises:
            MessageStreamError: The connection is lost.
        """
        await self._write(batch_bytes(frames))

    async def write_message(self, message: _Message) -> None:
        """Send a message that is no batch. Raises as `write`."""
        await self._write(message.SerializeToString())

    async def _write(self, body: bytes) -> None:
        transport = self._open_transport()
        length = len(body).to_bytes(_LENGTH_BYTES, "big")
        # Not `writelines`: asyncio's own sends an empty last piece again and again (seen up to CPython 3.13.5), and
        # before 3.12.9 and 3.13.2 never tells to pause, whatever piles up. uvloop sends both writes as one.
        if len(body) <= _COPIED_BYTES:
            transport.write(length + body)
        else:
            transport.write(length)
            transport.write(body)
        while self._writable is not None:
            await self._writable
        if self._ended:
            raise self._error or MessageStreamError("the connection is closed")

    async def finish(self) -> None:
        """Write nothing more; what was written still leaves, and the peer learns that it was all."""
        if not self._ended:
            with contextlib.suppress(OSError):  # The connection is lost, and says so in a moment.
                self._open_transport().write_eof()

    @property
    def own_address(self) -> str:
        """This end of the connection, such as "127.0.0.1 50122"."""
        return _address(self._open_transport().get_extra_info("sockname"))

    @property
    def peer_address(self) -> str:
        """The other end as it is seen from here."""
        return _address(self._open_transport().get_extra_info("peername"))

    def close(self) -> None:
        """Send what was written, then close the connection."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _open_transport(self) -> asyncio.Transport:
        if self._transport is None or self._ended:
            raise self._error or MessageStreamError("the connection is closed")
        return self._transport

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the connection up."""
        self._transport = cast("asyncio.Transport", transport)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        if sys.platform == "linux":
            if self._patient:
                self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._look_at_silence, connection)
            else:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        if self._connected is not None:
            self._connected(self)

    def data_received(self, data: bytes) -> None:
        """Cut what came into messages."""
        if self._error is not None:
            return
        self._partial += data
        start = 0
        with memoryview(self._partial) as view:
            while len(view) - start >= _LENGTH_BYTES:
                body = start + _LENGTH_BYTES
                length = int.from_bytes(view[start:body], "big")
                if length > self.max_message_bytes:
                    self._fail(f"the peer sent a message of {length} bytes; the largest is {self.max_message_bytes}")
                    break
                if len(view) - body < length:
                    break
                start = body + length
                try:
                    self._messages.append(self._parse(bytes(view[body:start])))
                except DecodeError as error:
                    self._fail(f"the peer sent {length} bytes that are no message: {error}")
                    break
        del self._partial[:start]
        if self._reading and len(self._messages) >= _WAITING_MESSAGES and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()
        self._wake_reader()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits; what had arrived can still be read."""
        self._ended = True
        if self._look is not None:
            self._look.cancel()
        if error is not None and self._error is None:
            self._error = MessageStreamError(f"the connection is lost: {error}")
        self._wake_reader()
        self.resume_writing()

    def pause_writing(self) -> None:
        """The connection's buffer is full."""
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """The connection takes more."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def _look_at_silence(self, connection: socket.socket) -> None:
        """Tell a machine that is dead from a program that does not read, whose kernel goes on acknowledging."""
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        (unacknowledged,) = struct.unpack_from("=I", info, _UNACKNOWLEDGED)
        (silent_ms,) = struct.unpack_from("=I", info, _SINCE_ACKNOWLEDGEMENT_MS)
        # While the peer's window is closed nothing is under way but probes of it, which a machine that lives answers.
        if (unacknowledged or info[_UNANSWERED_PROBES] > 1) and silent_ms > _SILENT_S * 1000:
            self._fail(f"the peer's machine has acknowledged nothing for {silent_ms / 1000:.0f} s")
        else:
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._look_at_silence, connection)

    def _fail(self, why: str) -> None:
        self._error = MessageStreamError(why)
        self.abort()

    def _wake_reader(self) -> None:
        readable, self._readable = self._readable, None
        if readable is not None and not readable.done():
            readable.set_result(None)


def batch_bytes(frames: Sequence[FrameT]) -> bytes:
    """Serialize a message whose field 1 repeats `frames`.

    Protobuf itself would serialize each frame, parse that into a copy inside the message, and serialize the copy.
    """
    parts: list[bytes] = []
    for frame in frames:
        data = frame.SerializeToString()
        parts += (_FRAME_TAG, _varint(len(data)), data)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    """Encode a length as protobuf does: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _address(name: tuple[str, int] | None) -> str:
    if name is None:  # The peer was gone before the connection was set up.
        raise MessageStreamError("the connection is lost")
    host = ipaddress.ip_address(name[0].partition("%")[0])
    return f"{getattr(host, 'ipv4_mapped', None) or host} {name[1]}"


async def connect(
    address: str, parse: Callable[[bytes], ReceivedT], *, timeout_s: float, patient: bool = False
) -> MessageStream[FrameT, ReceivedT]:
    """Connect to a `MessageServer` at host:port.

    Raises:
        MessageStreamError: Nothing answers there within `timeout_s` seconds.
    """
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            _, stream = await loop.create_connection(
                lambda: MessageStream[FrameT, ReceivedT](parse, patient=patient), host.strip("[]"), int(port)
            )
    except TimeoutError as error:
        raise MessageStreamError(f"{address} does not answer within {timeout_s:g} s") from error
    except (OSError, ValueError, OverflowError) as error:  # the latter two: it is no host, or no port
        raise MessageStreamError(f"cannot connect to {address}: {error}") from error
    return stream
