"""Percentiles and timed loops."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def percentile(values: list[float], percent: int) -> float:
    """Give the smallest of the values that at least `percent` in a hundred of them do not exceed (nearest rank).

    Raises:
        ValueError: There are no values, or `percent` is not in [1, 100].
    """
    if not values or not 1 <= percent <= 100:
        raise ValueError(f"percentile {percent} of {len(values)} values")
    rank = -(-percent * len(values) // 100)  # rounded up
    return sorted(values)[rank - 1]


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
