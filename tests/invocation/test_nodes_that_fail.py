"""Nodes that come back, drain, refuse or bring the scheduler to fail: calls go on elsewhere, and nothing is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.invocation.front import Node, RawSession, echo, front, opening, refuse, silent

from lambent import errors
from lambent.framing import FrameWriter
from lambent.rpc_errors import from_frame
from lambent.v1 import frame_pb2, node_pb2, record_pb2
from lambent_common import keys
from lambent_common.etcd import Changes, Delete, KeyValue, Put
from lambent_common.records import encode
from lambent_scheduler.core.limits import Limits
from lambent_scheduler.invocation.relay import Relay


def _held(name: str, environment_id: str, *, revision_id: str = "", busy: bool = False) -> node_pb2.HeldEnvironment:
    start = node_pb2.StartEnvironment(
        environment_id=environment_id,
        account="default",
        function_name=name,
        version="$LATEST",
        revision_id=revision_id or f"revision of {name}",
    )
    return node_pb2.HeldEnvironment(start=start, busy=busy)


async def test_environments_of_an_earlier_scheduler_serve_and_the_superseded_stop() -> None:
    """A restart of the scheduler costs no cold start; a busy one is free when the node says so."""
    held = [_held("f", "idle"), _held("g", "busy", busy=True), _held("f", "old", revision_id="before")]
    node = Node(echo, welcome=node_pb2.Welcome(node_id="n-1", environments=held))
    async with asyncio.timeout(20), front(node, "f", "g") as door:
        session = await door.session()
        assert (await session.invoke(opening("f"), b"1"))[0] == b"1"
        assert node.openings[-1].environment_id == "idle"
        assert node.writer is not None
        node.writer.send(node_pb2.NodeEvent(environment_ready=node_pb2.EnvironmentReady(environment_id="busy")))
        await session.invoke(opening("g"), b"")
        assert [opened.environment_id for opened in node.openings] == ["idle", "busy"]
        assert node.started == []
        stops = [order for order in node.orders if order.HasField("stop_environment")]
        assert [(stop.stop_environment.environment_id, stop.stop_environment.drain) for stop in stops] == [
            ("old", True)
        ]
        assert stops[0].partition == keys.partition_of("default", "f")
        await session.close()


async def test_what_others_reserved_on_a_node_is_not_asked_of_it() -> None:
    """The scheduler evicts its own instead of asking for memory that the node does not have."""
    reserved = {"memory_mib": 128, "cpu_millis": 72}
    node = Node(echo, welcome=node_pb2.Welcome(status=node_pb2.NodeStatus(reserved=reserved)))
    async with asyncio.timeout(20), front(node, "f", "g", memory_mib=256) as door:
        session = await door.session()
        await session.invoke(opening("f"), b"")
        await session.invoke(opening("g"), b"")
        assert [stop.reason for stop in node.stops] == ["evicted"]
        assert node.writer is not None
        node.writer.send(node_pb2.NodeEvent(status=node_pb2.NodeStatus(reserved=reserved)))
        await session.invoke(opening("g"), b"")
        node.writer.send(node_pb2.NodeEvent(status=node_pb2.NodeStatus(reserved={"memory_mib": 128})))
        await session.invoke(opening("f"), b"")
        assert len(node.stops) == 1, "the other's memory is free, and nothing had to go"
        await session.close()


async def test_a_node_that_says_it_drains_gets_nothing_more() -> None:
    """An agent can drain while etcd is away."""
    node = Node(echo)
    limits = Limits(max_queue_wait_s=0.2)
    async with asyncio.timeout(20), front(node, "f", limits=limits) as door:
        session = await door.session()
        await session.invoke(opening("f"), b"")
        assert node.writer is not None
        node.writer.send(node_pb2.NodeEvent(status=node_pb2.NodeStatus(draining=True)))
        await node.until(lambda: node.stops)
        assert node.stops[0].reason == "shutdown"
        _, end = await session.invoke(opening("f"), b"")
        assert isinstance(from_frame(end.service_error), errors.NoCapacityError)
        await session.close()


async def test_an_environment_that_dies_takes_no_call_with_it() -> None:
    """What it would not take is served by others, and its callers do not notice."""
    dying: set[str] = set()

    def answer(node: Node, writer: FrameWriter[node_pb2.NodeEvent], call_id: int, open_: node_pb2.InvokeOpen) -> None:
        if not dying:
            dying.add(open_.environment_id)
        if open_.environment_id in dying:
            refuse(writer, call_id)
        else:
            echo(node, writer, call_id, open_)

    node = Node(answer)
    async with asyncio.timeout(20), front(node, "f", memory_mib=256) as door:
        session = await door.session()
        answers = await asyncio.gather(*(session.invoke(opening("f"), str(n).encode()) for n in range(20)))
        assert [payload for payload, _ in answers] == [str(n).encode() for n in range(20)]
        assert [stop.environment_id for stop in node.stops] == list(dying)
        assert door.relay.dispatcher.in_flight == 0
        await session.close()


async def test_a_call_that_no_environment_takes_ends_with_the_refusal() -> None:
    """A node that refuses everything does not keep a call for ever; the caller may send it again elsewhere."""

    def answer(node: Node, writer: FrameWriter[node_pb2.NodeEvent], call_id: int, open_: node_pb2.InvokeOpen) -> None:
        refuse(writer, call_id)

    node = Node(answer)
    async with asyncio.timeout(20), front(node, "f") as door:
        session = await door.session()
        _, end = await session.invoke(opening("f"), b"")
        error = from_frame(end.service_error)
        assert isinstance(error, errors.UnavailableError)
        assert not error.dispatched
        assert len(node.openings) == Limits().start_attempts
        assert door.relay.dispatcher.in_flight == 0
        await session.close()


async def test_a_defect_that_one_node_brings_about_costs_its_calls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node is attached again, and nothing waits for an answer that cannot come."""
    failures = [ValueError("a defect")]
    ready = Relay.environment_ready

    def environment_ready(relay: Relay, *event: Any) -> None:
        if failures:
            raise failures.pop()
        ready(relay, *event)

    monkeypatch.setattr(Relay, "environment_ready", environment_ready)
    node = Node(echo)
    async with asyncio.timeout(20), front(node, "f") as door:
        session = await door.session()
        assert (await session.invoke(opening("f"), b"1"))[0] == b"1"
        assert len(node.started) == 2
        await session.close()


async def test_function_errors_of_any_size_fit_their_messages() -> None:
    """Error JSON counts towards a batch: a hundred failures at once do not break the caller's stream."""
    error_payload = bytes(256 * 1024)
    count = 100

    def fail(node: Node, writer: FrameWriter[node_pb2.NodeEvent], call_id: int, open_: node_pb2.InvokeOpen) -> None:
        end = frame_pb2.End(function_error="Unhandled", error_payload=error_payload)
        writer.send(node_pb2.NodeEvent(call_id=call_id, end=end), len(error_payload))

    async with asyncio.timeout(30), front(Node(fail), "f") as door:
        raw = await door.raw_session()
        for call_id in range(1, count + 1):
            await raw.send(call_id, open=opening("f", complete=True))
        for _ in range(count):
            await door.relay.ends.get()
        for call_id in range(1, count + 1):
            assert len((await raw.end(call_id)).error_payload) == len(error_payload)
        raw.stream.abort()


@pytest.mark.parametrize(
    ("name", "qualifier", "shown"),
    [
        ("f", "", "f"),
        ("f:$LATEST", "", "f:$LATEST"),
        ("f", "$LATEST", "f:$LATEST"),
        ("arn:aws:lambda:us-east-1:default:function:f:$LATEST", "", "f:$LATEST"),
    ],
)
async def test_the_invoked_arn_has_the_qualifier_however_it_was_given(name: str, qualifier: str, shown: str) -> None:
    """context.invoked_function_arn names what the caller named (AWS Lambda)."""
    node = Node(echo)
    async with asyncio.timeout(20), front(node, "f") as door:
        session = await door.session()
        await session.invoke(opening(name, qualifier=qualifier), b"")
        assert node.openings[-1].invoked_function_arn == f"arn:aws:lambda:us-east-1:default:function:{shown}"
        await session.close()


async def test_a_new_reservation_leaves_the_others_their_share_at_once() -> None:
    """Calls in flight move to the function's own pool, though it is not called again."""
    node = Node(silent)
    async with asyncio.timeout(20), front(node, "f", "g", limits=Limits(account_concurrency=3)) as door:
        raw = await door.raw_session()
        for call_id in (1, 2):
            await raw.send(call_id, open=opening("f", complete=True))
        await node.until(lambda: len(node.openings) == 2)
        reserved = encode(record_pb2.ReservedConcurrencyRecord(reserved_concurrent_executions=2))
        total = encode(record_pb2.AccountReservationRecord(reserved_concurrent_executions=2))
        door.functions.apply(
            Changes(
                10,
                [
                    Put(KeyValue(keys.function_concurrency("default", "f"), reserved, 10, 10, 0)),
                    Put(KeyValue(keys.account_reserved("default"), total, 10, 10, 0)),
                ],
            )
        )
        node.answer = echo
        await raw.send(3, open=opening("g", complete=True))
        assert not (await raw.end(3)).HasField("service_error")
        raw.stream.abort()


async def _received(raw: RawSession) -> None:
    """Wait until the scheduler has taken every frame of a session so far."""
    await raw.send(99, open=opening("unknown", complete=True))
    await raw.end(99)


async def test_calls_that_wait_for_a_deleted_function_end_at_once() -> None:
    """No environment is made for what exists no more."""
    node = Node(silent)
    async with asyncio.timeout(20), front(node, "f", memory_mib=128) as door:
        raw = await door.raw_session()
        for call_id in (1, 2):
            await raw.send(call_id, open=opening("f", complete=True))
        await _received(raw)
        await node.until(lambda: node.openings)
        door.functions.apply(Changes(10, [Delete(keys.function_latest("default", "f"), 10)]))
        assert isinstance(from_frame((await raw.end(2)).service_error), errors.FunctionNotFoundError)
        raw.stream.abort()


async def test_a_scheduler_that_stops_sends_away_who_waits_and_waits_for_who_runs() -> None:
    """What has not run can run elsewhere at once; a drain lasts as long as the last call, lost nodes included."""
    node = Node(silent)
    async with asyncio.timeout(20), front(node, "f", memory_mib=128) as door:
        raw = await door.raw_session()
        for call_id in (1, 2):
            await raw.send(call_id, open=opening("f", complete=True))
        await _received(raw)
        await node.until(lambda: node.openings)
        stopping = asyncio.create_task(door.relay.stop(900))
        error = from_frame((await raw.end(2)).service_error)
        assert isinstance(error, errors.UnavailableError)
        assert not error.dispatched
        assert not stopping.done()
        await door.node_server.stop()
        lost = from_frame((await raw.end(1)).service_error)
        assert isinstance(lost, errors.NodeLostError)
        assert lost.message == "node n-1 is lost: the node closed the connection"
        await stopping
        raw.stream.abort()


async def test_calls_that_outlast_the_drain_are_told_that_the_scheduler_stopped() -> None:
    """The node is well, and the function may go on: nobody looks for the fault there."""
    node = Node(silent)
    async with asyncio.timeout(20), front(node, "f") as door:
        raw = await door.raw_session()
        await raw.send(1, open=opening("f", complete=True))
        await node.until(lambda: node.openings)
        await door.relay.stop(0)
        error = from_frame((await raw.end(1)).service_error)
        assert type(error) is errors.UnavailableError
        assert error.dispatched
        assert error.message == "the scheduler stopped before the function had answered; it may still run"
        assert door.relay.dispatcher.in_flight == 0
        raw.stream.abort()
