"""Makes and ends sandboxes for some seconds, as fast as one node can.

In a process of its own, which enters a mount namespace as an agent does, and prints how many it made a second.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import uvloop

from benchmarks.measure import rate_per_s, sequential_ms
from lambent_node_agent.sandbox import SandboxConfig, SandboxHost, enter_private_mount_namespace

_AT_ONCE = 4
"""Enough for two cores: some are made while the kernel ends others. With twelve a fifth fewer are made."""

_WARM_UP = 20


async def sandbox_rate(seconds: float) -> float:
    """Give sandboxes a second that one node makes and ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.sandbox_rate",
        str(seconds),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return float(out.split()[-1])


async def _measure(seconds: float) -> float:
    runtime = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    with tempfile.TemporaryDirectory(prefix="lambent-bench-") as directory:
        async with SandboxHost(SandboxConfig(Path(directory), f"bench-{os.getpid()}", pool_size=0)) as host:

            async def make() -> None:
                await (await host.create(runtime)).close()

            await sequential_ms(make, _WARM_UP)
            return await rate_per_s(make, in_flight=_AT_ONCE, seconds=seconds)


if __name__ == "__main__":
    enter_private_mount_namespace()
    print(uvloop.run(_measure(float(sys.argv[1]))))
