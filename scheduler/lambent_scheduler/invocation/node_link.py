"""The connection to one node: orders out, events in, batched both ways."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog

from lambent.errors import NodeLostError
from lambent.framing import FrameWriter
from lambent.message_stream import MessageStream, MessageStreamError, connect
from lambent.v1 import frame_pb2, node_pb2

if TYPE_CHECKING:
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
        """The connection is lost; every call on it has to end."""

    def answer_ended(self, call: RelayedCall, end: frame_pb2.End) -> None:
        """A call is over."""

    def environment_ready(self, link: NodeLink, event: node_pb2.EnvironmentReady) -> None:
        """An environment can serve."""

    def environment_spent(self, link: NodeLink, event: node_pb2.EnvironmentSpent) -> None:
        """An environment is to be stopped when it is idle."""

    def environment_stopped(self, link: NodeLink, event: node_pb2.EnvironmentStopped) -> None:
        """An environment is gone or was refused."""

    def status_changed(self, link: NodeLink) -> None:
        """The node says anew what is in use: `link.status`."""


class NodeLink:
    """Keeps one connection to a node for as long as the node is in the cluster.

    Args:
        node_id: The node.
        address: host:port of its agent.
        token: The cluster's token.
        scheduler_id: Identity of this scheduler.
        events: Hears what the node says, on the event loop.
    """

    def __init__(
        self,
        *,
        node_id: str,
        address: str,
        token: str,
        scheduler_id: str,
        events: NodeEvents,
    ) -> None:
        self.node_id = node_id
        self.address = address
        self.calls: dict[int, RelayedCall] = {}
        self.writer: FrameWriter[node_pb2.NodeOrder] = FrameWriter(self._write, lambda: len(self.calls))
        self.status = node_pb2.NodeStatus()
        self.attached = False
        self._hello = node_pb2.Hello(scheduler_id=scheduler_id, token=token)
        self._events = events
        self._last_call_id = 0
        self._stream: MessageStream[node_pb2.NodeOrder, node_pb2.EventBatch] | None = None

    def next_call_id(self) -> int:
        """Give an id for a call on this connection."""
        self._last_call_id += 1
        return self._last_call_id

    async def run(self) -> None:
        """Attach, and attach again whenever the connection is lost, until cancelled."""
        attempt = 0
        while True:
            was_attached = await self._attach_once()
            attempt = 0 if was_attached else attempt + 1
            await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])

    async def _attach_once(self) -> bool:
        """Serve one connection to its end; True when the node had accepted it."""
        reason = "the node closed the connection"
        try:
            self._stream = await connect(self.address, node_pb2.EventBatch.FromString, timeout_s=_ATTACH_TIMEOUT_S)
            self.writer = FrameWriter(self._write, lambda: len(self.calls))
            self.writer.send(node_pb2.NodeOrder(hello=self._hello))
            async with asyncio.TaskGroup() as halves:
                writing = halves.create_task(self.writer.run())
                await self._read(self._stream)
                writing.cancel()
        except* MessageStreamError as errors:
            reason = str(_first(errors))
        except* TimeoutError:
            reason = f"{self.address} does not say Welcome within {_ATTACH_TIMEOUT_S:g} s"
        except* Exception as errors:  # what one node brings about must not end the calls on the others
            reason = "the scheduler failed on what the node said"
            log.exception("node_link_failed", node_id=self.node_id, exc_info=errors)
        finally:
            if self._stream is not None:
                self._stream.abort()
            # A link that was taken from the pool meanwhile has said so itself.
            if was_attached := self.attached:
                self.attached = False
                self._events.detached(self, NodeLostError(f"node {self.node_id} is lost: {reason}", dispatched=True))
        log.warning("node_detached", node_id=self.node_id, address=self.address, reason=reason)
        return was_attached

    async def _read(self, stream: MessageStream[node_pb2.NodeOrder, node_pb2.EventBatch]) -> None:
        async with asyncio.timeout(_ATTACH_TIMEOUT_S):
            batch = await stream.read()
        while batch is not None:
            self._receive(batch)
            batch = await stream.read()

    def _receive(self, batch: node_pb2.EventBatch) -> None:
        for event in batch.events:
            kind = event.WhichOneof("event")
            if kind == "end":
                if (call := self.calls.pop(event.call_id, None)) is not None:
                    self._events.answer_ended(call, event.end)
            elif kind == "data":
                if (call := self.calls.get(event.call_id)) is not None:
                    call.answer_piece(event.data.payload)
            elif kind == "window":
                if (call := self.calls.get(event.call_id)) is not None:
                    call.payload_granted(event.window.credit_bytes)
            else:
                self._hear(event, kind)

    def _hear(self, event: node_pb2.NodeEvent, kind: str | None) -> None:
        """Pass on what is not part of an answer."""
        if kind == "environment_ready":
            self._events.environment_ready(self, event.environment_ready)
        elif kind == "environment_spent":
            self._events.environment_spent(self, event.environment_spent)
        elif kind == "environment_stopped":
            self._events.environment_stopped(self, event.environment_stopped)
        elif kind == "status":
            self.status = event.status
            self._events.status_changed(self)
        elif kind == "welcome":
            self.attached = True
            self.status = event.welcome.status
            self._events.attached(self, event.welcome)
        elif kind == "refusal":
            raise MessageStreamError(f"it refuses: {event.refusal.message}")

    async def _write(self, orders: list[node_pb2.NodeOrder]) -> None:
        assert self._stream is not None
        await self._stream.write(orders)


def _first(errors: BaseExceptionGroup[MessageStreamError]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
