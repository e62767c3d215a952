"""The listening side of messages over TCP: who may come, how many, and what a stranger may send."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Generic

import structlog

from lambent.message_stream import FrameT, MessageStream, MessageStreamError, ReceivedT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger(__name__)

_MAX_STRANGER_BYTES = 4 * 1024
"""Largest message of a peer that has not said who it is: its name and the token."""

_CLOSE_S = 10.0
"""How long a connection that is closed may take to send what was written to it."""

_MAX_CONNECTIONS = 1_024
"""Connections that one server holds; a further one is closed at once."""


class MessageServer(Generic[FrameT, ReceivedT]):
    """Serves each connection with a task of its own, between `start` and `stop`.

    A peer that nobody knows yet may send little: `serve` raises `max_message_bytes` of the stream once it trusts it. Of
    strangers that say nothing the oldest goes when there are too many.

    Args:
        parse: Makes a message of its bytes.
        serve: Serves one connection until it returns; the connection is closed then.
        max_strangers: Peers at once that nobody knows yet; one that is quick about it is known in a millisecond.
        patient: As for `MessageStream`.
    """

    def __init__(
        self,
        parse: Callable[[bytes], ReceivedT],
        serve: Callable[[MessageStream[FrameT, ReceivedT]], Awaitable[None]],
        *,
        max_strangers: int = 32,
        patient: bool = False,
    ) -> None:
        self._parse = parse
        self._serve = serve
        self._max_strangers = max_strangers
        self._patient = patient
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], MessageStream[FrameT, ReceivedT]] = {}

    async def start(self, listen: str) -> int:
        """Listen on host:port; port 0 picks a free one.

        Returns:
            The port.

        Raises:
            OSError: The address cannot be listened on.
        """
        host, _, port = listen.rpartition(":")
        loop = asyncio.get_running_loop()
        if host.strip("[]") == "::" and socket.has_dualstack_ipv6():
            # All addresses, IPv4's too, as gRPC understands it.
            listening = socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
            self._server = await loop.create_server(self._stream, sock=listening)
        else:
            self._server = await loop.create_server(self._stream, host.strip("[]") or None, int(port))
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace_s: float = 0.0) -> None:
        """Accept nothing more, give connections `grace_s` seconds to end, end the rest; what was written leaves."""
        if self._server is not None:
            self._server.close()
        if connections := tuple(self._connections):
            await asyncio.wait(connections, timeout=grace_s)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def _stream(self) -> MessageStream[FrameT, ReceivedT]:
        return MessageStream(self._parse, self._connected, patient=self._patient)

    def _connected(self, stream: MessageStream[FrameT, ReceivedT]) -> None:
        if len(self._connections) >= _MAX_CONNECTIONS:
            log.warning("too_many_connections", connections=len(self._connections))
            stream.abort()
            return
        strangers = [known for known in self._connections.values() if known.max_message_bytes == _MAX_STRANGER_BYTES]
        if len(strangers) >= self._max_strangers:
            strangers[0].abort()
        stream.max_message_bytes = _MAX_STRANGER_BYTES
        task = asyncio.create_task(self._run(stream))
        self._connections[task] = stream
        task.add_done_callback(self._connections.pop)

    async def _run(self, stream: MessageStream[FrameT, ReceivedT]) -> None:
        try:
            await self._serve(stream)
        except MessageStreamError as error:
            log.warning("connection_lost", error=str(error))
        except Exception:  # a defect: one connection ends, and the log says why
            log.exception("connection_failed")
        finally:
            stream.close()
            # What was written leaves, unless the peer does not take it.
            asyncio.get_running_loop().call_later(_CLOSE_S, stream.abort)
