"""What the machine can do at best, measured beside us: a gRPC echo, and a process in a sandbox without zygotes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc.aio

from benchmarks.echo_server import METHOD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@dataclass(frozen=True)
class Echo:
    """A running echo server with a client."""

    call: Callable[[bytes], Awaitable[bytes]]
    pid: int


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[Echo]:
    """Run the echo server in a process of its own inside the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.echo_server", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), timeout=20))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Echo(call=channel.unary_unary(METHOD), pid=process.pid)
    finally:
        process.kill()
        await process.wait()


def bwrap_command(python: str, prefix: str) -> list[str] | None:
    """Give the command that a system without zygotes must run for each cold start; None without bubblewrap."""
    if (bwrap := shutil.which("bwrap")) is None:
        return None
    binds = [word for path in ("/usr", "/lib", "/lib64") for word in ("--ro-bind-try", path, path)]
    if not prefix.startswith("/usr"):
        binds += ["--ro-bind", prefix, prefix]
    return [bwrap, "--unshare-all", *binds, "--proc", "/proc", "--dev", "/dev", python, "-I", "-S", "-c", "pass"]


def run_ms(command: list[str]) -> float:
    """Time one run of a command, in milliseconds."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1e3
