"""The path of an invocation through the scheduler, over real streams."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from tests.invocation.front import METADATA, Node, echo, flowing, front, opening, silent

from lambent import errors
from lambent.connection import Connection
from lambent.endpoint import Endpoint
from lambent.framing import PIECE_BYTES, FrameWriter
from lambent.rpc_errors import from_frame, from_rpc_error
from lambent.session_stream import open_stream
from lambent.v1 import frame_pb2, invocation_pb2, node_pb2
from lambent_scheduler.core.limits import Limits

_SIX_MB = 6 * 1024 * 1024


async def test_a_call_comes_back_with_its_payload_and_report() -> None:
    """The first thing anybody does."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        session = await door.session()
        payload, end = await session.invoke(opening("f"), b'{"a": 1}')
        assert payload == b'{"a": 1}'
        assert len(end.report.request_id) == 36
        await session.close()


@pytest.mark.parametrize("size", [0, 65_536, 65_537, 1_000_000, _SIX_MB])
async def test_a_payload_of_any_size_arrives_whole_in_both_directions(size: int) -> None:
    """Cutting into frames must not show."""
    payload = bytes(range(256)) * (size // 256 + 1)
    async with asyncio.timeout(30), front(Node(echo), "f") as door:
        session = await door.session()
        answer, _ = await session.invoke(opening("f"), payload[:size])
        assert answer == payload[:size]
        await session.close()


async def test_a_thousand_calls_at_once_each_get_their_own_answer() -> None:
    """Answers must not be mixed up however frames are batched."""
    async with asyncio.timeout(60), front(Node(echo), "f", "g") as door:
        session = await door.session()
        calls = [session.invoke(opening("fg"[n % 2]), str(n).encode() * (n % 50 + 1)) for n in range(1_000)]
        for number, (answer, end) in enumerate(await asyncio.gather(*calls)):
            assert not end.HasField("service_error"), end
            assert answer == str(number).encode() * (number % 50 + 1)
        await session.close()


async def test_a_large_call_does_not_block_a_small_one() -> None:
    """A payload that flows leaves room between its pieces."""
    async with asyncio.timeout(30), front(Node(echo), "f") as door:
        session = await door.session()
        large = asyncio.create_task(session.invoke(opening("f"), bytes(_SIX_MB)))
        await session.invoke(opening("f"), b"small")
        assert not large.done()
        await large
        await session.close()


async def test_unknown_functions_are_refused_before_dispatch() -> None:
    """A typing error in a name costs no retry and no environment."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        session = await door.session()
        _, end = await session.invoke(opening("typo"), b"")
        error = from_frame(end.service_error)
        assert isinstance(error, errors.FunctionNotFoundError)
        assert not error.dispatched
        await session.close()


async def test_a_payload_over_six_mib_is_refused() -> None:
    """AWS's limit, kept while the payload still flows."""
    async with asyncio.timeout(30), front(Node(echo), "f") as door:
        session = await door.session()
        _, end = await session.invoke(opening("f"), bytes(_SIX_MB + 1))
        assert isinstance(from_frame(end.service_error), errors.RequestTooLargeError)
        answer, _ = await session.invoke(opening("f"), b"the session goes on")
        assert answer == b"the session goes on"
        await session.close()


async def test_a_client_context_over_its_limit_is_refused() -> None:
    """Every byte from outside has a bound."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        session = await door.session()
        _, end = await session.invoke(opening("f", client_context=bytes(3_584)), b"")
        assert isinstance(from_frame(end.service_error), errors.InvalidRequestContentError)
        await session.close()


async def test_cancelling_a_running_call_tells_the_node() -> None:
    """An explicit cancel resets the environment."""
    node = Node(silent)
    async with asyncio.timeout(20), front(node, "f") as door:
        session = await door.session()
        call = asyncio.create_task(session.invoke(opening("f"), b""))
        await node.until(lambda: len(node.openings) == 1)
        call.cancel()
        await node.until(lambda: any(order.WhichOneof("order") == "cancel" for order in node.orders))
        await session.close()


async def test_a_lost_caller_lets_the_function_finish() -> None:
    """As on AWS: a client that goes away does not stop what runs."""
    node = Node(silent)
    async with asyncio.timeout(20), front(node, "f") as door:
        session = await door.session()
        call = asyncio.create_task(session.invoke(opening("f"), b""))
        await node.until(lambda: len(node.openings) == 1)
        await session.close()
        with pytest.raises(errors.UnavailableError) as raised:
            await call
        assert raised.value.dispatched
        assert door.relay.dispatcher.in_flight == 1
        assert not any(order.WhichOneof("order") == "cancel" for order in node.orders)
        assert node.writer is not None
        (call_id,) = node.received
        echo(node, node.writer, call_id, node.openings[0])
        again = await door.session()
        node.answer = echo
        assert (await again.invoke(opening("f"), b"next"))[0] == b"next"
        assert door.relay.dispatcher.in_flight == 0
        await again.close()


async def test_a_lost_node_fails_its_calls_at_once_as_dispatched() -> None:
    """The caller learns that the function may have run."""
    node = Node(silent)
    async with asyncio.timeout(20), front(node, "f") as door:
        session = await door.session()
        call = asyncio.create_task(session.invoke(opening("f"), b""))
        await node.until(lambda: len(node.openings) == 1)
        await door.node_server.stop()
        _, end = await call
        error = from_frame(end.service_error)
        assert isinstance(error, errors.NodeLostError)
        assert error.dispatched
        assert door.relay.dispatcher.environment_count == 0
        await session.close()


async def test_more_memory_than_any_node_has_is_refused_at_once() -> None:
    """Waiting would not help, so nobody waits."""
    async with asyncio.timeout(20), front(Node(echo), "f", memory_mib=64) as door:
        session = await door.session()
        _, end = await session.invoke(opening("f"), b"")
        error = from_frame(end.service_error)
        assert isinstance(error, errors.NoCapacityError)
        assert "64" in error.message
        await session.close()


async def test_a_call_over_the_account_s_concurrency_is_throttled_with_the_reason() -> None:
    """AWS's 429, with the limit that was met."""
    node = Node(silent)
    async with asyncio.timeout(20), front(node, "f", limits=Limits(account_concurrency=1)) as door:
        session = await door.session()
        first = asyncio.create_task(session.invoke(opening("f"), b""))
        await node.until(lambda: len(node.openings) == 1)
        _, end = await session.invoke(opening("f"), b"")
        error = from_frame(end.service_error)
        assert isinstance(error, errors.ThrottledError)
        assert error.details["Reason"] == "ConcurrentInvocationLimitExceeded"
        first.cancel()
        await session.close()


async def test_a_call_that_waits_too_long_for_room_gets_no_capacity() -> None:
    """A wait is bounded even when the function's own timeout is long."""
    node = Node(silent)
    limits = Limits(max_queue_wait_s=0.2)
    async with asyncio.timeout(20), front(node, "f", limits=limits, memory_mib=128) as door:
        session = await door.session()
        first = asyncio.create_task(session.invoke(opening("f"), b""))
        await node.until(lambda: len(node.openings) == 1)
        _, end = await session.invoke(opening("f"), b"")
        assert isinstance(from_frame(end.service_error), errors.NoCapacityError)
        first.cancel()
        await session.close()


async def test_a_stream_gives_pieces_and_then_the_end() -> None:
    """Response streaming is the same path, seen piece by piece."""
    async with asyncio.timeout(30), front(Node(echo), "f") as door:
        session = await door.session()
        items = [item async for item in session.stream(opening("f", streaming=True), bytes(200_000))]
        assert isinstance(items[-1], frame_pb2.End)
        assert b"".join(item for item in items if isinstance(item, bytes)) == bytes(200_000)
        await session.close()


@pytest.mark.parametrize("sizes", [(15_000, 20_000), (10_000, 40_000), (1_000, 64_000), (1, 2, 3, 65_536, 1, 16_383)])
async def test_a_streamed_answer_of_any_pieces_arrives(sizes: tuple[int, ...]) -> None:
    """Each hop gives credit back in halves; an odd piece leaves less than the next one is long."""
    async with asyncio.timeout(30), front(Node(flowing(*sizes)), "f") as door:
        session = await door.session()
        items = [item async for item in session.stream(opening("f", streaming=True), b"")]
    assert sum(len(item) for item in items if isinstance(item, bytes)) == sum(sizes)


@pytest.mark.parametrize(
    ("first", "more", "last", "arrives"),
    [
        (65_536, (), 65_536, True),
        (10, (32_768,), 40_000, True),
        (10, (10_000, 22_768), 20, True),
        (10, (32_769,), 0, False),
        (10, (32_768, 1), 0, False),
        (10, (), 65_537, False),
    ],
)
async def test_a_payload_may_take_its_credit_and_no_byte_more(
    first: int, more: tuple[int, ...], last: int, arrives: bool
) -> None:
    """The bytes of OPEN and END need none, up to 64 KiB each. The call waits for a node meanwhile."""
    async with asyncio.timeout(30), front(Node(echo), "f") as door:
        raw = await door.raw_session()
        call = invocation_pb2.InvocationOpen(function_name="f", payload=bytes(first))
        frames = [invocation_pb2.SessionRequestFrame(call_id=1, open=call)]
        frames += [
            invocation_pb2.SessionRequestFrame(call_id=1, data=frame_pb2.Data(payload=bytes(size))) for size in more
        ]
        frames.append(invocation_pb2.SessionRequestFrame(call_id=1, end=frame_pb2.End(payload=bytes(last))))
        frames.append(invocation_pb2.SessionRequestFrame(call_id=1, window=frame_pb2.Window(credit_bytes=200_000)))
        await raw.stream.write(frames)
        end = await raw.end(1)
        if arrives:
            assert not end.HasField("service_error")
            assert raw.data_bytes(1) + len(end.payload) == first + sum(more) + last
        else:
            assert end.service_error.reason in ("InvalidRequestContentException", "RequestTooLargeException")
        raw.stream.abort()


async def test_a_reader_that_stops_leaves_early_and_cancels() -> None:
    """Leaving a stream before its end frees the environment."""
    node = Node(_endless)
    async with asyncio.timeout(30), front(node, "f") as door:
        session = await door.session()
        items = session.stream(opening("f", streaming=True), b"")
        assert await anext(items) == bytes(PIECE_BYTES)
        await items.aclose()  # type: ignore[attr-defined]  # an async generator
        await node.until(lambda: any(order.WhichOneof("order") == "cancel" for order in node.orders))
        await session.close()


def _endless(node: Node, writer: FrameWriter[node_pb2.NodeEvent], call_id: int, order: node_pb2.InvokeOpen) -> None:
    for _ in range(4):
        writer.send(node_pb2.NodeEvent(call_id=call_id, data=frame_pb2.Data(payload=bytes(65_536))))


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_unary_invoke_answers_any_grpc_client(size: int) -> None:
    """Clients without frames have the same service."""
    async with asyncio.timeout(30), front(Node(echo), "f") as door:
        request = invocation_pb2.InvokeRequest(function_name="f", payload=bytes(size))
        response = await door.stub.Invoke(request, metadata=METADATA)
        assert response.payload == bytes(size)


async def test_unary_invoke_raises_typed_errors() -> None:
    """A gRPC client sees a status with the AWS name, never a bare one."""
    async with asyncio.timeout(30), front(Node(echo), "f") as door:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await door.stub.Invoke(invocation_pb2.InvokeRequest(function_name="typo"), metadata=METADATA)
        assert isinstance(from_rpc_error(raised.value), errors.FunctionNotFoundError)


async def test_invoke_with_response_stream_gives_chunks_and_completion() -> None:
    """A server stream for clients without frames."""
    async with asyncio.timeout(30), front(Node(echo), "f") as door:
        request = invocation_pb2.InvokeWithResponseStreamRequest(function_name="f", payload=bytes(100_000))
        responses = [r async for r in door.stub.InvokeWithResponseStream(request, metadata=METADATA)]
        assert b"".join(response.payload_chunk for response in responses) == bytes(100_000)
        assert responses[-1].complete.report.request_id


async def test_a_session_without_the_token_is_refused() -> None:
    """The front door is locked on every method."""
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        stream = door.stub.Session()
        assert await stream.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(errors.UnauthenticatedError):
            await open_stream(Connection(Endpoint(door.connection.endpoint.grpc)))
