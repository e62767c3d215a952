"""Percentiles and timed loops."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def percentile(values: list[float], share: float) -> float:
    """Give the value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def sequential_ms(call: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Time `count` calls one after another, in milliseconds each."""
    durations = []
    for _ in range(count):
        start = time.perf_counter()
        await call()
        durations.append((time.perf_counter() - start) * 1e3)
    return durations


async def rate_per_s(call: Callable[[], Awaitable[object]], *, in_flight: int, seconds: float) -> float:
    """Keep `in_flight` calls going for `seconds` and give how many ended per second."""
    stop_at = time.perf_counter() + seconds
    ended = 0

    async def worker() -> None:
        nonlocal ended
        while time.perf_counter() < stop_at:
            await call()
            ended += 1

    start = time.perf_counter()
    async with asyncio.TaskGroup() as workers:
        for _ in range(in_flight):
            workers.create_task(worker())
    return ended / (time.perf_counter() - start)
