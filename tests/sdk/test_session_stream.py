"""What a client does with the scheduler's offer of a session port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.sdk.service import TOKEN, echo, serving

import lambent
from lambent.message_stream import MessageStream
from lambent.session_stream import OFFER_KEY
from lambent.v1 import invocation_pb2
from lambent_common.message_server import MessageServer
from lambent_scheduler.invocation.session_port import SessionPort


async def _other_proof(stream: Any) -> None:
    await stream.read()
    await stream.write(invocation_pb2.SessionResponse(proof=b"a guess"))
    assert await stream.read() is None, "a call was sent to a stranger"


async def _silence(stream: Any) -> None:
    await asyncio.Event().wait()


async def _hang_up(stream: Any) -> None:
    await stream.read()


async def _nonsense(stream: Any) -> None:
    stream._open_transport().write(b"\xff" * 100)
    assert await stream.read() is not None


@pytest.mark.parametrize("stranger", [_other_proof, _silence, _hang_up, _nonsense, None])
async def test_who_is_not_the_scheduler_gets_no_call(
    stranger: Callable[[Any], Awaitable[None]] | None, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a tunnel or a firewall another may listen there, or nobody: the session goes on by gRPC."""
    monkeypatch.setattr("lambent.session_stream._SESSION_PORT_TIMEOUT_S", 0.5)

    @contextlib.contextmanager
    def offer(_port: SessionPort) -> Iterator[tuple[tuple[str, bytes], ...]]:
        message = invocation_pb2.SessionOffer(port=unused_tcp_port, ticket=b"ticket", proof=b"proof")
        yield ((OFFER_KEY, message.SerializeToString()),)

    monkeypatch.setattr(SessionPort, "offer", offer)
    server: Any = None
    if stranger is not None:
        server = MessageServer(invocation_pb2.SessionRequest.FromString, stranger)
        await server.start(f"127.0.0.1:{unused_tcp_port}")
    async with asyncio.timeout(20), serving() as service:
        service.handlers["echo"] = echo
        async with lambent.AsyncClient(service.address, token=TOKEN) as client:
            assert (await client.invoke("echo", 1)).json() == 1
            assert client._session is not None
            assert not isinstance(client._session._stream, MessageStream)
    if server is not None:
        await server.stop()


async def test_scheduler_without_a_session_port_is_used_by_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever speaks the public protocol is a scheduler."""
    monkeypatch.setattr("tests.sdk.service.SESSION_PORT", False)
    async with asyncio.timeout(20), serving() as service:
        service.handlers["echo"] = echo
        async with lambent.AsyncClient(service.address, token=TOKEN) as client:
            assert (await client.invoke("echo", 1)).json() == 1
