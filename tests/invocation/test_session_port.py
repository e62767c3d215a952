"""The session port: who gets in, and for how long."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.invocation.front import METADATA, Front, Node, echo, flowing, front, opening, silent

from lambent.errors import UnavailableError
from lambent.framing import INITIAL_CREDIT_BYTES
from lambent.message_stream import MessageStream, MessageStreamError, connect
from lambent.session_offer import OFFER_KEY, Proofs
from lambent.v1 import frame_pb2, invocation_pb2
from lambent_common.message_server import MessageServer
from lambent_scheduler.invocation import session_port

Stream = MessageStream[invocation_pb2.SessionRequestFrame, invocation_pb2.SessionResponse]
Call = grpc.aio.StreamStreamCall[invocation_pb2.SessionRequest, invocation_pb2.SessionResponse]


@pytest.fixture(autouse=True)
def way() -> None:
    """All of these are about the port."""


async def _offer(door: Front) -> tuple[invocation_pb2.SessionOffer, Call]:
    """Give an offer, and the stream that keeps it good."""
    call = door.stub.Session(metadata=METADATA)
    metadata = dict(await call.initial_metadata())
    offered = metadata[OFFER_KEY]
    assert isinstance(offered, bytes)
    return invocation_pb2.SessionOffer.FromString(offered), call


async def _connect(offer: invocation_pb2.SessionOffer) -> Stream:
    return await connect(f"127.0.0.1:{offer.port}", invocation_pb2.SessionResponse.FromString, timeout_s=5)


async def _claim(
    stream: Stream, ticket: bytes, proof: bytes, frames: Sequence[invocation_pb2.SessionRequestFrame] = ()
) -> bytes | None:
    """Claim an offer; gives the scheduler's proof, or None when the connection is closed instead."""
    claim = invocation_pb2.SessionClaim(ticket=ticket, proof=proof)
    try:
        await stream.write_message(invocation_pb2.SessionRequest(claim=claim, frames=frames))
        answer = await stream.read()
    except MessageStreamError:
        return None
    return None if answer is None else answer.proof


async def test_a_session_takes_the_port_and_lets_the_grpc_stream_go() -> None:
    """One stream a session is enough."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        session = await door.session()
        assert (await session.invoke(opening("f"), b"1"))[0] == b"1"
        while door.invocations.sessions != {"grpc": 0, "port": 1}:  # noqa: ASYNC110 - a gauge tells nobody
            await asyncio.sleep(0)
        await session.close()
        while door.invocations.sessions["port"]:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)


async def test_an_offer_is_good_for_one_connection() -> None:
    """Whoever has seen a claim go by cannot make it again."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        offer, _call = await _offer(door)
        first, second = await _connect(offer), await _connect(offer)
        proofs = Proofs.for_caller(offer.key, first)
        assert await _claim(first, offer.ticket, proofs.of_caller) == proofs.of_scheduler
        assert await _claim(second, offer.ticket, Proofs.for_caller(offer.key, second).of_caller) is None
        first.abort()


async def test_a_claim_is_good_for_its_own_connection_alone() -> None:
    """Who gets it from a caller that was led astray, at the end of a tunnel, can do nothing with it."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        offer, _call = await _offer(door)
        astray, thief = await _connect(offer), await _connect(offer)
        stolen = Proofs.for_caller(offer.key, astray).of_caller
        assert await _claim(thief, offer.ticket, stolen) is None
        astray.abort()


async def test_an_offer_is_void_when_its_grpc_stream_has_ended() -> None:
    """Offers that nobody takes do not pile up."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        offer, call = await _offer(door)
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        assert not door.invocations.session_port._keys
        stream = await _connect(offer)
        assert await _claim(stream, offer.ticket, Proofs.for_caller(offer.key, stream).of_caller) is None


@pytest.mark.parametrize("ticket", [b"", secrets.token_bytes(16)])
async def test_who_has_no_offer_is_not_served(ticket: bytes) -> None:
    """The port is as locked as the gRPC door."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        offer, _call = await _offer(door)
        stream = await _connect(offer)
        assert await _claim(stream, ticket, Proofs.for_caller(b"", stream).of_caller) is None


@pytest.mark.parametrize(("size_bytes", "taken"), [(1_000, True), (8_000, False)])
async def test_a_stranger_cannot_send_much(size_bytes: int, taken: bool) -> None:
    """A claim fits into 4 KiB."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        offer, _call = await _offer(door)
        stream = await _connect(offer)
        padding = invocation_pb2.SessionRequestFrame(data=frame_pb2.Data(payload=bytes(size_bytes)))
        proof = Proofs.for_caller(offer.key, stream).of_caller
        assert (await _claim(stream, offer.ticket, proof, [padding]) is not None) == taken
        stream.abort()


async def test_a_stranger_cannot_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever claims nothing is cut off, and the place is free."""
    monkeypatch.setattr(session_port, "_CLAIM_TIMEOUT_S", 0.1)
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        offer, _call = await _offer(door)
        assert await (await _connect(offer)).read() is None


@pytest.mark.parametrize(
    ("listen", "peer", "offered"),
    [
        ("127.0.0.1:0", "ipv4:127.0.0.1:50122", True),
        ("127.0.0.1:0", "ipv6:%5B::ffff:127.0.0.1%5D:50122", True),
        ("[::1]:0", "ipv6:%5B::1%5D:50122", True),
        ("localhost:0", "ipv4:192.0.2.7:50122", False),
        ("127.0.0.1:0", "ipv4:192.0.2.7:50122", False),
        ("127.0.0.1:0", "ipv6:%5B2001:db8::7%5D:50122", False),
        ("0.0.0.0:0", "ipv4:192.0.2.7:50122", True),
        ("[::]:0", "ipv4:192.0.2.7:50122", True),
    ],
)
async def test_a_port_of_this_machine_alone_is_not_offered_to_others(listen: str, peer: str, offered: bool) -> None:
    """A firewall in between would have each of their sessions wait for an answer that does not come."""
    port = session_port.SessionPort(_serve_nobody)
    await port.start(listen)
    try:
        with port.offer(peer) as metadata:
            assert bool(metadata) == offered
    finally:
        await port.stop(0)
    with port.offer("ipv4:127.0.0.1:50122") as metadata:
        assert not metadata


async def test_a_port_that_is_taken_is_named_with_its_flag() -> None:
    """There are three addresses, and the operator has to know which one to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=f"{listen}.*--session-listen"):
            await session_port.SessionPort(_serve_nobody).start(listen)


async def test_all_addresses_are_those_of_ipv4_too() -> None:
    """As with gRPC: [::] is everything."""
    ended = asyncio.Event()

    async def serve(stream: object) -> None:
        ended.set()

    server: MessageServer[Any, Any] = MessageServer(invocation_pb2.SessionRequest.FromString, serve)
    port = await server.start("[::]:0")
    try:
        async with asyncio.timeout(10):
            parse = invocation_pb2.SessionResponse.FromString
            for host in ("127.0.0.1", "[::1]"):
                ended.clear()
                stream: Stream = await connect(f"{host}:{port}", parse, timeout_s=5)
                assert stream.peer_address == f"{host.strip('[]')} {port}"
                await ended.wait()
    finally:
        await server.stop()


async def test_answers_that_wait_for_their_caller_leave_before_the_port_closes() -> None:
    """The node has given all of it: a scheduler that stops does not keep the rest."""
    size = 3 * INITIAL_CREDIT_BYTES
    node = Node(flowing(size))
    async with asyncio.timeout(20), front(node, "f") as door:
        raw = await door.raw_session()
        await raw.send(1, open=opening("f", streaming=True, complete=True))
        while raw.data_bytes(1) < INITIAL_CREDIT_BYTES:
            await raw.read()
        await raw.send(1, window=frame_pb2.Window(credit_bytes=INITIAL_CREDIT_BYTES))
        await door.relay.ends.get()  # The node has said END; a piece is held for the caller.
        stopping = asyncio.create_task(door.invocations.session_port.stop(20))
        await raw.send(1, window=frame_pb2.Window(credit_bytes=INITIAL_CREDIT_BYTES))
        assert not (await raw.end(1)).HasField("service_error")
        assert raw.data_bytes(1) == size
        raw.stream.abort()
        await stopping


async def test_what_waits_at_a_goodbye_still_arrives() -> None:
    """A CANCEL that were lost would leave the function running for nobody."""
    node = Node(silent)
    async with asyncio.timeout(20), front(node, "f") as door:
        session = await door.session()
        # Whole calls, which the relay lets run for a caller that is gone; so many that the writer waits for more.
        calls = [asyncio.create_task(session.invoke(opening("f"), b"")) for _ in range(8)]
        await node.until(lambda: len(node.openings) == 8)
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        await session.close()
        await asyncio.gather(*calls, return_exceptions=True)
        await node.until(lambda: any(order.WhichOneof("order") == "cancel" for order in node.orders))


async def _serve_nobody(stream: object) -> None:
    raise AssertionError(stream)
