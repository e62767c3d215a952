"""A cluster that goes away, comes back, stops half way or talks nonsense under a client."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from tests.sdk.service import TOKEN, Opening, Service, echo, serving

import lambent
from lambent.connection import Connection
from lambent.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from lambent import AsyncClient

pytestmark = pytest.mark.usefixtures("way")


class Refusals:
    """Counts how often a client found nobody."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.changed = asyncio.Event()
        ready = Connection.ready

        async def counted(connection: Connection) -> None:
            try:
                await ready(connection)
            except lambent.UnavailableError:
                self.count += 1
                self.changed.set()
                raise

        monkeypatch.setattr(Connection, "ready", counted)

    async def wait_for(self, count: int) -> None:
        while self.count < count:
            self.changed.clear()
            await self.changed.wait()


async def _loss_noticed(client: AsyncClient) -> None:
    """Return once the client knows that its connection and its session are lost.

    Before that a write waits within the transport for the connection to come back, and finds nobody absent.
    """
    assert client._connection is not None
    channel = client._connection.channel
    while channel.get_state() is grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
    if client._session is not None:
        await asyncio.wait(client._session._tasks)


async def _invoke(client: AsyncClient) -> None:
    await client.invoke("echo", 1)


async def _stream(client: AsyncClient) -> None:
    assert [piece async for piece in client.stream("echo", b"1")] == [b"1"]


async def _write(client: AsyncClient) -> None:
    await client.functions.create_alias("echo", "live", function_version="1")


async def _logs(client: AsyncClient) -> None:
    assert [event async for event in client.logs("echo")] == []


@pytest.mark.parametrize("use", [_invoke, _stream, _write, _logs])
async def test_restart_of_the_cluster_is_waited_for(
    use: Callable[[AsyncClient], Any], unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often nobody answers meanwhile: what counts is the time that a restart takes."""
    refusals = Refusals(monkeypatch)
    async with asyncio.timeout(30), lambent.AsyncClient(f"127.0.0.1:{unused_tcp_port}", token=TOKEN) as client:
        async with serving(unused_tcp_port) as before:
            before.handlers["echo"] = echo
            await use(client)
        await _loss_noticed(client)
        call = asyncio.create_task(use(client))
        await refusals.wait_for(6)
        async with serving(unused_tcp_port) as after:
            after.handlers["echo"] = echo
            await call


async def test_call_over_its_time_does_not_wait_for_a_restart(unused_tcp_port: int) -> None:
    """`timeout_s` has queueing and retries in it."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30), lambent.AsyncClient(f"127.0.0.1:{unused_tcp_port}", token="x") as lonely:
        began = loop.time()
        with pytest.raises(lambent.UnavailableError):
            await lonely.invoke("echo", timeout_s=0.3)
        assert loop.time() - began < 3


async def test_write_that_never_left_is_sent_when_the_cluster_is_back(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is lost under a call's feet is no reason to say that the call may have run."""
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(30))
        client = await stack.enter_async_context(lambent.AsyncClient(f"127.0.0.1:{unused_tcp_port}", token=TOKEN))
        server = contextlib.AsyncExitStack()
        await server.enter_async_context(serving(unused_tcp_port))
        await client.status()
        restarts: list[asyncio.Task[Service]] = []
        ready = Connection.ready

        async def ready_and_gone(connection: Connection) -> None:
            """The connection stands, and falls before the call is sent."""
            await ready(connection)
            monkeypatch.setattr(Connection, "ready", ready)
            await server.aclose()
            while connection.channel.get_state() is grpc.ChannelConnectivity.READY:
                await connection.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
            restarts.append(asyncio.create_task(restart(connection.channel)))

        async def restart(channel: grpc.aio.Channel) -> Service:
            while (state := channel.get_state()) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                await channel.wait_for_state_change(state)
            return await stack.enter_async_context(serving(unused_tcp_port))

        monkeypatch.setattr(Connection, "ready", ready_and_gone)
        assert (await client.functions.create_alias("f", "live", function_version="1")).name == "live"
        assert list((await restarts[0]).aliases) == [("f", "live")]


async def test_session_that_is_not_accepted_has_dispatched_nothing(service: Service, client: AsyncClient) -> None:
    """A scheduler that stops takes sessions and serves none of them: their calls go to the next one."""
    service.handlers["echo"] = echo
    service.accepting = False
    async with asyncio.timeout(30):
        call = asyncio.create_task(client.invoke("echo", 1))
        await service.session_came.wait()
        service.accepting = True
        service.drop.set()
        assert (await call).json() == 1
    assert service.seen == ["echo"]


async def test_session_that_nobody_answers_is_given_up(
    service: Service, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer may take connections and be stuck."""
    monkeypatch.setattr("lambent.session_stream.CONNECT_TIMEOUT_S", 0.2)
    service.handlers["echo"] = echo
    service.accepting = False
    async with asyncio.timeout(30):
        call = asyncio.create_task(client.invoke("echo", 1))
        await service.session_came.wait()
        service.accepting = True
        assert (await call).json() == 1


async def test_calls_of_an_outage_wait_together(
    service: Service, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of many callers learns as soon as the first that no session is accepted."""
    monkeypatch.setattr("lambent.session_stream.CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr("lambent.retry.OUTAGE_S", 0.0)
    service.accepting = False
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*(client.invoke("echo") for _ in range(50)), return_exceptions=True)
    assert all(isinstance(outcome, lambent.UnavailableError) and not outcome.dispatched for outcome in outcomes)
    assert len(set(map(id, outcomes))) == 50


async def test_lost_session_gives_each_call_an_error_of_its_own(
    service: Service, client: AsyncClient, way: str
) -> None:
    """Whoever raises an exception adds to its traceback; sixty-four callers of one would make a novel of it."""

    async def wait_for_both(opening: Opening, body: bytes) -> bytes:
        if len(service.seen) == 2:
            service.drop.set()
        await asyncio.Event().wait()
        return b""

    service.handlers["f"] = wait_for_both
    async with asyncio.timeout(20):
        first, second = await asyncio.gather(client.invoke("f"), client.invoke("f"), return_exceptions=True)
    assert isinstance(first, lambent.UnavailableError)
    assert isinstance(second, lambent.UnavailableError)
    assert first is not second
    said = "the scheduler stops" if way == "grpc" else "the scheduler ended the session"
    assert (first.dispatched, first.message) == (second.dispatched, second.message) == (True, said)


async def test_session_that_cannot_be_read_fails_its_calls() -> None:
    """A defect must not look like a call that takes its time."""

    async def nonsense(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await context.send_initial_metadata(())
        await anext(requests)
        yield b"\xff\xff"
        await asyncio.Event().wait()

    handler = grpc.stream_stream_rpc_method_handler(nonsense)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("lambent.v1.InvocationService", {"Session": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with asyncio.timeout(20), lambent.AsyncClient(f"127.0.0.1:{port}", token=TOKEN) as client:
            for _ in range(2):  # The second call has a session of its own.
                with pytest.raises(lambent.InternalError) as caught:
                    await client.invoke("echo")
                assert caught.value.dispatched
    finally:
        await server.stop(0)


async def test_closing_the_client_fails_what_others_wait_for(service: Service, client: AsyncClient) -> None:
    """As an error of ours: a cancellation that nobody asked for would vanish from a TaskGroup without a word."""
    reached = asyncio.Event()

    async def forever(opening: Opening, body: bytes) -> bytes:
        reached.set()
        await asyncio.Event().wait()
        return b""

    service.handlers["forever"] = forever
    service.creating = asyncio.Barrier(2)  # One comes: it waits for ever.
    async with asyncio.timeout(20):
        following = client.logs("f", follow=True)
        calls = [
            asyncio.create_task(client.invoke("forever")),
            asyncio.create_task(client.functions.create("f", Path(__file__), handler="app.handler")),
            asyncio.ensure_future(anext(following)),
        ]
        await reached.wait()
        happened = {await asyncio.to_thread(service.happened.get, timeout=20) for _ in range(2)}
        assert happened == {"call", "logs"}
        while not service.creating.n_waiting:
            await client.status()
        await client.close()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [(type(outcome), getattr(outcome, "dispatched", None)) for outcome in outcomes] == [
        (lambent.UnavailableError, True)
    ] * 3


@pytest.mark.parametrize("warm", [False, True])
async def test_closing_at_any_moment_leaves_no_call_behind(service: Service, warm: bool) -> None:
    """Half-made connections and sessions too: each call is answered or fails soon, and none looks cancelled."""
    service.handlers["echo"] = echo
    for turns in range(30):
        async with lambent.AsyncClient(service.address, token=TOKEN) as client:
            if warm:
                await client.invoke("echo", 1)
            calls = [
                asyncio.create_task(client.invoke("echo", 1)),
                asyncio.ensure_future(anext(client.logs("f", follow=True))),
                asyncio.create_task(client.status()),
            ]
            for _ in range(turns):
                await asyncio.sleep(0)
        async with asyncio.timeout(4):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, lambent.InvokeResult | lambent.ClusterStatus | lambent.UnavailableError), outcome


async def test_closing_that_is_cut_short_leaves_nothing_open(
    service: Service, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer takes its time over the goodbye, and the caller has none."""

    async def for_ever(_session: Session) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Session, "_say_goodbye", for_ever)
    service.handlers["echo"] = echo
    await client.invoke("echo", 1)
    session, connection = client._session, client._connection
    assert session is not None
    assert connection is not None
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait((closing, *session._tasks))
    assert connection.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_closed_client_does_not_wait_for_a_restart(client: AsyncClient) -> None:
    """It is not the cluster that is away."""
    await client.close()
    async with asyncio.timeout(2):
        for call in (client.invoke("f"), client.functions.get("f"), client.status()):
            with pytest.raises(lambent.UnavailableError, match="this client is closed"):
                await call
