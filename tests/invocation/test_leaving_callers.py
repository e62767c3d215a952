"""Callers that go away, do not read or do not send: none of them keeps an environment or memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import pytest
from tests.invocation import front as front_module
from tests.invocation.front import METADATA, Front, Node, RawSession, echo, flowing, front, opening, silent

from lambent import errors
from lambent.framing import INITIAL_CREDIT_BYTES, FrameWriter
from lambent.rpc_errors import from_frame, from_rpc_error
from lambent.v1 import frame_pb2, invocation_pb2
from lambent_scheduler.core.limits import Limits
from lambent_scheduler.invocation import session as session_module

_TEN_MB = 10_000_000

SIZE = INITIAL_CREDIT_BYTES * 3 // 2
"""Of an answer: more than its caller takes at first, less than the two hops hold."""


async def _cancel(raw: RawSession) -> None:
    await raw.send(1, cancel=frame_pb2.Cancel())
    assert isinstance(from_frame((await raw.end(1)).service_error), errors.CancelledError)


async def _vanish(raw: RawSession) -> None:
    raw.stream.abort()


@pytest.mark.parametrize("leave", [_cancel, _vanish])
async def test_who_stops_reading_a_long_answer_leaves_nothing_behind(
    leave: Callable[[RawSession], Awaitable[None]],
) -> None:
    """The node has its credit back, though the caller never gives any: the END behind the answer comes."""
    node = Node(flowing(_TEN_MB))
    async with asyncio.timeout(20), front(node, "f", "g") as door:
        raw = await door.raw_session()
        await raw.send(1, open=opening("f", streaming=True, complete=True))
        while raw.data_bytes(1) < INITIAL_CREDIT_BYTES:
            await raw.read()
        # As much again is in the scheduler now, and nothing moves any more.
        await node.until(lambda: node.sent_bytes == 2 * INITIAL_CREDIT_BYTES)
        node.answer = echo
        await raw.send(2, open=opening("g", complete=True))
        await door.relay.ends.get()
        await leave(raw)
        await door.relay.ends.get()
        await _serves_again(door, node)


async def test_who_leaves_a_server_stream_leaves_nothing_behind() -> None:
    """A plain gRPC client that breaks out of its loop is no different."""
    node = Node(flowing(_TEN_MB))
    async with asyncio.timeout(20), front(node, "f") as door:
        request = invocation_pb2.InvokeWithResponseStreamRequest(function_name="f")
        stream = door.stub.InvokeWithResponseStream(request, metadata=METADATA)
        assert isinstance(await stream.read(), invocation_pb2.InvokeWithResponseStreamResponse)
        stream.cancel()
        await door.relay.ends.get()
        await _serves_again(door, node)


async def _serves_again(door: Front, node: Node) -> None:
    assert door.relay.dispatcher.in_flight == 0
    node.answer = echo
    session = await door.session()
    started = len(node.started)
    assert (await session.invoke(opening("f"), b"next"))[0] == b"next"
    await session.close()
    assert len(node.started) == started


async def test_who_does_not_read_for_too_long_loses_the_answer() -> None:
    """A caller that lives and takes nothing would hold the environment for as long as it likes."""
    node = Node(flowing(_TEN_MB))
    async with asyncio.timeout(20), front(node, "f", reader_timeout_s=0.1) as door:
        raw = await door.raw_session()
        await raw.send(1, open=opening("f", streaming=True, complete=True))
        error = from_frame((await raw.end(1)).service_error)
        assert isinstance(error, errors.DeadlineExceededError)
        assert error.dispatched
        assert raw.data_bytes(1) == INITIAL_CREDIT_BYTES
        await door.relay.ends.get()
        await _serves_again(door, node)


async def test_a_payload_that_does_not_end_in_time_frees_its_environment() -> None:
    """An environment is bound while the payload comes; whoever sends nothing more does not keep it."""
    node = Node(silent)
    async with asyncio.timeout(20), front(node, "f", payload_timeout_s=0.1) as door:
        raw = await door.raw_session()
        await raw.send(1, open=opening("f", payload=b"{", complete=False))
        error = from_frame((await raw.end(1)).service_error)
        assert isinstance(error, errors.DeadlineExceededError)
        assert not error.dispatched
        await node.until(lambda: any(order.WhichOneof("order") == "cancel" for order in node.orders))


async def test_answers_that_nobody_takes_count_as_calls_of_their_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a session can make the scheduler hold is bounded, whether its calls run or have ended."""
    monkeypatch.setattr(session_module, "_MAX_CALLS", 2)
    async with asyncio.timeout(20), front(Node(flowing(SIZE)), "f") as door:
        raw = await door.raw_session()
        for call_id in (1, 2):
            await raw.send(call_id, open=opening("f", complete=True))
            while raw.data_bytes(call_id) < INITIAL_CREDIT_BYTES:
                await raw.read()
            await door.relay.ends.get()
        assert door.relay.dispatcher.in_flight == 0
        await raw.send(3, open=opening("f", complete=True))
        assert isinstance(from_frame((await raw.end(3)).service_error), errors.ThrottledError)
        await raw.send(1, window=frame_pb2.Window(credit_bytes=SIZE))
        assert not (await raw.end(1)).HasField("service_error")
        await raw.send(2, cancel=frame_pb2.Cancel())
        await raw.end(2)
        assert raw.data_bytes(1) == SIZE
        assert raw.data_bytes(2) < SIZE
        for call_id in range(4, 10):
            await raw.send(call_id, open=opening("f", complete=True))
            await raw.send(call_id, window=frame_pb2.Window(credit_bytes=SIZE))
            assert not (await raw.end(call_id)).HasField("service_error")
        raw.stream.abort()


@pytest.mark.parametrize("waits", [False, True])
async def test_a_caller_who_would_wait_for_ever_is_served(waits: bool) -> None:
    """The largest time that the field holds is what other clients mean by no timeout."""
    node = Node(echo)
    async with asyncio.timeout(20), front(node, "f") as door:
        raw = await door.raw_session()
        if not waits:
            await raw.send(1, open=opening("f", complete=True))
            await raw.end(1)
        await raw.send(2, open=opening("f", timeout_us=2**64 - 1, complete=True))
        assert not (await raw.end(2)).HasField("service_error")
        assert node.openings[-1].timeout_us == 0
        raw.stream.abort()


@pytest.mark.parametrize("call_id", [0, 1])
async def test_a_call_id_that_is_in_use_is_refused_and_the_first_call_goes_on(call_id: int) -> None:
    """A caller's mistake costs no call that was there before."""
    node = Node(silent)
    async with asyncio.timeout(20), front(node, "f") as door:
        raw = await door.raw_session()
        await raw.send(1, open=opening("f", complete=True))
        await raw.send(call_id, open=opening("f", complete=True))
        error = from_frame((await raw.end(call_id)).service_error)
        assert isinstance(error, errors.InvalidRequestContentError)
        await node.until(lambda: node.received)
        assert node.writer is not None
        (node_call_id,) = node.received
        echo(node, node.writer, node_call_id, node.openings[0])
        assert not (await raw.end(1)).HasField("service_error")
        raw.stream.abort()


async def test_a_grpc_deadline_is_the_caller_s_time() -> None:
    """The function learns how long anybody waits for it."""
    node = Node(echo)
    async with asyncio.timeout(20), front(node, "f") as door:
        request = invocation_pb2.InvokeRequest(function_name="f")
        await door.stub.Invoke(request, metadata=METADATA, timeout=5)
        assert 0 < node.openings[-1].timeout_us <= 5_100_000  # gRPC rounds up
        await door.stub.Invoke(request, metadata=METADATA)
        assert node.openings[-1].timeout_us == 0


async def test_the_whole_payload_of_a_unary_call_counts_while_it_waits() -> None:
    """The bound on waiting bytes is one on memory: all of the request is held."""
    node = Node(silent)
    limits = Limits(waiting_bytes_per_function=500_000)
    async with asyncio.timeout(20), front(node, "f", limits=limits, memory_mib=128) as door:
        raw = await door.raw_session()
        await raw.send(1, open=opening("f", complete=True))
        await node.until(lambda: node.openings)
        request = invocation_pb2.InvokeRequest(function_name="f", payload=bytes(1_000_000))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await door.stub.Invoke(request, metadata=METADATA)
        error = from_rpc_error(raised.value)
        assert isinstance(error, errors.NoCapacityError)
        assert "bytes of payload" in error.message
        raw.stream.abort()


async def test_a_session_whose_answers_cannot_be_sent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller learns of a defect; silence would keep it waiting for ever."""

    async def write(frames: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(session_module, "FrameWriter", lambda _, calls_in_flight: FrameWriter(write, calls_in_flight))
    async with asyncio.timeout(20), front(Node(echo), "f") as door:
        raw = await door.raw_session()
        await raw.send(1, open=opening("f", complete=True))
        if front_module.SESSION_PORT:
            assert await raw.stream.read() is None
        else:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await raw.read()
            assert raised.value.code() is grpc.StatusCode.INTERNAL
        assert door.relay.dispatcher.in_flight == 0
