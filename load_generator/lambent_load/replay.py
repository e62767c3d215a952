"""Functions that stand for those of a trace: deployed before the replay, removed after it however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import io
import zipfile
from collections import deque
from typing import TYPE_CHECKING

import click

from lambent.errors import InvalidParameterError, ResourceNotFoundError, ServiceError
from lambent_load.traced import memory_mib

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lambent.client import AsyncClient
    from lambent_load.traced import Replay

WORK = ("sleep", "spin")
"""What a stand-in does for its run time: sleep as one that waits for others, or spin as one that computes."""

_HANDLERS = b"""
import time

def sleep(event, context):
    time.sleep(event["run_ms"] / 1000)

def spin(event, context):
    until = time.perf_counter() + event["run_ms"] / 1000
    while time.perf_counter() < until:
        pass
"""

DESCRIPTION = "Stands for a function of a trace; made and removed by `lambent load replay`."

_AT_ONCE = 8
"""Deployments and removals in flight."""

_SPARE_S = 5
"""Of a function's timeout above its longest run, for a busy machine."""

_LONGEST_TIMEOUT_S = 900
"""AWS Lambda quotas."""


class StandIns:
    """The functions of one replay.

    Args:
        replay: Names the trace and the prefix.
        work: One of WORK.
        memory: Of every function in MiB; None means what the trace has.
    """

    def __init__(self, replay: Replay, work: str, memory: int | None) -> None:
        self._replay = replay
        self._work = work
        self._memory_mib = memory
        self._names = replay.names()

    @contextlib.asynccontextmanager
    async def deployed(self, client: AsyncClient) -> AsyncIterator[None]:
        """Have them inside the block; they are removed at its end, and when deploying them fails or is cancelled.

        Raises:
            InvalidParameterError: A function of one of these names exists that no replay has made.
            ServiceError: One could not be deployed, or removed.
        """
        await self._check_names(client)
        count = f"{len(self._names)} functions {self._replay.prefix}-*"
        click.echo(f"deploying {count}", err=True)
        try:
            await self._deploy(client)
            yield
        finally:
            click.echo(f"removing {count}", err=True)
            await self._remove(client)

    async def _check_names(self, client: AsyncClient) -> None:
        wanted = set(self._names)
        async for function in client.functions.list():
            if function.function_name in wanted and function.description != DESCRIPTION:
                raise InvalidParameterError(
                    f"function {function.function_name!r} exists and is no replay's: choose another --prefix"
                )

    async def _deploy(self, client: AsyncClient) -> None:
        code = _package()
        timeout_s = min(self._replay.longest_run_s + _SPARE_S, _LONGEST_TIMEOUT_S)

        async def deploy(number: int) -> None:
            await client.deploy(
                self._names[number],
                code,
                handler=f"stand_in.{self._work}",
                memory_mib=self._memory_mib or memory_mib(self._replay.loaded.functions[number]),
                timeout_s=timeout_s,
                description=DESCRIPTION,
            )

        await _at_once(len(self._names), deploy)

    async def _remove(self, client: AsyncClient) -> None:
        failures = []

        async def remove(number: int) -> None:
            try:
                await client.functions.delete(self._names[number])
            except ResourceNotFoundError:
                pass  # It was not deployed yet.
            except ServiceError as error:
                failures.append(error)  # The others go all the same.

        await _at_once(len(self._names), remove)
        if failures:
            raise failures[0]


async def _at_once(count: int, act: Callable[[int], Awaitable[None]]) -> None:
    """Act on each number, a few at a time. Cancelled, it lets those that have begun end: half a deployment is worse."""
    waiting = iter(range(count))

    async def take() -> None:
        for number in waiting:
            await act(number)

    tasks = [asyncio.create_task(take()) for _ in range(_AT_ONCE)]
    try:
        await asyncio.shield(asyncio.gather(*tasks))
    finally:
        deque(waiting, maxlen=0)  # Nobody takes another one.
        await asyncio.wait(tasks)


def _package() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        package.writestr(zipfile.ZipInfo("stand_in.py"), _HANDLERS)
    return buffer.getvalue()
