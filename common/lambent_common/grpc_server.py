"""A gRPC server as all our daemons run it: token, error mapping, health, reflection, bounds and keep-alive."""

from __future__ import annotations

import functools
import hmac
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lambent.errors import InternalError, ServiceError, UnauthenticatedError, UnavailableError
from lambent.framing import MAX_MESSAGE_BYTES
from lambent.rpc_errors import to_status

log = structlog.get_logger()

_SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A peer whose machine died sends nothing; a ping every 5 s with 5 s for the answer finds out within 10 s.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Two servers on one port would each get half of the calls; the second is to fail instead.
    ("grpc.so_reuseport", 0),
)

_MAX_RPCS = 4_096
"""Calls that a server has under way, streams included: above the concurrency of an account, so that it is the account's
limit that callers meet, and a bound to what they can make the server hold; gRPC refuses more as RESOURCE_EXHAUSTED."""

_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
_Handler = Callable[[Any, Any], Any]


class _Interceptor(grpc.aio.ServerInterceptor):
    """Checks the token, and turns a raised ServiceError into a status that names it."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode() if token else b""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the method's handler; an unknown method has none."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        refusal = self._refusal(handler_call_details)
        method = str(handler_call_details.method)
        for kind in _KINDS:
            if (behaviour := getattr(handler, kind)) is not None:
                make = getattr(grpc, f"{kind}_rpc_method_handler")
                wrapped: grpc.RpcMethodHandler[Any, Any] = make(
                    _with_errors(behaviour, method, refusal),
                    request_deserializer=handler.request_deserializer,
                    response_serializer=handler.response_serializer,
                )
                return wrapped
        return handler

    def _refusal(self, details: grpc.HandlerCallDetails) -> UnauthenticatedError | None:
        if not self._expected:
            return None
        given = dict(details.invocation_metadata or ()).get("authorization")
        if given is None:
            return UnauthenticatedError(
                "the call carries no token; send the one from the data directory as 'authorization: Bearer <token>'"
            )
        if not hmac.compare_digest(str(given).encode(), self._expected):
            return UnauthenticatedError("the token is not this cluster's; the right one is in its data directory")
        return None


def _with_errors(behaviour: _Handler, method: str, refusal: ServiceError | None) -> _Handler:
    if inspect.isasyncgenfunction(behaviour):

        @functools.wraps(behaviour)
        async def generator(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                if refusal is not None:
                    raise refusal  # noqa: TRY301 - one path for all errors
                async for response in behaviour(request, context):
                    yield response
            except Exception as error:  # noqa: BLE001 - the edge
                await _fail(context, method, error)

        return generator

    @functools.wraps(behaviour)
    async def coroutine(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            if refusal is not None:
                raise refusal  # noqa: TRY301 - one path for all errors
            return await behaviour(request, context)
        except Exception as error:  # noqa: BLE001 - the edge
            await _fail(context, method, error)

    return coroutine


async def _fail(context: grpc.aio.ServicerContext[Any, Any], method: str, error: Exception) -> None:
    """End an RPC with the status of what its behaviour raised: INTERNAL, and a line in the log, for a defect."""
    if isinstance(error, grpc.aio.AbortError | grpc.aio.BaseError):
        raise error
    known = error if isinstance(error, ServiceError) else _internal(method, error)
    await context.abort_with_status(to_status(known))


def _internal(method: str, error: Exception) -> InternalError:
    log.error("rpc_failed", method=method, exc_info=error)
    return InternalError(f"{method.rpartition('/')[2]} failed inside Lambent ({type(error).__name__}); see the log")


class GrpcServer:
    """A server that is up between `start` and `stop`.

    Args:
        token: Bearer token that every call must carry; empty switches the check off.
        services: Full names of the services added, for reflection and health.
    """

    def __init__(self, *, token: str, services: Sequence[str]) -> None:
        self.server = grpc.aio.server(
            interceptors=(_Interceptor(token),), options=_SERVER_OPTIONS, maximum_concurrent_rpcs=_MAX_RPCS
        )
        self._services = services
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self.server)

    async def start(self, listen: str) -> int:
        """Listen on `host:port` and serve; port 0 picks a free one.

        Returns:
            The port.

        Raises:
            UnavailableError: The address cannot be listened on.
        """
        try:
            port = int(self.server.add_insecure_port(listen))
        except RuntimeError as error:
            raise UnavailableError(f"cannot listen on {listen}: {error}") from error
        await self.server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return port

    async def announce_stop(self) -> None:
        """Say NOT_SERVING, and go on serving who comes all the same."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, let running calls finish for `grace_s` seconds, then end them."""
        await self.announce_stop()
        await self.server.stop(grace_s)

    async def _set_health(self, status: int) -> None:
        for service in ("", *self._services):
            await self._health.set(service, status)
