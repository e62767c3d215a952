"""InvocationService: the gRPC door of the invocation path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lambent.v1 import invocation_pb2, invocation_pb2_grpc
from lambent_scheduler.invocation import unary
from lambent_scheduler.invocation.session import CallerSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc.aio

    from lambent_scheduler.invocation.relay import Relay


class InvocationServicer(invocation_pb2_grpc.InvocationServiceServicer):
    """Hands every call to the relay."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

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
        await CallerSession(self._relay, context).run()

    async def InvokeWithResponseStream(  # noqa: N802 - gRPC's name
        self,
        request: invocation_pb2.InvokeWithResponseStreamRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[invocation_pb2.InvokeWithResponseStreamResponse]:
        """Run a function once and give its answer as it comes."""
        async for response in unary.invoke_with_response_stream(self._relay, request, context.time_remaining()):
            yield response
