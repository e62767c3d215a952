"""What schedulers attach to: takes their orders and tells them what happens on the node."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Final

import structlog

from lambent.errors import (
    InvalidParameterError,
    ServiceError,
    StaleEpochError,
    UnauthenticatedError,
    UnavailableError,
)
from lambent.framing import MAX_MESSAGE_BYTES
from lambent.message_stream import MessageStream, MessageStreamError
from lambent.rpc_errors import to_frame
from lambent.v1 import node_pb2
from lambent_node_agent.attachment import Attachment
from lambent_node_agent.environment.call import Call
from lambent_node_agent.epochs import EpochFence

if TYPE_CHECKING:
    from lambent_node_agent.node import Node

Stream = MessageStream[node_pb2.NodeEvent, node_pb2.OrderBatch]

log = structlog.get_logger(__name__)

_HELLO_TIMEOUT_S: Final = 5.0


class NodeService:
    """Turns orders into calls of the node, and the node's events into batches.

    Args:
        node: Whoever carries the orders out.
        token: What a scheduler must know; empty when the cluster asks for none.
    """

    def __init__(self, node: Node, token: str) -> None:
        self._node = node
        self._token = token.encode()
        self._fence = EpochFence()
        self._refused_epochs: dict[int, int] = {}  # by partition, the last one that was logged

    async def serve(self, stream: Stream) -> None:
        """Serve one scheduler until its connection ends."""
        try:
            first = await self._hello(stream)
        except (MessageStreamError, TimeoutError) as error:
            log.warning("no_hello", error=str(error))
            return
        except ServiceError as error:
            log.warning("scheduler_refused", error=error.message)
            await _refuse(stream, error)
            return
        attachment = Attachment(first.orders[0].hello.scheduler_id, stream.write)
        self._node.attach(attachment)
        writing = asyncio.create_task(attachment.writer.run())
        reading = asyncio.create_task(self._read(first, attachment, stream))
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._node.detach(attachment)
            reading.cancel()
            writing.cancel()
            await asyncio.wait((reading, writing))
        for half in (reading, writing):
            if half.cancelled() or (failure := half.exception()) is None:
                continue
            unexpected = None if isinstance(failure, MessageStreamError) else failure
            log.warning("scheduler_lost", scheduler_id=attachment.scheduler_id, error=str(failure), exc_info=unexpected)

    async def _hello(self, stream: Stream) -> node_pb2.OrderBatch:
        async with asyncio.timeout(_HELLO_TIMEOUT_S):
            first = await stream.read()
        if first is None:
            raise MessageStreamError("the peer closed the connection before it said Hello")
        if not first.orders or not first.orders[0].hello.scheduler_id:
            raise InvalidParameterError("the first order on a stream is Hello, with the scheduler's id")
        if not hmac.compare_digest(first.orders[0].hello.token.encode(), self._token):
            raise UnauthenticatedError("the scheduler's token is not this cluster's")
        stream.max_message_bytes = MAX_MESSAGE_BYTES
        return first

    async def _read(self, first: node_pb2.OrderBatch, attachment: Attachment, stream: Stream) -> None:
        batch: node_pb2.OrderBatch | None = first
        while batch is not None and not attachment.lost:
            for order in batch.orders:
                self._receive(order, attachment)
            await attachment.writer.wait_writable()
            batch = await stream.read()

    def _receive(self, order: node_pb2.NodeOrder, attachment: Attachment) -> None:
        kind = order.WhichOneof("order")
        if kind == "open":
            self._open(order, attachment)
        elif kind == "window":
            if (call := attachment.calls.get(order.call_id)) is not None:
                call.grant(order.window.credit_bytes)
        elif kind in ("data", "end"):
            self._payload(order, attachment)
        elif kind == "cancel":
            self._cancel(order, attachment)
        elif kind == "start_environment":
            self._start(order, attachment)
        elif kind == "stop_environment":
            self._stop(order, attachment)

    # Calls. A frame of a call that was accepted is not checked again: the call itself was.

    def _open(self, order: node_pb2.NodeOrder, attachment: Attachment) -> None:
        call = Call(order.call_id, order.open, attachment)
        try:
            self._check_epoch(order, attachment)
            attachment.calls.setdefault(order.call_id, call)
            self._advance(call, attachment)
        except ServiceError as error:
            call.fail(error)

    def _payload(self, order: node_pb2.NodeOrder, attachment: Attachment) -> None:
        call = attachment.calls.get(order.call_id)
        if call is None or call.ended or call.complete:
            return
        try:
            if order.HasField("data"):
                call.payload_piece(order.data.payload)
            else:
                call.payload_end(order.end.payload)
                self._advance(call, attachment)
        except ServiceError as error:
            call.fail(error)

    def _advance(self, call: Call, attachment: Attachment) -> None:
        """Run a call once its payload is complete."""
        environment = self._node.adopt(call.opening.environment_id, attachment)
        if environment is None:
            raise UnavailableError(f"the node has no environment {call.opening.environment_id}")
        if call.complete:
            environment.invoke(call)
        else:
            environment.expect(call)

    def _cancel(self, order: node_pb2.NodeOrder, attachment: Attachment) -> None:
        call = attachment.calls.get(order.call_id)
        if call is None:
            return
        if call.ended:
            call.discard_answer()
        elif (environment := self._node.environments.get(call.opening.environment_id)) is not None:
            environment.cancel(call)

    def _check_epoch(self, order: node_pb2.NodeOrder, attachment: Attachment) -> None:
        """Refuse the order of a scheduler that no longer owns the partition, and say so once for each epoch.

        Raises:
            StaleEpochError: The order's epoch is lower than one that was seen.
        """
        try:
            self._fence.check(order.partition, order.owner_epoch)
        except StaleEpochError as error:
            if self._refused_epochs.get(order.partition) != order.owner_epoch:
                self._refused_epochs[order.partition] = order.owner_epoch
                log.warning(
                    "stale_epoch",
                    scheduler_id=attachment.scheduler_id,
                    error=error.message,
                    hint="when etcd was made anew its revisions began again: then restart this agent",
                )
            raise

    # Environments

    def _start(self, order: node_pb2.NodeOrder, attachment: Attachment) -> None:
        try:
            self._check_epoch(order, attachment)
        except StaleEpochError as error:
            stopped = node_pb2.EnvironmentStopped(
                environment_id=order.start_environment.environment_id, reason="stale_epoch", message=error.message
            )
            attachment.send(node_pb2.NodeEvent(environment_stopped=stopped))
        else:
            self._node.start_environment(order.start_environment, attachment)

    def _stop(self, order: node_pb2.NodeOrder, attachment: Attachment) -> None:
        stop = order.stop_environment
        try:
            self._check_epoch(order, attachment)
        except StaleEpochError:
            return  # whoever owns the partition now decides about the environment
        environment = self._node.adopt(stop.environment_id, attachment)
        if environment is not None:
            environment.stop(stop.reason, drain=stop.drain)
        else:  # it has ended before; the scheduler holds its memory until it hears so
            stopped = node_pb2.EnvironmentStopped(environment_id=stop.environment_id, reason=stop.reason)
            attachment.send(node_pb2.NodeEvent(environment_stopped=stopped))


async def _refuse(stream: Stream, error: ServiceError) -> None:
    try:
        await stream.write([node_pb2.NodeEvent(refusal=to_frame(error))])
    except MessageStreamError as lost:
        log.warning("refusal_not_told", error=str(lost))
