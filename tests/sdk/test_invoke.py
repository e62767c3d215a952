"""Synchronous calls as a user of AsyncClient sees them, over a real socket."""

from __future__ import annotations

import asyncio
import json
import pickle
from typing import TYPE_CHECKING

import pytest
from tests.sdk.service import TOKEN, Opening, Service, echo, failing

import lambent
from lambent import ColdStartPhases

if TYPE_CHECKING:
    from lambent import AsyncClient

pytestmark = pytest.mark.usefixtures("way")


async def test_result_carries_the_answer_and_every_figure(service: Service, client: AsyncClient) -> None:
    """The figures are what people tune memory and cold starts by."""
    service.handlers["echo"] = echo
    result = await client.invoke("echo", {"name": "Zoë"}, qualifier="live", log_tail=True)
    assert result.json() == {"name": "Zoë"}
    assert (result.duration_ms, result.billed_duration_ms, result.init_duration_ms) == (1.5, 2, 10.25)
    assert (result.queue_ms, result.memory_size_mib, result.max_memory_used_mib) == (0.3, 128, 9)
    assert (result.executed_version, result.node_id, result.environment_id) == ("live", "node-a", "environment-1")
    assert result.cold_start
    assert result.cold_start_phases == ColdStartPhases(0.01, 0.02, 0.03, 0.04, 0.05, 0.15)
    assert result.log_tail == b"START\nhello\nEND\n"
    assert result.request_id


@pytest.mark.parametrize("payload", [b"", b"not json", [1, 2.5, None], "text", {"a": {"b": True}}, "\ud800"])
async def test_payload_arrives_as_json_or_as_the_bytes_given(
    service: Service, client: AsyncClient, payload: object
) -> None:
    """Bytes are opaque; everything else is one JSON document, even a string that UTF-8 cannot hold."""
    received: list[bytes] = []

    async def keep(opening: Opening, body: bytes) -> bytes:
        received.append(body)
        return b"null"

    service.handlers["keep"] = keep
    await client.invoke("keep", payload)
    assert received[0] == payload if isinstance(payload, bytes) else json.loads(received[0]) == payload


async def test_six_megabytes_go_there_and_back(service: Service, client: AsyncClient) -> None:
    """The quota's own size passes through frames with credit."""
    service.handlers["echo"] = echo
    payload = bytes(range(256)) * (6 * 1024 * 1024 // 256)
    async with asyncio.timeout(30):
        result = await client.invoke("echo", payload)
    assert result.payload == payload


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"x" * (6 * 1024 * 1024 + 1), lambent.RequestTooLargeError),
        (object(), lambent.InvalidRequestContentError),
        (float("nan"), lambent.InvalidRequestContentError),
    ],
)
async def test_payload_that_cannot_be_sent_never_leaves(
    service: Service, client: AsyncClient, payload: object, error: type[Exception]
) -> None:
    """The caller learns it at once, with the value's own complaint."""
    with pytest.raises(error):
        await client.invoke("echo", payload)
    assert service.seen == []


async def test_failed_function_raises_its_own_type_message_and_trace(service: Service, client: AsyncClient) -> None:
    """A remote failure is read like a local one."""

    async def fail(opening: Opening, body: bytes) -> bytes:
        raise failing("KeyError", "'colour'", '  File "/var/task/app.py", line 2, in handler\n')

    service.handlers["fail"] = fail
    with pytest.raises(lambent.FunctionError) as caught:
        await client.invoke("fail", log_tail=True)
    assert (caught.value.error_type, caught.value.error_message) == ("KeyError", "'colour'")
    assert caught.value.stack_trace == ('  File "/var/task/app.py", line 2, in handler\n',)
    assert caught.value.request_id
    assert caught.value.log_tail.startswith(b"START")


async def test_failure_crosses_processes() -> None:
    """A worker of a pool hands its exception to the pool as a pickle; what cannot be read again breaks the pool."""
    error = failing("KeyError", "'colour'", "line 2\n")
    error.stack_trace = ("line 2\n",)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == ("KeyError: 'colour'", vars(error))
    refused = lambent.NodeLostError("gone", dispatched=True, details={"Reason": "x"})
    assert vars(pickle.loads(pickle.dumps(refused))) == vars(refused)


async def test_unknown_function_is_a_typed_error(client: AsyncClient) -> None:
    """The class comes from the name that travelled, not from the text."""
    with pytest.raises(lambent.FunctionNotFoundError, match="Function not found: nobody"):
        await client.invoke("nobody")


async def test_throttled_call_is_sent_again(service: Service, client: AsyncClient) -> None:
    """A throttle was never dispatched: a short wait usually helps."""
    failures = 2

    async def busy(opening: Opening, body: bytes) -> bytes:
        nonlocal failures
        if failures:
            failures -= 1
            raise lambent.ThrottledError("Rate Exceeded.")
        return b"1"

    service.handlers["busy"] = busy
    assert (await client.invoke("busy")).json() == 1
    assert len(service.seen) == 3


async def test_throttle_that_stays_is_raised_with_its_reason(service: Service, client: AsyncClient) -> None:
    """Retries are bounded, and the reason says which limit to raise."""

    async def blocked(opening: Opening, body: bytes) -> bytes:
        raise lambent.ThrottledError(
            "Rate Exceeded.", details={"Reason": "ReservedFunctionConcurrentInvocationLimitExceeded"}
        )

    service.handlers["blocked"] = blocked
    with pytest.raises(lambent.ThrottledError) as caught:
        await client.invoke("blocked")
    assert caught.value.details["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert len(service.seen) == 4


@pytest.mark.parametrize(("idempotent", "sends"), [(False, 1), (True, 2)])
async def test_call_that_may_have_run_is_only_repeated_when_idempotent(
    service: Service, client: AsyncClient, idempotent: bool, sends: int
) -> None:
    """At most once, unless the caller says that twice does no harm."""

    async def lost(opening: Opening, body: bytes) -> bytes:
        if len(service.seen) == 1:
            raise lambent.NodeLostError("node node-a is gone", dispatched=True)
        return b"1"

    service.handlers["lost"] = lost
    if idempotent:
        assert (await client.invoke("lost", idempotent=True)).json() == 1
    else:
        with pytest.raises(lambent.NodeLostError):
            await client.invoke("lost")
    assert len(service.seen) == sends


async def test_next_call_after_a_lost_session_opens_another(service: Service, client: AsyncClient) -> None:
    """A scheduler that restarts costs the calls in flight, not the client."""

    async def dropping(opening: Opening, body: bytes) -> bytes:
        service.drop.set()
        await asyncio.Event().wait()
        return b""

    service.handlers |= {"dropping": dropping, "echo": echo}
    async with asyncio.timeout(20):
        with pytest.raises(lambent.UnavailableError) as caught:
            await client.invoke("dropping")
        assert caught.value.dispatched
        assert (await client.invoke("echo", 7)).json() == 7


async def test_cancelled_wait_cancels_the_invocation(service: Service, client: AsyncClient) -> None:
    """An explicit cancel ends the function; nobody pays for an answer that nobody reads."""
    started = asyncio.Event()

    async def forever(opening: Opening, body: bytes) -> bytes:
        started.set()
        await asyncio.Event().wait()
        return b""

    service.handlers["forever"] = forever
    async with asyncio.timeout(20):
        call = asyncio.create_task(client.invoke("forever"))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await service.cancelled.wait()


async def test_timeout_travels_to_the_cluster_and_retries_share_it(service: Service, client: AsyncClient) -> None:
    """The second attempt gets what the first one left."""

    async def busy(opening: Opening, body: bytes) -> bytes:
        if len(service.seen) == 1:
            raise lambent.ThrottledError("Rate Exceeded.")
        return b"1"

    service.handlers["busy"] = busy
    await client.invoke("busy", timeout_s=30)
    first, second = service.timeouts_us
    assert first == 30_000_000
    assert 0 < second < first


async def test_client_gives_up_when_the_cluster_does_not_say_that_time_is_up(
    service: Service, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call waits for ever, whatever the other side does."""
    monkeypatch.setattr("lambent.client._GRACE_S", 0.05)

    async def forever(opening: Opening, body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    service.handlers["forever"] = forever
    async with asyncio.timeout(20):
        with pytest.raises(lambent.DeadlineExceededError) as caught:
            await client.invoke("forever", timeout_s=0.05)
        await service.cancelled.wait()
    assert caught.value.dispatched


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_token_that_does_not_fit_is_a_typed_error(service: Service, token: str) -> None:
    """Both doors of the SDK say it the same way."""
    async with asyncio.timeout(20), lambent.AsyncClient(service.address, token=token) as stranger:
        with pytest.raises(lambent.UnauthenticatedError):
            await stranger.invoke("echo")
        with pytest.raises(lambent.UnauthenticatedError):
            await stranger.functions.get("echo")


async def test_cluster_that_is_not_there_is_one_clear_error(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a transport exception; and the way out stands in the message."""
    monkeypatch.setattr("lambent.retry.OUTAGE_S", 0.3)
    async with asyncio.timeout(20), lambent.AsyncClient(f"127.0.0.1:{unused_tcp_port}", token="x") as lonely:
        with pytest.raises(lambent.UnavailableError, match=r"no Lambent cluster answers.*lambent up"):
            await lonely.invoke("echo")
        with pytest.raises(lambent.UnavailableError, match="lambent up"):
            await lonely.functions.get("echo")


async def test_pieces_of_a_streamed_answer_come_as_they_are_yielded(service: Service, client: AsyncClient) -> None:
    """And the figures are there at the end."""

    async def lines(opening: Opening, body: bytes) -> bytes:
        return b"one\ntwo\nthree\n"

    service.handlers["lines"] = lines
    stream = client.stream("lines", {"n": 3})
    assert [piece async for piece in stream] == [b"one\n", b"two\n", b"three\n"]
    assert stream.result is not None
    assert stream.result.node_id == "node-a"


async def test_stream_that_fails_raises_after_its_pieces(service: Service, client: AsyncClient) -> None:
    """A reader must not take half an answer for a whole one."""

    async def fail(opening: Opening, body: bytes) -> bytes:
        raise failing("ValueError", "half way")

    service.handlers["fail"] = fail
    with pytest.raises(lambent.FunctionError, match="half way"):
        async for _ in client.stream("fail"):
            pass


async def test_stream_left_early_cancels_the_invocation(service: Service, client: AsyncClient) -> None:
    """A generator nobody reads does not run on."""
    reached = asyncio.Event()

    async def forever(opening: Opening, body: bytes) -> bytes:
        reached.set()
        await asyncio.Event().wait()
        return b""

    service.handlers["forever"] = forever
    async with asyncio.timeout(20):
        async with client.stream("forever") as stream:
            reading = asyncio.ensure_future(anext(stream))
            await reached.wait()
            reading.cancel()
            await asyncio.wait((reading,))
            assert reading.cancelled()
        await service.cancelled.wait()


async def test_stream_left_with_its_client_cancels_the_invocation(service: Service) -> None:
    """Both closed at once: the word that ends the function still goes first."""

    async def forever(opening: Opening, body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    service.handlers["forever"] = forever
    service.early = b"piece"
    async with asyncio.timeout(5):
        async with lambent.AsyncClient(service.address, token=TOKEN) as own, own.stream("forever") as stream:
            async for piece in stream:
                assert piece == b"piece"
                break
        await service.cancelled.wait()
