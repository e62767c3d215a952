"""The session port: who gets in, and for how long."""

from __future__ import annotations

import asyncio
import secrets

import pytest
from tests.invocation.front import METADATA, Front, Node, echo, front, opening

from lambent.framing import INITIAL_CREDIT_BYTES
from lambent.message_stream import MessageStream, MessageStreamError, connect
from lambent.session_stream import OFFER_KEY
from lambent.v1 import invocation_pb2
from lambent_common import message_server
from lambent_scheduler.invocation import session_port

Stream = MessageStream[invocation_pb2.SessionRequest, invocation_pb2.SessionResponse]


@pytest.fixture(autouse=True)
def way() -> None:
    """All of these are about the port."""


async def _offer(door: Front) -> tuple[invocation_pb2.SessionOffer, object]:
    """Give an offer, and the stream that keeps it good."""
    call = door.stub.Session(metadata=METADATA)
    metadata = dict(await call.initial_metadata())
    offered = metadata[OFFER_KEY]
    assert isinstance(offered, bytes)
    return invocation_pb2.SessionOffer.FromString(offered), call


async def _show(offer: invocation_pb2.SessionOffer, ticket: bytes) -> tuple[Stream, bytes | None]:
    """Connect and show a ticket; gives the proof, or None when the connection is closed instead."""
    parse = invocation_pb2.SessionResponse.FromString
    stream: Stream = await connect(f"127.0.0.1:{offer.port}", parse, timeout_s=5)
    await stream.write(invocation_pb2.SessionRequest(ticket=ticket))
    answer = await stream.read()
    return stream, None if answer is None else answer.proof


async def test_a_session_takes_the_port_and_lets_the_grpc_stream_go() -> None:
    """One stream a session is enough."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        session = await door.session()
        assert isinstance(session._stream, MessageStream)
        assert (await session.invoke(opening("f"), b"1"))[0] == b"1"
        assert not door.invocations.session_port._proofs
        await session.close()


async def test_a_ticket_is_good_for_one_connection() -> None:
    """Whoever overhears it comes too late."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        offer, _call = await _offer(door)
        first, proof = await _show(offer, offer.ticket)
        assert proof == offer.proof
        assert await _refused(offer, offer.ticket)
        first.abort()


async def test_a_ticket_is_void_when_its_grpc_stream_has_ended() -> None:
    """Offers that nobody takes do not pile up."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        offer, call = await _offer(door)
        await call.done_writing()  # type: ignore[attr-defined]
        await call.wait_for_connection()  # type: ignore[attr-defined]
        assert await call.code()  # type: ignore[attr-defined]
        assert not door.invocations.session_port._proofs
        assert await _refused(offer, offer.ticket)


@pytest.mark.parametrize("ticket", [b"", secrets.token_bytes(16)])
async def test_who_has_no_ticket_is_not_served(ticket: bytes) -> None:
    """The port is as locked as the gRPC door."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        offer, _call = await _offer(door)
        assert await _refused(offer, ticket)


async def test_a_stranger_cannot_send_much() -> None:
    """A ticket fits into 4 KiB."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        offer, _call = await _offer(door)
        assert await _refused(offer, bytes(message_server._MAX_STRANGER_BYTES + 1))


async def test_a_stranger_cannot_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever shows nothing is cut off, and the place is free."""
    monkeypatch.setattr(session_port, "_TICKET_TIMEOUT_S", 0.1)
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        offer, _call = await _offer(door)
        stream: Stream = await connect(
            f"127.0.0.1:{offer.port}", invocation_pb2.SessionResponse.FromString, timeout_s=5
        )
        assert await stream.read() is None


async def test_what_waits_at_a_goodbye_still_arrives() -> None:
    """A CANCEL that were lost would leave the function running for nobody."""
    node = Node(lambda *_: None)
    async with asyncio.timeout(20), front(node, "f") as door:
        session = await door.session()
        call = asyncio.create_task(session.invoke(opening("f"), bytes(4 * INITIAL_CREDIT_BYTES)))
        await node.until(lambda: node.openings)
        call.cancel()
        await asyncio.wait((call,))
        await session.close()
        await node.until(lambda: any(order.WhichOneof("order") == "cancel" for order in node.orders))


async def _refused(offer: invocation_pb2.SessionOffer, ticket: bytes) -> bool:
    try:
        _, proof = await _show(offer, ticket)
    except MessageStreamError:
        return True
    return proof is None
