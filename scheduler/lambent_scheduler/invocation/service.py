"""InvocationService: the gRPC door of the invocation path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lambent.v1 import invocation_pb2, invocation_pb2_grpc
from lambent_scheduler.invocation import unary
from lambent_scheduler.invocation.session import CallerSession, CallerStream
from lambent_scheduler.invocation.session_port import SessionPort

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc.aio

    from lambent_scheduler.invocation.relay import Relay


class GrpcStream:
    """A gRPC call as a CallerStream."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.read = context.read
        self._context = context

    async def write(self, frames: list[invocation_pb2.SessionResponseFrame], /) -> None:
        """Send a batch of frames as one message; waits while the caller takes no more."""
        await self._context.write(invocation_pb2.SessionResponse(frames=frames))


class InvocationServicer(invocation_pb2_grpc.InvocationServiceServicer):
    """Hands every call to the relay.

    Args:
        relay: Whoever carries the calls out.

    Attributes:
        session_port: What callers of a session are offered instead of gRPC.
        sessions: How many there are, by way: "grpc" or "port".
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.session_port = SessionPort(lambda stream: self._serve_session(stream, "port"))
        self.sessions = {"grpc": 0, "port": 0}

    async def Invoke(  # noqa: N802 - gRPC's name
        self, request: invocation_pb2.InvokeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> invocation_pb2.InvokeResponse:
        """Run a function once and give its whole answer."""
        return await unary.invoke(self._relay, request, context.time_remaining())

    async def Session(  # type: ignore[override]  # noqa: N802 - a coroutine that reads and writes the context itself
        self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Carry many calls over one stream."""
        del request_iterator
        with self.session_port.offer(context.peer()) as metadata:
            await context.send_initial_metadata(metadata)
            await self._serve_session(GrpcStream(context), "grpc")

    async def _serve_session(self, stream: CallerStream, way: str) -> None:
        self.sessions[way] += 1
        try:
            await CallerSession(self._relay, stream).run()
        finally:
            self.sessions[way] -= 1

    async def InvokeWithResponseStream(  # noqa: N802 - gRPC's name
        self,
        request: invocation_pb2.InvokeWithResponseStreamRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[invocation_pb2.InvokeWithResponseStreamResponse]:
        """Run a function once and give its answer as it comes."""
        async for response in unary.invoke_with_response_stream(self._relay, request, context.time_remaining()):
            yield response
