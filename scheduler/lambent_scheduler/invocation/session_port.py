"""Where sessions run as bare messages over TCP, for callers whom the gRPC door has let in.

docs/adr/0006 says why, and why a caller shows a proof here and not its token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import secrets
import urllib.parse
from typing import TYPE_CHECKING

import structlog

from lambent.errors import UnavailableError
from lambent.framing import MAX_MESSAGE_BYTES
from lambent.message_stream import MessageStream
from lambent.session_offer import OFFER_KEY, Proofs
from lambent.v1 import invocation_pb2
from lambent_common.message_server import MessageServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

Stream = MessageStream[invocation_pb2.SessionResponseFrame, invocation_pb2.SessionRequest]

log = structlog.get_logger()

_CLAIM_TIMEOUT_S = 5.0
"""How long a connection may take to claim its offer; a caller has what it needs at hand."""

_MAX_STRANGERS = 256
"""After a restart all callers come at once."""

_TICKET_BYTES, _KEY_BYTES = 16, 32


class SessionPort:
    """Offers itself to callers between `start` and `stop`.

    Args:
        serve: Serves one session until it ends.
    """

    def __init__(self, serve: Callable[[Stream], Awaitable[object]]) -> None:
        self._serve_session = serve
        self._server = MessageServer(
            invocation_pb2.SessionRequest.FromString, self._serve, max_strangers=_MAX_STRANGERS, patient=True
        )
        self._port = 0
        self._loopback = False
        self._keys: dict[bytes, bytes] = {}  # by ticket

    async def start(self, listen: str) -> int:
        """Listen on host:port; port 0 picks a free one.

        Returns:
            The port.

        Raises:
            UnavailableError: The address cannot be listened on.
        """
        try:
            self._port = await self._server.start(listen)
        except OSError as error:
            raise UnavailableError(f"cannot listen on {listen} for sessions (--session-listen): {error}") from error
        self._loopback = _is_loopback(listen)
        return self._port

    async def stop(self, grace_s: float) -> None:
        """Offer nothing more, let sessions end for `grace_s` seconds, then end them."""
        self._port = 0
        await self._server.stop(grace_s)

    @contextlib.contextmanager
    def offer(self, peer: str) -> Iterator[tuple[tuple[str, bytes], ...]]:
        """Give the metadata with an offer that is good for one connection inside the block.

        They are empty for a caller on another machine when the port is for this one alone: it would try in vain.

        Args:
            peer: The caller as gRPC names it, such as `ipv4:127.0.0.1:50122`.
        """
        if not self._port or (self._loopback and not _is_loopback(urllib.parse.unquote(peer).partition(":")[2])):
            yield ()
            return
        ticket, key = secrets.token_bytes(_TICKET_BYTES), secrets.token_bytes(_KEY_BYTES)
        self._keys[ticket] = key
        offer = invocation_pb2.SessionOffer(port=self._port, ticket=ticket, key=key)
        try:
            yield ((OFFER_KEY, offer.SerializeToString()),)
        finally:
            self._keys.pop(ticket, None)

    async def _serve(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(_CLAIM_TIMEOUT_S):
                first = await stream.read()
        except TimeoutError:
            log.warning("session_not_claimed", peer=stream.peer_address, within_s=_CLAIM_TIMEOUT_S)
            return
        if first is None:
            return  # Somebody looked whether there is a listener.
        key = self._keys.pop(first.claim.ticket, None)
        proofs = None if key is None else Proofs.for_scheduler(key, stream)
        if proofs is None or not hmac.compare_digest(first.claim.proof, proofs.of_caller):
            log.warning("session_refused", peer=stream.peer_address, reason="no such offer" if key is None else "proof")
            return
        stream.max_message_bytes = MAX_MESSAGE_BYTES
        await stream.write_message(invocation_pb2.SessionResponse(proof=proofs.of_scheduler))
        await self._serve_session(stream)


def _is_loopback(address: str) -> bool:
    """Tell whether host:port, an IPv6 host in brackets, is of this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
