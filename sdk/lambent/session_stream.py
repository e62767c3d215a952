"""The stream under a session: the scheduler's session port where that can be reached, and gRPC otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from typing import TYPE_CHECKING, Protocol

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from lambent.connection import CONNECT_TIMEOUT_S, transport_errors
from lambent.errors import InternalError, ServiceError, UnavailableError
from lambent.framing import MAX_MESSAGE_BYTES
from lambent.message_stream import MessageStream, MessageStreamError, connect
from lambent.session_offer import OFFER_KEY, Proofs
from lambent.v1 import invocation_pb2, invocation_pb2_grpc

if TYPE_CHECKING:
    from lambent.connection import Connection

_SESSION_PORT_TIMEOUT_S = 1.0
"""How long the session port may take to answer: some round trips, to a machine that has just answered."""

_MAX_PROOF_BYTES = 1024
"""Largest message until it is known who sends them."""

_GrpcCall = grpc.aio.StreamStreamCall[invocation_pb2.SessionRequest, invocation_pb2.SessionResponse]
_Messages = MessageStream[invocation_pb2.SessionRequestFrame, invocation_pb2.SessionResponse]


class SessionStream(Protocol):
    """Both directions of a session that the scheduler has accepted."""

    async def read(self) -> invocation_pb2.SessionResponse | None:
        """Give the next message; None once the scheduler has ended the session."""

    async def write(self, frames: list[invocation_pb2.SessionRequestFrame], /) -> None:
        """Send a batch of frames as one message; waits while the scheduler takes no more."""

    async def finish(self) -> None:
        """Write nothing more; what was written still leaves."""

    def abort(self) -> None:
        """Let go of the stream at once."""


async def open_stream(connection: Connection) -> SessionStream:
    """Open a stream to the scheduler. What fails here has dispatched nothing.

    Raises:
        ServiceError: The scheduler cannot be reached, refuses, or does not answer.
    """
    stub = invocation_pb2_grpc.InvocationServiceStub(connection.channel)
    call: _GrpcCall = stub.Session(metadata=connection.metadata)
    try:
        offer = await _accepted(call)
        if offer is not None and connection.tries_session_ports:
            if (stream := await _take(offer, connection.endpoint.grpc)) is not None:
                call.cancel()
                return stream
            connection.tries_session_ports = False
    except ServiceError as error:
        error.dispatched = False
        raise
    except BaseException:
        call.cancel()
        raise
    return _GrpcStream(call)


async def _accepted(call: _GrpcCall) -> invocation_pb2.SessionOffer | None:
    """Wait until the scheduler reads the stream; give its offer of another."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            with transport_errors():
                metadata = await call.initial_metadata()
                if call.done():
                    await call.read()  # Raises what it ended with.
                    raise UnavailableError("the scheduler ended the session")
    except TimeoutError as error:
        call.cancel()
        raise UnavailableError(f"the scheduler accepted no session within {CONNECT_TIMEOUT_S:.0f} s") from error
    offered = dict(metadata).get(OFFER_KEY)
    with contextlib.suppress(DecodeError):  # Then it is none.
        return invocation_pb2.SessionOffer.FromString(offered) if isinstance(offered, bytes) else None
    return None


async def _take(offer: invocation_pb2.SessionOffer, grpc_address: str) -> _Messages | None:
    """Open the session on the scheduler's session port; None when it is not the scheduler that answers there."""
    host = grpc_address.rpartition(":")[0]
    stream: _Messages | None = None
    try:
        async with asyncio.timeout(_SESSION_PORT_TIMEOUT_S):
            parse = invocation_pb2.SessionResponse.FromString
            address = f"{host}:{offer.port}"
            stream = await connect(address, parse, timeout_s=_SESSION_PORT_TIMEOUT_S, patient=True)
            stream.max_message_bytes = _MAX_PROOF_BYTES
            proofs = Proofs.for_caller(offer.key, stream)
            claim = invocation_pb2.SessionClaim(ticket=offer.ticket, proof=proofs.of_caller)
            await stream.write_message(invocation_pb2.SessionRequest(claim=claim))
            answer = await stream.read()
        if answer is not None and hmac.compare_digest(answer.proof, proofs.of_scheduler):
            stream.max_message_bytes = MAX_MESSAGE_BYTES
            taken, stream = stream, None
            return taken
    except (MessageStreamError, TimeoutError):
        return None
    finally:
        if stream is not None:
            stream.abort()
    return None


class _GrpcStream:
    """A gRPC call as a SessionStream."""

    def __init__(self, call: _GrpcCall) -> None:
        self._call = call

    async def read(self) -> invocation_pb2.SessionResponse | None:
        response = await self._call.read()
        if response is grpc.aio.EOF:
            return None
        if not isinstance(response, invocation_pb2.SessionResponse):
            raise InternalError("the scheduler sent what is no message of a session", dispatched=True)
        return response

    async def write(self, frames: list[invocation_pb2.SessionRequestFrame], /) -> None:
        await self._call.write(invocation_pb2.SessionRequest(frames=frames))

    async def finish(self) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):  # It has ended: nothing is left to finish.
            await self._call.done_writing()

    def abort(self) -> None:
        self._call.cancel()
