"""Makes and ends environments as an agent does, on orders from its standard input; see `benchmarks.leak_run`.

Prints a line of JSON for each order: `ready` once, then what `_ORDERS` say. Ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvloop

from benchmarks.sandbox_environment import Environment, write_function
from lambent_common.machine import raise_open_files_limit
from lambent_node_agent.sandbox import SandboxConfig, SandboxHost, enter_private_mount_namespace

_POOL_SIZE = 2
_THREADS = 4
_CLOSED_AT_ONCE = 16


class _Worker:
    """Holds the environments that are alive."""

    def __init__(self, host: SandboxHost, code: Path) -> None:
        self._host = host
        self._code = code
        self.alive: list[Environment] = []

    async def live(self, count: int) -> list[float]:
        """Make environments one after the other, call each and end it; gives what each took to be ready, in ms."""
        durations: list[float] = []
        for _ in range(count):
            environment = await self._start(durations)
            await environment.close()
        await self._host.wait_until_filled()
        return durations

    async def hold(self, count: int) -> list[float]:
        """The same, but let them live."""
        durations: list[float] = []
        for _ in range(count):
            self.alive.append(await self._start(durations))
        await self._host.wait_until_filled()
        return durations

    async def call(self, _count: int) -> list[float]:
        """Call each that is alive once; gives what each call took, in ms."""
        durations = []
        for environment in self.alive:
            start = time.perf_counter()
            await environment.invoke()
            durations.append((time.perf_counter() - start) * 1e3)
        return durations

    async def release(self, count: int) -> list[float]:
        """End environments that are alive."""
        for _ in range(0, count, _CLOSED_AT_ONCE):
            ending, self.alive = self.alive[:_CLOSED_AT_ONCE], self.alive[_CLOSED_AT_ONCE:]
            await asyncio.gather(*(environment.close() for environment in ending))
        return []

    async def _start(self, durations: list[float]) -> Environment:
        start = time.perf_counter()
        environment = await Environment.start(self._host, self._code)
        durations.append((time.perf_counter() - start) * 1e3)
        await environment.invoke()
        return environment


async def _make_threads() -> None:
    """Have the threads that clean slots from the beginning: otherwise they come with the first work for each."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
    all_there = threading.Barrier(_THREADS)
    await asyncio.gather(*(asyncio.to_thread(all_there.wait) for _ in range(_THREADS)))


async def _serve(directory: Path, owner: str) -> None:
    await _make_threads()
    async with SandboxHost(SandboxConfig(directory / "state", owner, pool_size=_POOL_SIZE)) as host:
        await host.wait_until_filled()
        worker = _Worker(host, write_function(directory))
        print(json.dumps("ready"), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order, count = line.split()
            print(json.dumps(await getattr(worker, order)(int(count))), flush=True)
        await worker.release(len(worker.alive))


if __name__ == "__main__":
    raise_open_files_limit()
    enter_private_mount_namespace()
    uvloop.run(_serve(Path(sys.argv[1]), sys.argv[2]))
