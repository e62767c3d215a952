"""The answer of a streamed call, piece by piece."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from lambent import conversion, payloads
from lambent.errors import DeadlineExceededError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    from lambent.results import InvokeResult
    from lambent.v1 import frame_pb2


class ResponseStream:
    """Bytes as the function yields them; pieces may be merged or cut.

    Iterate it to the end, or use it as an async context manager to stop early: a stream that is closed before its end
    cancels the invocation. The call starts with the first read.

    Args:
        pieces: Bytes, then the END frame; a service error is raised.
        total_s: Bound of the whole stream, in seconds from the first read; None for none.
        silence_s: Bound of the wait for one piece when the whole has none.

    Attributes:
        result: The invocation's figures, with an empty payload; None before the end.
    """

    def __init__(
        self, pieces: AsyncGenerator[bytes | frame_pb2.End, None], *, total_s: float | None, silence_s: float
    ) -> None:
        self._pieces = pieces
        self._total_s = total_s
        self._silence_s = silence_s
        self._deadline = 0.0
        self.result: InvokeResult | None = None

    def __aiter__(self) -> ResponseStream:
        return self

    async def __anext__(self) -> bytes:
        """Give the next piece.

        Raises:
            FunctionError: The function failed; what came before is incomplete.
            DeadlineExceededError: `timeout_s` ran out.
            ServiceError: The call failed outside the function.
        """
        if self.result is not None:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout_at(self._until()):
                item = await anext(self._pieces)
        except TimeoutError as error:
            await self.aclose()
            raise DeadlineExceededError(
                "the stream did not end in time; the invocation was cancelled", dispatched=True
            ) from error
        if isinstance(item, bytes):
            return item
        self._end(item)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop reading; an invocation that still runs is cancelled."""
        await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _until(self) -> float:
        now = asyncio.get_running_loop().time()
        if self._total_s is None:
            return now + self._silence_s
        self._deadline = self._deadline or now + self._total_s
        return self._deadline

    def _end(self, end: frame_pb2.End) -> None:
        self.result = conversion.invoke_result(b"", end.report)
        if end.function_error:
            raise payloads.function_error(
                end.error_payload, request_id=end.report.request_id, log_tail=end.report.log_tail
            )
