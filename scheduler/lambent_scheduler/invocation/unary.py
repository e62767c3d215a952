"""Invoke and InvokeWithResponseStream for gRPC clients that do not speak frames."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lambent.errors import RequestTooLargeError
from lambent.framing import GRANT_AT_BYTES, INITIAL_CREDIT_BYTES, MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, PIECE_BYTES
from lambent.rpc_errors import from_frame
from lambent.v1 import frame_pb2, invocation_pb2
from lambent_scheduler.invocation.opening import LONGEST_WAIT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lambent_scheduler.invocation.relay import Relay
    from lambent_scheduler.invocation.relayed_call import RelayedCall

Request = invocation_pb2.InvokeRequest | invocation_pb2.InvokeWithResponseStreamRequest


class _QueuedReply:
    """Collects an answer for one task. What waits is bounded by the credit that the node was given."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[tuple[RelayedCall, bytes] | frame_pb2.End] = asyncio.Queue()
        self._granted = asyncio.Event()
        self.credit = INITIAL_CREDIT_BYTES

    def data(self, call: RelayedCall, payload: bytes) -> None:
        self._items.put_nowait((call, payload))

    def end(self, end: frame_pb2.End) -> None:
        self._items.put_nowait(end)

    def discard(self) -> None:
        while not self._items.empty():
            self._items.get_nowait()

    def window(self, credit_bytes: int) -> None:
        self.credit += credit_bytes
        self._granted.set()

    async def wait_credit(self) -> None:
        """Return at the next grant."""
        self._granted.clear()
        await self._granted.wait()

    async def items(self) -> AsyncIterator[bytes | frame_pb2.End]:
        """Give the pieces and then the END; taking a piece lets the node send more."""
        while True:
            item = await self._items.get()
            if isinstance(item, frame_pb2.End):
                yield item
                return
            call, payload = item
            yield payload
            call.answer_sent(len(payload))


async def invoke(
    relay: Relay, request: invocation_pb2.InvokeRequest, time_remaining_s: float | None
) -> invocation_pb2.InvokeResponse:
    """Run a function once and give its whole answer, for a caller who waits for so long; None waits for the function.

    Raises:
        ServiceError: The call failed outside the function.
    """
    pieces: list[bytes] = []
    async for item in _answer(relay, request, time_remaining_s, streaming=False):
        if isinstance(item, bytes):
            pieces.append(item)
            continue
        pieces.append(item.payload)
        return invocation_pb2.InvokeResponse(
            payload=item.error_payload if item.function_error else b"".join(pieces),
            function_error=item.function_error,
            report=item.report,
        )
    raise AssertionError("an answer ends with END")


async def invoke_with_response_stream(
    relay: Relay, request: invocation_pb2.InvokeWithResponseStreamRequest, time_remaining_s: float | None
) -> AsyncIterator[invocation_pb2.InvokeWithResponseStreamResponse]:
    """Run a function once and give its answer as it comes, for a caller who waits for so long.

    Raises:
        ServiceError: The call failed outside the function.
    """
    async for item in _answer(relay, request, time_remaining_s, streaming=True):
        if isinstance(item, bytes):
            yield invocation_pb2.InvokeWithResponseStreamResponse(payload_chunk=item)
            continue
        if item.payload:
            yield invocation_pb2.InvokeWithResponseStreamResponse(payload_chunk=item.payload)
        yield invocation_pb2.InvokeWithResponseStreamResponse(
            complete=invocation_pb2.InvokeComplete(
                function_error=item.function_error, error_payload=item.error_payload, report=item.report
            )
        )


async def _answer(
    relay: Relay, request: Request, time_remaining_s: float | None, *, streaming: bool
) -> AsyncIterator[bytes | frame_pb2.End]:
    """Open the call, feed its payload as credit comes, and give the answer; END comes last and never with an error."""
    payload = request.payload
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise RequestTooLargeError(
            f"Request must be smaller than {MAX_PAYLOAD_BYTES} bytes for the InvokeFunction operation; "
            f"this one has {len(payload)}"
        )
    reply = _QueuedReply()
    relayed = relay.open(
        invocation_pb2.InvocationOpen(
            account=request.account,
            function_name=request.function_name,
            qualifier=request.qualifier,
            timeout_us=0 if time_remaining_s is None else max(1, int(min(time_remaining_s, LONGEST_WAIT_S) * 1e6)),
            log_tail=request.log_tail,
            streaming=streaming,
            traceparent=request.traceparent,
            client_context=request.client_context,
            payload=payload[:MAX_FRAME_BYTES],
            complete=len(payload) <= MAX_FRAME_BYTES,
        ),
        reply,
        held_bytes=len(payload),
    )
    ended = False
    feeding = asyncio.create_task(_feed(relayed, reply, payload)) if relayed and not relayed.payload_complete else None
    try:
        async for item in reply.items():
            if isinstance(item, frame_pb2.End):
                ended = True
                if item.HasField("service_error"):
                    raise from_frame(item.service_error)
            yield item
    finally:
        if feeding is not None:
            feeding.cancel()
        if relayed is not None and not ended:
            relay.leave(relayed)


async def _feed(relayed: RelayedCall, reply: _QueuedReply, payload: bytes) -> None:
    """Send the rest of a long payload, never faster than its credit."""
    start = MAX_FRAME_BYTES
    while start < len(payload):
        while reply.credit < GRANT_AT_BYTES:
            await reply.wait_credit()
        piece = payload[start : start + min(reply.credit, PIECE_BYTES)]
        reply.credit -= len(piece)
        relayed.payload_piece(piece)
        start += len(piece)
    relayed.payload_end(b"")
