"""What the SDK sees of a cluster of one node: warm, cold, under load, beside large payloads, at rest."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import statistics
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, fields

from benchmarks.cluster import BenchmarkCluster
from benchmarks.measure import rate_per_s, sequential_ms
from benchmarks.merging import bookkeeping_bytes
from benchmarks.processes import arguments, cpu_seconds, descendants, pss_mib
from lambent import AsyncClient, ColdStartPhases

_HANDLERS = b"""
import time

def empty(event, context):
    return None

def large(event, context):
    return len(event)

def sleeper(event, context):
    time.sleep(event["seconds"])
"""

EVENT = b'{"key": "' + b"x" * 88 + b'"}'
"""100 bytes."""

FULL_MIB = 1769
"""AWS Lambda: memory that comes with one whole CPU."""

_SMALL_MIB = 128
"""AWS Lambda: the least. Fifty of a whole CPU each do not fit on two cores."""

BURST = 50
"""First calls at once: the next one is the 51st."""

_COLD_SPACING_S = 0.2
"""A real first call meets an idle machine; attaching to a v1 cgroup then waits for a grace period."""

_WARM_UP = 200

_DEPLOYMENTS_IN_FLIGHT = 8

_FILL_ATTEMPTS = 6

_FUNCTION_TIMEOUT_S = 60
_MAX_SLEEP_S = _FUNCTION_TIMEOUT_S - 10

_END_TIMEOUT_S = 60.0
"""For environments to end after their functions have been deleted; less than a second as a rule."""


@dataclass(frozen=True)
class Memory:
    """PSS of the processes of a cluster at rest, in MiB; None where no such process was found.

    Attributes:
        scheduler: The scheduler.
        agent: The node agent, without zygotes and environments.
        zygote: The fork server of the interpreter that serves the functions.
        all_zygotes: Those of all interpreters.
        environment: Median of the environments: reaper, runtime and what it started.
        environments: How many were alive.
    """

    scheduler: float | None
    agent: float | None
    zygote: float | None
    all_zygotes: float | None
    environment: float | None
    environments: int


def _package() -> bytes:
    """Give the functions as a zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        package.writestr(zipfile.ZipInfo("functions.py"), _HANDLERS)
    return buffer.getvalue()


@dataclass
class Suite:
    """Measures one cluster through one client."""

    cluster: BenchmarkCluster
    client: AsyncClient
    cold_starts: list[ColdStartPhases] = field(default_factory=list)
    sleepers: int = 0

    async def prepare(self) -> None:
        """Deploy the functions of the rounds, and warm what is to be warm."""
        await self.prepare_empty()
        await self._deploy("empty-128", "empty", 128)
        await self._deploy("large", "large", FULL_MIB)
        await self.warm_ms("empty-128", _WARM_UP)

    async def prepare_empty(self) -> None:
        """Deploy the empty function alone, and warm one environment of it."""
        await self._deploy("empty", "empty", FULL_MIB)
        await self.warm_ms("empty", _WARM_UP)

    async def _deploy(self, name: str, handler: str, memory_mib: int) -> None:
        handler = f"functions.{handler}"
        await self.client.deploy(
            name, _package(), handler=handler, memory_mib=memory_mib, timeout_s=_FUNCTION_TIMEOUT_S
        )

    async def warm_ms(self, name: str, count: int) -> list[float]:
        """Time sequential calls of a warm function."""
        return await sequential_ms(lambda: self.client.invoke(name, EVENT), count)

    async def throughput(self, name: str, seconds: float) -> tuple[float, float]:
        """Give calls per second with 64 in flight, and CPU seconds of all processes per 1,000 calls."""
        pids = [os.getpid(), *descendants(self.cluster.supervisor)]
        before = cpu_seconds(pids)
        rate = await rate_per_s(lambda: self.client.invoke(name, EVENT), in_flight=64, seconds=seconds)
        return rate, (cpu_seconds(pids) - before) / (rate * seconds) * 1000

    async def cold_ms(self, count: int, memory_mib: int, *, spacing_s: float = _COLD_SPACING_S) -> list[float]:
        """Time first calls of functions whose code the node has, each a new environment."""
        durations = []
        for _ in range(count):
            name = f"cold-{len(self.cold_starts)}"
            await self._deploy(name, "empty", memory_mib)
            await asyncio.sleep(spacing_s)
            duration_ms, phases = await self._first_call(name)
            durations.append(duration_ms)
            self.cold_starts.append(phases)
            await self.client.functions.delete(name)
        return durations

    def cold_phases_ms(self) -> dict[str, float]:
        """Give the median of each phase of the cold starts so far, by its name in words."""
        return {
            phase.name.removesuffix("_ms").replace("_", " "): statistics.median(
                getattr(start, phase.name) for start in self.cold_starts
            )
            for phase in fields(ColdStartPhases)
        }

    async def exhausted_ms(self) -> tuple[list[float], float | None]:
        """Call new functions at once, as many as empty the pool and at least 50, and then one more.

        Returns:
            What the calls at once took, in milliseconds, and what the one took that came when the last of them had been
            answered; None when the pool had something again, so that it is not what it is to be.
        """
        alive = (await self.client.status()).environments
        blank = self.cluster.sandboxes() - sum(map(len, self.cluster.environments().values()))
        names = [f"burst-{number}" for number in range(max(BURST, blank) + 1)]
        await self._at_once(names, lambda name: self._deploy(name, "empty", _SMALL_MIB))
        await asyncio.sleep(_COLD_SPACING_S)
        before = self.cluster.sandboxes()
        *burst, after = names
        durations = [ms for ms, _phases in await asyncio.gather(*map(self._first_call, burst))]
        exhausted = self.cluster.sandboxes() == before - blank + len(burst)
        last_ms, _phases = await self._first_call(after)
        await self._at_once(names, self.client.functions.delete)
        async with asyncio.timeout(_END_TIMEOUT_S):
            while (await self.client.status()).environments > alive:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(_COLD_SPACING_S)
        return durations, last_ms if exhausted else None

    async def _first_call(self, name: str) -> tuple[float, ColdStartPhases]:
        start = time.perf_counter()
        result = await self.client.invoke(name, EVENT)
        duration_ms = (time.perf_counter() - start) * 1e3
        assert result.cold_start_phases is not None
        return duration_ms, result.cold_start_phases

    async def _at_once(self, names: list[str], act: Callable[[str], Awaitable[object]]) -> None:
        gate = asyncio.Semaphore(_DEPLOYMENTS_IN_FLIGHT)

        async def with_gate(name: str) -> None:
            async with gate:
                await act(name)

        async with asyncio.TaskGroup() as acts:
            for name in names:
                acts.create_task(with_gate(name))

    @contextlib.asynccontextmanager
    async def large_payloads(self) -> AsyncIterator[None]:
        """Have two other clients send 6 MB payloads inside the block."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.large_payloads",
            str(self.cluster.data_dir),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            await asyncio.wait_for(process.stdout.readline(), timeout=60)
            yield
        finally:
            process.kill()
            await process.wait()

    @property
    def python(self) -> str:
        """The interpreter of the zygote that serves the functions here."""
        (interpreter,) = {arguments(zygote)[0] for zygote in self.cluster.environments()}
        return interpreter

    async def fill_environments(self, count: int) -> int:
        """Have `count` environments alive, each of them warm; gives how many there are.

        All calls of a burst sleep at the same time, so that none can have the environment of another. A busy machine
        may start them more slowly than they sleep; then they sleep longer.
        """
        await self._deploy("sleeper", "sleeper", 128)
        alive = (await self.client.status()).environments
        for attempt in range(_FILL_ATTEMPTS):
            if alive >= count:
                break
            burst = count - alive + self.sleepers
            event = {"seconds": min((1 + burst / 50) * 2**attempt, _MAX_SLEEP_S)}
            async for _ in self.client.map("sleeper", [event] * burst, concurrency=burst):
                pass
            before, alive = alive, (await self.client.status()).environments
            self.sleepers += alive - before
        return alive

    async def fill_functions(self, count: int) -> int:
        """Have `count` functions deployed, of which nobody calls the new ones; gives how many there are."""
        deployed = len([function async for function in self.client.functions.list()])
        names = [f"idle-{number}" for number in range(deployed, count)]
        await self._at_once(names, lambda name: self._deploy(name, "empty", 128))
        return len([function async for function in self.client.functions.list()])

    def merging_mib(self) -> float:
        """Give what the kernel keeps for one environment to merge its pages; call it when nothing runs."""
        environments = [pids for below in self.cluster.environments().values() for pids in below]
        return statistics.median(sum(map(bookkeeping_bytes, pids)) for pids in environments) / (1 << 20)

    def memory(self) -> Memory:
        """Measure the processes; call it when nothing runs."""

        def pss_of(pids: Iterable[int]) -> float | None:
            return sum(map(pss_mib, pids)) or None

        zygotes = self.cluster.environments()
        environments = [sum(map(pss_mib, pids)) for below in zygotes.values() for pids in below]
        return Memory(
            scheduler=pss_of(self.cluster.parts("scheduler")),
            agent=pss_of(self.cluster.parts("agent")),
            zygote=pss_of(zygotes),
            all_zygotes=pss_of(self.cluster.zygotes()),
            environment=statistics.median(environments) if environments else None,
            environments=len(environments),
        )
