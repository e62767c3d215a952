"""What the scheduler says of cold starts to nodes and to metrics, over real streams."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from tests.invocation.front import Front, Node, echo, front, opening

from lambent.framing import FrameWriter
from lambent.v1 import frame_pb2, node_pb2
from lambent_scheduler.http.metrics import RelayCollector

PHASES = ("queue", "placement", "fetch_code", "sandbox", "runtime", "init")


class TimedNode(Node):
    """A node that says what its starts took: less than the way there and back, so that all of it can be true."""

    def _receive(self, writer: FrameWriter[node_pb2.NodeEvent], order: node_pb2.NodeOrder) -> None:
        if not order.HasField("start_environment"):
            super()._receive(writer, order)
            return
        ready = node_pb2.EnvironmentReady(
            environment_id=order.start_environment.environment_id,
            start_us=10,
            fetch_code_us=1,
            sandbox_us=2,
            runtime_us=3,
            init_us=4,
        )
        writer.send(node_pb2.NodeEvent(environment_ready=ready))


@dataclass
class HeldAnswer:
    """Answers when it is let."""

    let: list[tuple[FrameWriter[node_pb2.NodeEvent], int]] = field(default_factory=list)

    def __call__(
        self, node: Node, writer: FrameWriter[node_pb2.NodeEvent], call_id: int, opening: node_pb2.InvokeOpen
    ) -> None:
        """Keep the call."""
        self.let.append((writer, call_id))

    def answer(self) -> None:
        """Answer the oldest call that is kept."""
        writer, call_id = self.let.pop(0)
        end = frame_pb2.End(report=frame_pb2.InvocationReport(duration_us=1))
        writer.send(node_pb2.NodeEvent(call_id=call_id, end=end))


def total_us(phases: frame_pb2.ColdStartPhases) -> int:
    """The phases added up."""
    return sum(getattr(phases, f"{phase}_us") for phase in PHASES)


def exposed(door: Front) -> str:
    """The scheduler's metrics."""
    registry = CollectorRegistry()
    registry.register(RelayCollector(door.relay, door.invocations.sessions))
    return generate_latest(registry).decode()


async def test_the_first_call_of_an_environment_alone_carries_its_phases() -> None:
    """They add up to the wait; a warm call has not a field more than before, and no metric moves."""
    node = TimedNode(echo)
    async with asyncio.timeout(20), front(node, "f") as door:
        session = await door.session()
        for _ in range(2):
            await session.invoke(opening("f"), b"{}")
        await session.close()
        text = exposed(door)
    cold, warm = node.openings
    phases = cold.cold_start_phases
    assert (phases.fetch_code_us, phases.sandbox_us, phases.runtime_us, phases.init_us) == (1, 2, 3, 4)
    assert total_us(phases) == cold.queue_us
    assert not warm.HasField("cold_start_phases")
    for phase in PHASES:
        seconds = getattr(phases, f"{phase}_us") / 1e6
        assert f'lambent_cold_start_seconds_count{{phase="{phase}"}} 1.0' in text
        assert f'lambent_cold_start_seconds_sum{{phase="{phase}"}} {seconds!r}' in text


async def test_a_call_that_waits_for_memory_shows_it_as_queue() -> None:
    """Time before the order is neither the node's nor the network's."""
    held = HeldAnswer()
    node = TimedNode(held)
    async with asyncio.timeout(20), front(node, "f", "g", memory_mib=128) as door:
        session = await door.session()
        first = asyncio.create_task(session.invoke(opening("f"), b"{}"))
        await node.until(lambda: held.let)
        second = asyncio.create_task(session.invoke(opening("g"), b"{}"))
        while not door.relay.dispatcher.waiting_calls:  # noqa: ASYNC110 - a gauge tells nobody
            await asyncio.sleep(0)
        began = time.monotonic()
        await asyncio.to_thread(time.perf_counter)  # some time passes, however little
        waited_us = (time.monotonic() - began) * 1e6
        held.answer()
        await first
        await node.until(lambda: held.let)
        held.answer()
        await second
        await session.close()
    phases = node.openings[1].cold_start_phases
    assert phases.queue_us >= int(waited_us) > 0
    assert total_us(phases) == node.openings[1].queue_us


async def test_an_environment_of_a_scheduler_that_is_gone_has_no_phases() -> None:
    """Nobody here saw it start."""
    async with asyncio.timeout(20), front(TimedNode(echo), "f") as seen:
        session = await seen.session()
        await session.invoke(opening("f"), b"{}")
        await session.close()
        (spec,) = [environment.spec for environment in seen.relay.dispatcher._fleet.environments.values()]
    start = node_pb2.StartEnvironment(
        environment_id="held",
        account=spec.account,
        function_name=spec.function_name,
        version=spec.version,
        revision_id=spec.revision_id,
        memory_mib=spec.memory_mib,
    )
    held = node_pb2.HeldEnvironment(start=start)
    node = TimedNode(echo, welcome=node_pb2.Welcome(environments=[held]))
    async with asyncio.timeout(20), front(node, "f") as door:
        session = await door.session()
        await session.invoke(opening("f"), b"{}")
        await session.close()
    (adopted,) = node.openings
    assert adopted.environment_id == "held"
    assert not adopted.HasField("cold_start_phases")
