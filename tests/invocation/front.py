"""A scheduler's invocation path over real sockets, with nodes that answer from this process instead of sandboxes.

What is left out is etcd and the agents: the functions are applied to the table directly, and a node is a real
message server that answers by the name of the function.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration

from lambent.connection import Connection
from lambent.endpoint import Endpoint
from lambent.errors import CancelledError, UnavailableError
from lambent.framing import GRANT_AT_BYTES, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, Body, FrameWriter
from lambent.message_stream import MessageStream
from lambent.rpc_errors import to_frame
from lambent.session import Session
from lambent.session_stream import SessionStream, open_stream
from lambent.v1 import (
    frame_pb2,
    function_pb2,
    invocation_pb2,
    invocation_pb2_grpc,
    node_pb2,
    record_pb2,
)
from lambent_common import keys
from lambent_common.etcd import KeyValue, Snapshot
from lambent_common.grpc_server import GrpcServer
from lambent_common.message_server import MessageServer
from lambent_common.records import encode
from lambent_scheduler.core.dispatch import Dispatcher
from lambent_scheduler.core.limits import Limits
from lambent_scheduler.functions.names import Naming
from lambent_scheduler.functions.table import FunctionTable
from lambent_scheduler.invocation.node_link import NodeLink
from lambent_scheduler.invocation.relay import Relay
from lambent_scheduler.invocation.relayed_call import RelayedCall
from lambent_scheduler.invocation.service import InvocationServicer

TOKEN = "secret"
METADATA = (("authorization", f"Bearer {TOKEN}"),)

SESSION_PORT = True
"""False leaves sessions to gRPC."""

Answer = Callable[["Node", FrameWriter[node_pb2.NodeEvent], int, node_pb2.InvokeOpen], None]


@dataclass
class Node:
    """Serves a scheduler as a node agent does: environments are ready at once, calls are answered by `answer`."""

    answer: Answer
    node_id: str = "n-1"
    welcome: node_pb2.Welcome = field(default_factory=node_pb2.Welcome)
    bodies: dict[int, Body[node_pb2.NodeEvent]] = field(default_factory=dict)
    ungranted: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    started: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    received: dict[int, bytearray] = field(default_factory=dict)
    openings: list[node_pb2.InvokeOpen] = field(default_factory=list)
    orders: list[node_pb2.NodeOrder] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    writer: FrameWriter[node_pb2.NodeEvent] | None = None

    @property
    def stops(self) -> list[node_pb2.StopEnvironment]:
        """Orders to end an environment."""
        return [order.stop_environment for order in self.orders if order.HasField("stop_environment")]

    def count_sent(self, size: int) -> None:
        """A piece of an answer has left."""
        self.sent_bytes += size
        self.changed.set()

    async def until(self, fact: Callable[[], object]) -> None:
        """Wait until something that the node has seen makes the fact true."""
        while not fact():
            self.changed.clear()
            await self.changed.wait()

    async def serve(self, stream: MessageStream[node_pb2.NodeEvent, node_pb2.OrderBatch]) -> None:
        """Serve one scheduler."""
        stream.max_message_bytes = MAX_MESSAGE_BYTES
        writer: FrameWriter[node_pb2.NodeEvent] = FrameWriter(stream.write)
        self.writer = writer
        writer.send(node_pb2.NodeEvent(welcome=self.welcome))
        writing = asyncio.create_task(writer.run())
        try:
            while (batch := await stream.read()) is not None:
                for order in batch.orders:
                    self._receive(writer, order)
                self.changed.set()
        finally:
            writing.cancel()

    def _receive(self, writer: FrameWriter[node_pb2.NodeEvent], order: node_pb2.NodeOrder) -> None:
        kind = order.WhichOneof("order")
        if kind == "start_environment":
            self.started.append(order.start_environment.environment_id)
            ready = node_pb2.EnvironmentReady(environment_id=order.start_environment.environment_id)
            writer.send(node_pb2.NodeEvent(environment_ready=ready))
        elif kind == "stop_environment":
            self.orders.append(order)
            stopped = node_pb2.EnvironmentStopped(environment_id=order.stop_environment.environment_id)
            writer.send(node_pb2.NodeEvent(environment_stopped=stopped))
        elif kind == "open":
            self.received[order.call_id] = bytearray(order.open.payload)
            self.openings.append(order.open)
            if order.open.complete:
                self.answer(self, writer, order.call_id, order.open)
        elif kind == "data":
            self.received[order.call_id] += order.data.payload
            self.ungranted[order.call_id] += len(order.data.payload)
            if self.ungranted[order.call_id] >= GRANT_AT_BYTES:
                window = frame_pb2.Window(credit_bytes=self.ungranted.pop(order.call_id))
                writer.send(node_pb2.NodeEvent(call_id=order.call_id, window=window))
        elif kind == "end":
            self.answer(self, writer, order.call_id, self.openings[-1])
        elif kind == "window" and (body := self.bodies.get(order.call_id)) is not None:
            body.grant(order.window.credit_bytes)
        else:
            self.orders.append(order)
            if kind == "cancel" and (body := self.bodies.pop(order.call_id, None)) is not None:
                body.abandon()
                error = to_frame(CancelledError("cancelled", dispatched=True))
                writer.send(node_pb2.NodeEvent(call_id=order.call_id, end=frame_pb2.End(service_error=error)))


def echo(node: Node, writer: FrameWriter[node_pb2.NodeEvent], call_id: int, opening: node_pb2.InvokeOpen) -> None:
    """Answer with the payload."""
    payload = bytes(node.received.pop(call_id))
    report = frame_pb2.InvocationReport(request_id=opening.request_id, queue_us=opening.queue_us)
    if len(payload) <= MAX_FRAME_BYTES:
        writer.send(node_pb2.NodeEvent(call_id=call_id, end=frame_pb2.End(payload=payload, report=report)))
    else:
        _flow(node, writer, call_id, report, [payload])


def flowing(*sizes: int) -> Answer:
    """Answer with pieces of these sizes, as fast as credit comes, and with END behind them."""

    def answer(node: Node, writer: FrameWriter[node_pb2.NodeEvent], call_id: int, opening: node_pb2.InvokeOpen) -> None:
        report = frame_pb2.InvocationReport(request_id=opening.request_id, duration_us=1)
        _flow(node, writer, call_id, report, [bytes(size) for size in sizes])

    return answer


def _flow(
    node: Node,
    writer: FrameWriter[node_pb2.NodeEvent],
    call_id: int,
    report: frame_pb2.InvocationReport,
    pieces: list[bytes],
) -> None:
    body = Body(
        writer,
        lambda piece: node_pb2.NodeEvent(call_id=call_id, data=frame_pb2.Data(payload=piece)),
        node.count_sent,
    )
    node.bodies[call_id] = body
    for piece in pieces:
        body.push(piece)
    body.finish(node_pb2.NodeEvent(call_id=call_id, end=frame_pb2.End(report=report)))


def refuse(writer: FrameWriter[node_pb2.NodeEvent], call_id: int) -> None:
    """Answer as an environment does that is ending."""
    error = to_frame(UnavailableError("the environment takes no invocation: it has ended"))
    writer.send(node_pb2.NodeEvent(call_id=call_id, end=frame_pb2.End(service_error=error)))


def silent(node: Node, writer: FrameWriter[node_pb2.NodeEvent], call_id: int, opening: node_pb2.InvokeOpen) -> None:
    """Never answer."""


def table(*names: str) -> FunctionTable:
    """Give a table with ACTIVE functions of 128 MiB."""
    functions = FunctionTable(Naming("us-east-1"))
    items = []
    for revision, name in enumerate(names, start=1):
        function = function_pb2.Function(
            function_name=name,
            version="$LATEST",
            runtime="python3.11",
            handler="app.handler",
            memory_mib=128,
            ephemeral_storage_mib=512,
            timeout=Duration(seconds=3),
            revision_id=f"revision of {name}",
            state=function_pb2.FUNCTION_STATE_ACTIVE,
        )
        value = encode(record_pb2.FunctionRecord(function=function, next_version=1))
        items.append(KeyValue(keys.function_latest("default", name), value, revision, revision, 0))
    functions.apply(Snapshot(revision=len(items), items=items))
    return functions


class ObservedRelay(Relay):
    """Tells when its node is attached, and when a call is over or back in the queue."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.node_attached = asyncio.Event()
        self.ends: asyncio.Queue[RelayedCall] = asyncio.Queue()

    def answer_ended(self, call: RelayedCall, end: frame_pb2.End) -> None:
        """Pass it on."""
        super().answer_ended(call, end)
        self.ends.put_nowait(call)

    def attached(self, link: NodeLink, welcome: node_pb2.Welcome) -> None:
        """Pass it on."""
        super().attached(link, welcome)
        self.node_attached.set()


@dataclass
class Front:
    """A running front door."""

    relay: ObservedRelay
    functions: FunctionTable
    invocations: InvocationServicer
    connection: Connection
    node_server: MessageServer[node_pb2.NodeEvent, node_pb2.OrderBatch]

    @property
    def stub(self) -> invocation_pb2_grpc.InvocationServiceStub:
        """Give a stub of InvocationService."""
        return invocation_pb2_grpc.InvocationServiceStub(self.connection.channel)

    async def session(self) -> Session:
        """Open a session."""
        return Session(await self._stream())

    async def raw_session(self) -> RawSession:
        """Open a session whose frames the test writes itself."""
        return RawSession(await self._stream())

    async def _stream(self) -> SessionStream:
        stream = await open_stream(self.connection)
        assert isinstance(stream, MessageStream) == SESSION_PORT
        return stream


@dataclass
class RawSession:
    """A caller that keeps to no rule but what the test does."""

    stream: SessionStream
    frames: list[invocation_pb2.SessionResponseFrame] = field(default_factory=list)

    async def send(self, call_id: int, **frame: Any) -> None:
        """Send one frame."""
        request = invocation_pb2.SessionRequestFrame(call_id=call_id, **frame)
        await self.stream.write([request])

    async def end(self, call_id: int) -> frame_pb2.End:
        """Wait for the END of a call; what came before it stays in `frames`."""
        while True:
            for frame in self.frames:
                if frame.call_id == call_id and frame.HasField("end"):
                    self.frames.remove(frame)
                    return frame.end
            await self.read()

    async def read(self) -> None:
        """Wait for more frames."""
        response = await self.stream.read()
        assert response is not None
        self.frames.extend(response.frames)

    def data_bytes(self, call_id: int) -> int:
        """Give how much of an answer has come in pieces."""
        return sum(len(frame.data.payload) for frame in self.frames if frame.call_id == call_id)


@contextlib.asynccontextmanager
async def front(
    node: Node, *names: str, limits: Limits | None = None, memory_mib: int = 65_536, **options: Any
) -> AsyncIterator[Front]:
    """Run a front door with one node inside the block."""
    node_server = MessageServer(node_pb2.OrderBatch.FromString, node.serve)
    node_port = await node_server.start("127.0.0.1:0")
    functions = table(*names)
    relay = ObservedRelay(
        dispatcher=Dispatcher(limits or Limits(), seed=1),
        functions=functions,
        epoch=lambda partition: 1,
        scheduler_id="s-1",
        token=TOKEN,
        **options,
    )
    server = GrpcServer(token=TOKEN, services=())
    invocations = InvocationServicer(relay)
    invocation_pb2_grpc.add_InvocationServiceServicer_to_server(invocations, server.server)
    if SESSION_PORT:
        await invocations.session_port.start("127.0.0.1:0")
    connection = Connection(Endpoint(f"127.0.0.1:{await server.start('127.0.0.1:0')}", TOKEN))
    relay.node_seen(
        record_pb2.NodeRecord(
            node_id=node.node_id,
            address=f"127.0.0.1:{node_port}",
            capacity={"memory_mib": memory_mib, "cpu_millis": 64_000, "disk_mib": 1_000_000},
            runtimes=["python3.11"],
        )
    )
    ticking = asyncio.create_task(relay.tick())
    try:
        async with asyncio.timeout(10):
            await relay.node_attached.wait()
        yield Front(relay, functions, invocations, connection, node_server)
    finally:
        await connection.close()
        ticking.cancel()
        await relay.stop(0)
        await invocations.session_port.stop(0)
        await server.stop(0)
        await node_server.stop()


def opening(name: str, **fields: Any) -> invocation_pb2.InvocationOpen:
    """Give the opening of a call."""
    return invocation_pb2.InvocationOpen(function_name=name, **fields)
