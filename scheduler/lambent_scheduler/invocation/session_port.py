"""Where sessions run as bare messages over TCP, for callers whom the gRPC door has let in.

docs/adr/0006 says why, and why a caller shows a ticket here and not its token.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING

import structlog

from lambent.framing import MAX_MESSAGE_BYTES
from lambent.message_stream import MessageStream
from lambent.session_stream import OFFER_KEY
from lambent.v1 import invocation_pb2
from lambent_common.message_server import MessageServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

Stream = MessageStream[invocation_pb2.SessionResponse, invocation_pb2.SessionRequest]

log = structlog.get_logger()

_TICKET_TIMEOUT_S = 5.0
"""How long a connection may take to show its ticket; a caller has it at hand."""

_SECRET_BYTES = 16


class SessionPort:
    """Offers itself to callers between `start` and `stop`; before that its offers are empty.

    Args:
        serve: Serves one session until it ends.
    """

    def __init__(self, serve: Callable[[Stream], Awaitable[object]]) -> None:
        self._serve_session = serve
        self._server = MessageServer(invocation_pb2.SessionRequest.FromString, self._serve)
        self._port = 0
        self._proofs: dict[bytes, bytes] = {}  # by ticket

    async def start(self, listen: str) -> int:
        """Listen on host:port; port 0 picks a free one.

        Returns:
            The port.

        Raises:
            OSError: The address cannot be listened on.
        """
        self._port = await self._server.start(listen)
        return self._port

    async def stop(self) -> None:
        """End every session here; the calls in flight go on without their callers."""
        await self._server.stop()

    @contextlib.contextmanager
    def offer(self) -> Iterator[tuple[tuple[str, bytes], ...]]:
        """Give the metadata with an offer that is good for one connection inside the block."""
        if not self._port:
            yield ()
            return
        ticket, proof = secrets.token_bytes(_SECRET_BYTES), secrets.token_bytes(_SECRET_BYTES)
        self._proofs[ticket] = proof
        offer = invocation_pb2.SessionOffer(port=self._port, ticket=ticket, proof=proof)
        try:
            yield ((OFFER_KEY, offer.SerializeToString()),)
        finally:
            self._proofs.pop(ticket, None)

    async def _serve(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(_TICKET_TIMEOUT_S):
                first = await stream.read()
        except TimeoutError:
            log.warning("no_ticket", within_s=_TICKET_TIMEOUT_S)
            return
        proof = None if first is None else self._proofs.pop(first.ticket, None)
        if proof is None:
            log.warning("unknown_ticket")
            return
        stream.max_message_bytes = MAX_MESSAGE_BYTES
        await stream.write(invocation_pb2.SessionResponse(proof=proof))
        await self._serve_session(stream)
