"""What the SDK sees of a cluster of one node: warm, cold, under load, beside large payloads, at rest."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import time
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass

from benchmarks.cluster import BenchmarkCluster
from benchmarks.measure import rate_per_s, sequential_ms
from benchmarks.processes import cpu_seconds, descendants, pss_mib
from lambent import AsyncClient

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

_COLD_SPACING_S = 0.2
"""A real first call meets an idle machine; attaching to a v1 cgroup then waits for a grace period."""

_WARM_UP = 200

_ENVIRONMENT_PROCESSES = 2


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
    cold_started: int = 0

    async def prepare(self) -> None:
        """Deploy the functions, and warm what is to be warm."""
        code = _package()
        for name, memory_mib in (("empty", FULL_MIB), ("empty-128", 128), ("large", FULL_MIB)):
            handler = f"functions.{name.partition('-')[0]}"
            await self.client.deploy(name, code, handler=handler, memory_mib=memory_mib, timeout_s=60)
        for name in ("empty", "empty-128"):
            await sequential_ms(lambda name=name: self.client.invoke(name, EVENT), _WARM_UP)

    async def warm_ms(self, name: str, count: int) -> list[float]:
        """Time sequential calls of a warm function."""
        return await sequential_ms(lambda: self.client.invoke(name, EVENT), count)

    async def throughput(self, name: str, seconds: float) -> tuple[float, float]:
        """Give calls per second with 64 in flight, and CPU seconds of all processes per 1,000 calls."""
        await rate_per_s(lambda: self.client.invoke(name, EVENT), in_flight=64, seconds=1)
        pids = [os.getpid(), *descendants(self.cluster.supervisor_pid)]
        before = cpu_seconds(pids)
        rate = await rate_per_s(lambda: self.client.invoke(name, EVENT), in_flight=64, seconds=seconds)
        return rate, (cpu_seconds(pids) - before) / (rate * seconds) * 1000

    async def cold_ms(self, count: int, memory_mib: int, *, spacing_s: float = _COLD_SPACING_S) -> list[float]:
        """Time first calls of functions whose code the node has, each a new environment."""
        durations = []
        for _ in range(count):
            self.cold_started += 1
            name = f"cold-{self.cold_started}"
            code = _package()
            await self.client.deploy(name, code, handler="functions.empty", memory_mib=memory_mib, timeout_s=60)
            await asyncio.sleep(spacing_s)
            start = time.perf_counter()
            result = await self.client.invoke(name, EVENT)
            durations.append((time.perf_counter() - start) * 1e3)
            assert result.cold_start
            await self.client.functions.delete(name)
        return durations

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
        return os.path.realpath(sys.executable)

    @property
    def python_prefix(self) -> str:
        """Where its standard library is."""
        return sys.base_prefix

    async def fill_environments(self, count: int) -> None:
        """Have at least `count` environments alive."""
        await self.client.deploy("sleeper", _package(), handler="functions.sleeper", memory_mib=128, timeout_s=60)
        events = [{"seconds": 1 + count / 50}] * count
        async for _ in self.client.map("sleeper", events, concurrency=count):
            pass

    async def fill_functions(self, count: int) -> None:
        """Have `count` functions that nobody calls."""
        code = _package()
        for number in range(count):
            await self.client.deploy(f"idle-{number}", code, handler="functions.empty", timeout_s=60)

    def memory_mib(self) -> dict[str, float]:
        """Give the PSS of scheduler and agent, and of one warm environment; call it when nothing runs."""
        processes = self.cluster.processes()
        figures = {
            part: sum(
                pss_mib(pid) for pid, words in processes.items() if f" {part} " in words and "zygote" not in words
            )
            for part in ("scheduler", "agent")
        }
        zygotes = {pid for pid, words in processes.items() if "zygote" in words}
        # A zygote's children are reapers; a reaper and the runtime below it are one environment.
        reapers = [pid for pid in zygotes if len(zygotes & set(descendants(pid))) == _ENVIRONMENT_PROCESSES]
        environments = [sum(map(pss_mib, descendants(pid))) for pid in reapers]
        figures["environment"] = sum(environments) / max(1, len(environments))
        return figures
