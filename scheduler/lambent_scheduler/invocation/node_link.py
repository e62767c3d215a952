"""The stream to one node: orders out, events in, batched both ways."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import grpc
import grpc.aio
import structlog

from lambent.errors import NodeLostError
from lambent.framing import FrameWriter
from lambent.v1 import frame_pb2, node_pb2, node_pb2_grpc
from lambent_common.grpc_server import CHANNEL_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from lambent_scheduler.invocation.relayed_call import RelayedCall

log = structlog.get_logger()

_ATTACH_TIMEOUT_S = 5.0
"""A node on the same network answers in milliseconds; one that needs longer than its lease is as good as gone."""

_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Waits between attempts to attach: quick at first, since a restarted agent is back within a second; then steady."""


class NodeEvents(Protocol):
    """Who hears what a node says."""

    def attached(self, link: NodeLink, welcome: node_pb2.Welcome) -> None:
        """The node takes orders."""

    def detached(self, link: NodeLink, error: NodeLostError) -> None:
        """The stream is lost; every call on it has to end."""

    def answer_ended(self, call: RelayedCall, end: frame_pb2.End) -> None:
        """A call is over."""

    def environment_ready(self, link: NodeLink, event: node_pb2.EnvironmentReady) -> None:
        """An environment can serve."""

    def environment_stopped(self, link: NodeLink, event: node_pb2.EnvironmentStopped) -> None:
        """An environment is gone or was refused."""


class NodeLink:
    """Keeps one stream to a node for as long as the node is in the cluster.

    Args:
        node_id: The node.
        address: host:port of its agent.
        token: The cluster's bearer token.
        scheduler_id: Identity of this scheduler.
        epoch: Gives the epoch of a partition that this scheduler owns.
        events: Hears what the node says, on the event loop.
    """

    def __init__(
        self,
        *,
        node_id: str,
        address: str,
        token: str,
        scheduler_id: str,
        epoch: Callable[[int], int],
        events: NodeEvents,
    ) -> None:
        self.node_id = node_id
        self.address = address
        self.epoch = epoch
        self.calls: dict[int, RelayedCall] = {}
        self.writer: FrameWriter[node_pb2.NodeOrder] = FrameWriter(self._write)
        self.status = node_pb2.NodeStatus()
        self.attached = False
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._scheduler_id = scheduler_id
        self._events = events
        self._last_call_id = 0
        self._stream: grpc.aio.StreamStreamCall[node_pb2.AttachRequest, node_pb2.AttachResponse] | None = None

    def next_call_id(self) -> int:
        """Give an id for a call on this stream."""
        self._last_call_id += 1
        return self._last_call_id

    async def run(self) -> None:
        """Attach, and attach again whenever the stream is lost, until cancelled."""
        attempt = 0
        async with grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS) as channel:
            stub = node_pb2_grpc.NodeServiceStub(channel)
            while True:
                was_attached = await self._attach_once(stub)
                attempt = 0 if was_attached else attempt + 1
                await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])

    async def _attach_once(self, stub: node_pb2_grpc.NodeServiceStub) -> bool:
        """Serve one stream to its end; True when the node had accepted it."""
        self._stream = stub.Attach(metadata=self._metadata)
        self.writer = FrameWriter(self._write)
        self.writer.send(node_pb2.NodeOrder(hello=node_pb2.Hello(scheduler_id=self._scheduler_id)))
        reason = "the node ended the stream"
        was_attached = False
        try:
            async with asyncio.TaskGroup() as halves:
                writing = halves.create_task(self.writer.run())
                async with asyncio.timeout(_ATTACH_TIMEOUT_S):
                    first = await self._stream.read()
                if isinstance(first, node_pb2.AttachResponse):
                    self.attached = was_attached = True
                    self._receive(first)
                    await self._read(self._stream)
                writing.cancel()
        except* grpc.aio.AioRpcError as errors:
            reason = _detail(errors)
        except* (TimeoutError, asyncio.InvalidStateError) as errors:
            reason = f"no answer from {self.address}: {errors.exceptions[0]!r}"
        finally:
            self.attached = False
            self._stream.cancel()
            if was_attached:
                self._events.detached(self, NodeLostError(f"node {self.node_id} is lost: {reason}", dispatched=True))
        log.warning("node_detached", node_id=self.node_id, address=self.address, reason=reason)
        return was_attached

    async def _read(self, stream: grpc.aio.StreamStreamCall[node_pb2.AttachRequest, node_pb2.AttachResponse]) -> None:
        while isinstance(response := await stream.read(), node_pb2.AttachResponse):
            self._receive(response)

    def _receive(self, response: node_pb2.AttachResponse) -> None:
        for event in response.events:
            kind = event.WhichOneof("event")
            if kind == "end":
                if (call := self.calls.pop(event.call_id, None)) is not None:
                    self._events.answer_ended(call, event.end)
            elif kind == "data":
                if (call := self.calls.get(event.call_id)) is not None:
                    call.reply.data(call, event.data.payload)
            elif kind == "window":
                if (call := self.calls.get(event.call_id)) is not None:
                    call.payload_granted(event.window.credit_bytes)
            elif kind == "environment_ready":
                self._events.environment_ready(self, event.environment_ready)
            elif kind == "environment_stopped":
                self._events.environment_stopped(self, event.environment_stopped)
            elif kind == "status":
                self.status = event.status
            elif kind == "welcome":
                self.status = event.welcome.status
                self._events.attached(self, event.welcome)

    async def _write(self, orders: list[node_pb2.NodeOrder]) -> None:
        assert self._stream is not None
        await self._stream.write(node_pb2.AttachRequest(orders=orders))


def _detail(errors: BaseExceptionGroup[grpc.aio.AioRpcError]) -> str:
    error = errors.exceptions[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{error.code().name}: {error.details()}"
