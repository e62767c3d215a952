"""One gRPC channel to a scheduler, and the only place where the transport's exceptions are met."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from lambent import retry
from lambent.errors import ServiceError, UnavailableError
from lambent.framing import MAX_MESSAGE_BYTES
from lambent.rpc_errors import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from lambent.endpoint import Endpoint

CALL_TIMEOUT_S = 30.0
"""Bound of one control call; the slowest, a page of 10,000 functions, takes about a second."""

CONNECT_TIMEOUT_S = 5.0
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


@contextlib.contextmanager
def transport_errors() -> Iterator[None]:
    """Turn what the transport raises into our own errors.

    grpc.aio cancels whoever waits for a call of a channel that is closed. The waiting task was not cancelled, and must
    not look as if it was: in a TaskGroup it would vanish without a word.

    Raises:
        ServiceError: What the server said, or what the transport met.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise UnavailableError("the connection was closed during the call", dispatched=True) from error


def client_closed() -> UnavailableError:
    """Give the error of a call on a client that is closed; nothing was dispatched."""
    return UnavailableError("this client is closed; make a new one")


class Connection:
    """A channel with the cluster's token. Make it on the event loop that uses it.

    Attributes:
        endpoint: Where it leads.
        tries_session_ports: False once a session port could not be reached: trying may take a second each time.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.tries_session_ports = True
        self.channel = grpc.aio.insecure_channel(endpoint.grpc, options=_CHANNEL_OPTIONS)
        self.metadata: Metadata = (("authorization", f"Bearer {endpoint.token}"),) if endpoint.token else ()
        self._closed = False

    async def ready(self) -> None:
        """Return once the channel is connected.

        Raises:
            UnavailableError: Nothing answers there, or the connection was closed; nothing was dispatched.
        """
        if self._closed:
            raise client_closed()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._wait_until_connected()
        except TimeoutError as error:
            raise self._absent(f"no answer within {CONNECT_TIMEOUT_S:.0f} s") from error

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
        clock = asyncio.get_running_loop().time
        retries = retry.Retries(retry.INVOKE, idempotent=idempotent)
        while True:
            try:
                return await call()
            except ServiceError as error:
                wait_s = retries.wait_s(error, clock(), random.random())  # noqa: S311 - jitter, not a secret
                if wait_s is None or self._closed:
                    raise
            await asyncio.sleep(wait_s)

    async def _once(
        self, method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT, timeout_s: float
    ) -> ResponseT:
        await self.ready()
        with transport_errors():
            # A connection lost since then is waited for: a call that never left is not taken for one that may have run.
            return await method(request, timeout=timeout_s, metadata=self.metadata, wait_for_ready=True)

    async def items(self, stream: AsyncIterator[ItemT]) -> AsyncIterator[ItemT]:
        """Pass on a server's stream."""
        while True:
            with transport_errors():
                try:
                    item = await anext(stream)
                except StopAsyncIteration:
                    return
            yield item

    async def close(self) -> None:
        """Close the channel; calls in flight fail."""
        self._closed = True
        await self.channel.close()

    async def _wait_until_connected(self) -> None:
        state = self.channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                raise client_closed()
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                raise self._absent("the connection was refused")
            await self.channel.wait_for_state_change(state)
            state = self.channel.get_state(try_to_connect=True)

    def _absent(self, why: str) -> UnavailableError:
        where = f" (named by {self.endpoint.data_dir / 'cluster.json'})" if self.endpoint.data_dir else ""
        return UnavailableError(
            f"no Lambent cluster answers at {self.endpoint.grpc}{where}: {why}; start one with `lambent up`"
        )
