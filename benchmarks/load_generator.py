"""What the load generator can drive, beside what a cluster on the same machine can serve."""

from __future__ import annotations

import asyncio
import json
import sys

from rich.console import Console

from benchmarks.cluster import cluster
from benchmarks.invocations import Suite
from benchmarks.rows import Row, as_table
from lambent import AsyncClient

_MEMORY_MIB = 65_536
"""Declared, not present: 36 environments of 1,769 MB, more than the CPUs have use for."""

_TURN_S = 2
_TURNS = 3
"""In turns: a shared machine is half as fast from one second to the next."""

_MORE_THAN_ANY = "1000000"
"""Calls per second, of which a generator process sends as many as it can."""

_MUST, _AIM = 1.5, 3.0


async def null_rate_per_s(seconds: int) -> float:
    """Have one generator process send to nobody as fast as it can for about this long; gives calls per second."""
    # It takes longer than it was to: what was due is sent. A tenth of the time makes some seconds of it.
    duration = f"{seconds / 10:g}s"
    flags = ("--target", "null", "--rate", _MORE_THAN_ANY, "--duration", duration, "--progress", "none", "-o", "json")
    command = (sys.executable, "-m", "lambent", "load", *flags)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return float(json.loads(output)["answered_per_s"])


async def load_generator_row(suite: Suite) -> Row:
    """Compare both in turns, best of each: the suite's empty function, 64 calls in flight, from one client."""
    driven, served = [], []
    for _ in range(_TURNS):
        served.append((await suite.throughput("empty", _TURN_S))[0])
        driven.append(await null_rate_per_s(_TURN_S))
    return Row(
        "load generator, one process, to nobody",
        max(driven),
        "/s",
        "served by the cluster",
        max(served),
        must=_MUST,
        aim=_AIM,
        larger_is_better=True,
    )


async def _measure() -> Row:
    async with cluster(_MEMORY_MIB) as running, AsyncClient(data_dir=running.data_dir) as client:
        suite = Suite(running, client)
        await suite.prepare_empty()
        return await load_generator_row(suite)


if __name__ == "__main__":
    row = asyncio.run(_measure())
    Console(width=None if sys.stdout.isatty() else 140).print(as_table([row], ""))
    sys.exit(0 if row.reached else 1)
