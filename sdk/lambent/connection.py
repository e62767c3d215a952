"""One gRPC channel to a scheduler, and the only place where the transport's exceptions are met."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from lambent import retry
from lambent.errors import ServiceError, UnavailableError
from lambent.framing import MAX_MESSAGE_BYTES
from lambent.rpc_errors import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lambent.endpoint import Endpoint

CALL_TIMEOUT_S = 30.0
"""Bound of one control call; the slowest, a page of 10,000 functions, takes about a second."""

_CONNECT_TIMEOUT_S = 5.0
"""A listener on the same continent answers in well under a second; after this it is called absent."""

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A scheduler whose machine died sends nothing: a ping finds out within 20 s, and only while calls run.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted scheduler is found again within a second, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Two clients in one process get a connection each.
    ("grpc.use_local_subchannel_pool", 1),
)

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
ItemT = TypeVar("ItemT")
Metadata = tuple[tuple[str, str], ...]


class Connection:
    """A channel with the cluster's token. Make it on the event loop that uses it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.channel = grpc.aio.insecure_channel(endpoint.grpc, options=_CHANNEL_OPTIONS)
        self.metadata: Metadata = (("authorization", f"Bearer {endpoint.token}"),) if endpoint.token else ()

    async def ready(self) -> None:
        """Return once the channel is connected.

        Raises:
            UnavailableError: Nothing answers there; nothing was dispatched.
        """
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._wait_until_connected()
        except TimeoutError as error:
            raise self._absent(f"no answer within {_CONNECT_TIMEOUT_S:.0f} s") from error

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        idempotent: bool = False,
    ) -> ResponseT:
        """Make one control call.

        Args:
            method: A method of a generated stub.
            request: Its request.
            timeout_s: Bound of the call, of each attempt.
            idempotent: True for reads, which are sent again when the cluster was away for a moment.

        Raises:
            ServiceError: What the server said, or why it could not be reached.
        """
        return await self.retrying(lambda: self._once(method, request, timeout_s), idempotent=idempotent)

    async def retrying(self, call: Callable[[], Awaitable[ResponseT]], *, idempotent: bool) -> ResponseT:
        """Make a call again, with jittered back-off, while that is safe and may help."""
        attempt = 1
        while True:
            try:
                return await call()
            except ServiceError as error:
                if not retry.INVOKE.may_retry(error, attempt, idempotent=idempotent):
                    raise
            await asyncio.sleep(retry.INVOKE.wait_s(attempt, random.random()))  # noqa: S311 - jitter, not a secret
            attempt += 1

    async def _once(
        self, method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT, timeout_s: float
    ) -> ResponseT:
        await self.ready()
        try:
            return await method(request, timeout=timeout_s, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def items(self, stream: AsyncIterator[ItemT]) -> AsyncIterator[ItemT]:
        """Pass on a server's stream."""
        try:
            async for item in stream:
                yield item
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def close(self) -> None:
        """Close the channel; calls in flight fail."""
        await self.channel.close()

    async def _wait_until_connected(self) -> None:
        state = self.channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                raise self._absent("the connection was refused")
            await self.channel.wait_for_state_change(state)
            state = self.channel.get_state(try_to_connect=True)

    def _absent(self, why: str) -> UnavailableError:
        where = f" (named by {self.endpoint.data_dir / 'cluster.json'})" if self.endpoint.data_dir else ""
        return UnavailableError(
            f"no Lambent cluster answers at {self.endpoint.grpc}{where}: {why}; start one with `lambent up`"
        )
