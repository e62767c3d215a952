"""What a client does with the scheduler's offer of a session port."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.sdk.service import TOKEN, echo, serving

import lambent
from lambent.message_stream import MessageStream
from lambent.session_offer import OFFER_KEY, Proofs
from lambent.v1 import invocation_pb2
from lambent_common.message_server import MessageServer
from lambent_scheduler.invocation.session_port import SessionPort


async def _other_proof(stream: Any) -> None:
    await stream.write_message(invocation_pb2.SessionResponse(proof=b"a guess"))


async def _same_proof(stream: Any) -> None:
    await stream.write_message(invocation_pb2.SessionResponse(proof=_CLAIMS[-1].claim.proof))


async def _silence(_stream: Any) -> None:
    await asyncio.Event().wait()


async def _hang_up(_stream: Any) -> None:
    """Return, and the connection is closed."""


async def _nonsense(stream: Any) -> None:
    stream._open_transport().write(b"\0\0\0\2\xff\xff")
    await stream.read()


async def _too_much(stream: Any) -> None:
    stream._open_transport().write((1 << 20).to_bytes(4, "big"))
    await stream.read()


_CLAIMS: list[invocation_pb2.SessionRequest] = []


@pytest.mark.parametrize("stranger", [_other_proof, _same_proof, _silence, _hang_up, _nonsense, _too_much, None])
async def test_who_is_not_the_scheduler_gets_no_call(
    stranger: Callable[[Any], Awaitable[None]] | None, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a tunnel or a firewall another may listen there, or nobody: the session goes on by gRPC."""
    monkeypatch.setattr("lambent.session_stream._SESSION_PORT_TIMEOUT_S", 0.5)
    offers = 0

    @contextlib.contextmanager
    def offer(_port: SessionPort, _peer: str) -> Iterator[tuple[tuple[str, bytes], ...]]:
        nonlocal offers
        offers += 1
        message = invocation_pb2.SessionOffer(port=unused_tcp_port, ticket=b"ticket", key=b"key")
        yield ((OFFER_KEY, message.SerializeToString()),)

    async def serve(stream: Any) -> None:
        assert stranger is not None
        _CLAIMS.append(await stream.read())
        await stranger(stream)
        while (more := await stream.read()) is not None:
            _CLAIMS.append(more)

    monkeypatch.setattr(SessionPort, "offer", offer)
    _CLAIMS.clear()
    server: Any = MessageServer(invocation_pb2.SessionRequest.FromString, serve)
    if stranger is not None:
        await server.start(f"127.0.0.1:{unused_tcp_port}")
    async with asyncio.timeout(20), serving() as service:
        service.handlers["echo"] = echo
        async with lambent.AsyncClient(service.address, token=TOKEN) as client:
            for _ in range(2):
                assert (await client.invoke("echo", 1)).json() == 1
                assert client._session is not None
                assert not isinstance(client._session._stream, MessageStream)
                await client._session.close()  # The next call opens another.
    await server.stop()
    assert offers == 2
    assert [claim.claim.ticket for claim in _CLAIMS] == [b"ticket"] * (stranger is not None)
    assert not any(TOKEN.encode() in claim.SerializeToString() for claim in _CLAIMS)


@pytest.mark.parametrize("offered", [b"\xff\xff", invocation_pb2.SessionOffer(port=1 << 20).SerializeToString()])
async def test_an_offer_that_makes_no_sense_is_none(offered: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read, and what is no port."""
    monkeypatch.setattr(SessionPort, "offer", lambda _port, _peer: contextlib.nullcontext(((OFFER_KEY, offered),)))
    async with asyncio.timeout(20), serving() as service:
        service.handlers["echo"] = echo
        async with lambent.AsyncClient(service.address, token=TOKEN) as client:
            assert (await client.invoke("echo", 1)).json() == 1


async def test_scheduler_without_a_session_port_is_used_by_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever speaks the public protocol is a scheduler."""
    monkeypatch.setattr("tests.sdk.service.SESSION_PORT", False)
    async with asyncio.timeout(20), serving() as service:
        service.handlers["echo"] = echo
        async with lambent.AsyncClient(service.address, token=TOKEN) as client:
            assert (await client.invoke("echo", 1)).json() == 1


@pytest.mark.parametrize(("host", "same"), [("127.0.0.1", False), ("192.0.2.7", True)])
def test_loopback_addresses_of_two_machines_are_two(host: str, same: bool) -> None:
    """A claim that was made at one end of a tunnel is of no use at the other, where the addresses may be the same."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    caller, scheduler = f"{host} 50122", f"{host} 9402"
    script = f"""
from lambent.session_offer import Proofs
print(Proofs(b"key", caller={caller!r}, scheduler={scheduler!r}).of_caller.hex())
"""
    command = ["unshare", "--net", sys.executable, "-c", script]
    elsewhere = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    assert (Proofs(b"key", caller=caller, scheduler=scheduler).of_caller.hex() == elsewhere) == same
