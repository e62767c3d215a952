"""Many invocations at once: bounded in flight, bounded in memory, in order or as they end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Sized
from typing import TYPE_CHECKING, Self

from lambent.errors import InvalidParameterError, LambentError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from types import TracebackType

    from lambent.results import InvokeResult

    Outcome = InvokeResult | LambentError
    MapProgress = Callable[[int, int | None], None]

_WINDOW_PER_CALL = 4
"""Answers that may wait for an earlier one, per call in flight: a slow call does not stop the others at once, and an
endless map holds a bounded number of answers."""


class MapRun:
    """One map under way. Each of `concurrency` workers takes a payload, calls, and puts the answer where it belongs.

    Use it as an async context manager: leaving it cancels what is in flight.

    Args:
        call: Invokes the function once.
        payloads: Taken one by one as calls start; iterated on the event loop, so an iterable that blocks should be an
            async one.
        concurrency: Most calls in flight.
        ordered: True to give answers in the order of the payloads, False as they come.
        on_progress: Called after each answer with the number of answers and the number of payloads (None if unknown).
    """

    def __init__(
        self,
        call: Callable[[object], Awaitable[InvokeResult]],
        payloads: Iterable[object] | AsyncIterable[object],
        *,
        concurrency: int,
        ordered: bool,
        on_progress: MapProgress | None,
    ) -> None:
        if concurrency < 1:
            raise InvalidParameterError(f"concurrency is {concurrency}; a map needs at least 1")
        self._call = call
        self._payloads: AsyncIterator[object] = aiter(
            payloads if isinstance(payloads, AsyncIterable) else _Stepwise(payloads)
        )
        self._total = len(payloads) if isinstance(payloads, Sized) else None
        self._ordered = ordered
        self._on_progress = on_progress
        self._concurrency = concurrency
        self._window = asyncio.Semaphore(concurrency * _WINDOW_PER_CALL)
        self._taking = asyncio.Lock()
        self._taken = 0
        self._ended = 0
        self._ready: deque[Outcome] = deque()
        self._early: dict[int, Outcome] = {}
        self._next_index = 0
        self._arrived = asyncio.Event()
        self._in_flight = 0
        self._failure: Exception | None = None
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        workers = self._concurrency if self._total is None else min(self._concurrency, self._total)
        self._workers = [asyncio.create_task(self._work(), name="map-worker") for _ in range(workers)]
        for worker in self._workers:
            worker.add_done_callback(lambda _: self._arrived.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def next_batch(self) -> list[Outcome]:
        """Wait for at least one outcome and give all that are ready; an empty list is the end.

        Raises:
            Exception: What the payloads' iterator or `on_progress` raised, once every call that was under way was
                given. No further call is made.
        """
        while not self._ready:
            if self._failure is not None and not self._in_flight:
                raise self._failure
            if all(worker.done() for worker in self._workers):
                return []
            self._arrived.clear()
            await self._arrived.wait()
        batch = list(self._ready)
        self._ready.clear()
        for _ in batch:
            self._window.release()
        return batch

    async def _work(self) -> None:
        try:
            while self._failure is None:
                await self._window.acquire()
                async with self._taking:
                    if self._failure is not None:
                        return
                    try:
                        payload = await anext(self._payloads)
                    except StopAsyncIteration:
                        return
                    index = self._taken
                    self._taken += 1
                await self._run_one(index, payload)
        except Exception as error:  # noqa: BLE001 - raised to the caller by next_batch
            self._failure = self._failure or error

    async def _run_one(self, index: int, payload: object) -> None:
        self._in_flight += 1
        try:
            outcome: Outcome = await self._call(payload)
        except LambentError as error:
            outcome = error
        finally:
            self._in_flight -= 1
        self._put(index, outcome)

    def _put(self, index: int, outcome: Outcome) -> None:
        self._ended += 1
        if not self._ordered:
            self._ready.append(outcome)
        else:
            self._early[index] = outcome
            while self._next_index in self._early:
                self._ready.append(self._early.pop(self._next_index))
                self._next_index += 1
        if self._on_progress is not None:
            self._on_progress(self._ended, self._total)
        if self._ready:
            self._arrived.set()


class _Stepwise:
    """An ordinary iterable as an asynchronous one."""

    def __init__(self, items: Iterable[object]) -> None:
        self._items = iter(items)

    def __aiter__(self) -> _Stepwise:
        return self

    async def __anext__(self) -> object:
        for item in self._items:
            return item
        raise StopAsyncIteration
