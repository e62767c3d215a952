"""What the machine can do at best, measured beside us: a gRPC echo, and a process in a sandbox without zygotes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc.aio

from benchmarks.echo_server import METHOD
from benchmarks.measure import rate_per_s, sequential_ms
from benchmarks.processes import cpu_seconds, pss_mib

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


_SYSTEM = tuple(word for path in ("/usr", "/lib", "/lib64") for word in ("--ro-bind-try", path, path))

_LOOP_TURNS = 300
"""More than a second of either loop."""


class FloorMissingError(Exception):
    """This machine cannot run what a figure is compared with."""


@dataclass(frozen=True)
class Echo:
    """A running echo server with a client.

    Attributes:
        call: Sends bytes and gives them back.
        pid: The server; the client is this process.
    """

    call: Callable[[bytes], Awaitable[bytes]]
    pid: int

    async def sequential_ms(self, payload: bytes, count: int) -> list[float]:
        """Time calls one after another, in milliseconds each."""
        return await sequential_ms(lambda: self.call(payload), count)

    async def throughput(self, payload: bytes, *, in_flight: int, seconds: float) -> tuple[float, float]:
        """Give calls per second, and CPU seconds of client and server per 1,000 calls."""
        pids = [os.getpid(), self.pid]
        before = cpu_seconds(pids)
        rate = await rate_per_s(lambda: self.call(payload), in_flight=in_flight, seconds=seconds)
        return rate, (cpu_seconds(pids) - before) / (rate * seconds) * 1_000


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
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            yield Echo(call, process.pid)
    finally:
        process.kill()
        await process.wait()


def bwrap_command(python: str, search_path: str | None = None) -> list[str]:
    """Give the command that a system without zygotes must run for each cold start.

    Args:
        python: The interpreter.
        search_path: Where to look for bubblewrap; PATH unless given.

    Raises:
        FloorMissingError: There is no bubblewrap, or it cannot make a sandbox here.
    """
    if (bwrap := shutil.which("bwrap", path=search_path)) is None:
        raise FloorMissingError("bubblewrap is not installed")
    binds = list(_SYSTEM)
    prefix = subprocess.run(
        [python, "-I", "-S", "-c", "import sys; print(sys.base_prefix)"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not prefix.startswith("/usr"):
        binds += ["--ro-bind", prefix, prefix]
    command = [bwrap, "--unshare-all", *binds, "--proc", "/proc", "--dev", "/dev", python, "-I", "-S", "-c", "pass"]
    run_ms(command)
    return command


async def bwrap_burst_ms(command: list[str], count: int) -> list[float]:
    """Time commands of bubblewrap that all begin at once, in milliseconds each."""
    start = time.perf_counter()

    async def run() -> float:
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
        assert await process.wait() == 0, "bwrap failed"
        return (time.perf_counter() - start) * 1e3

    return await asyncio.gather(*(run() for _ in range(count)))


def idle_python_mib(python: str) -> float:
    """Give the proportional set size of an interpreter that waits for its standard input, with nothing loaded."""
    wait = "import sys; sys.stdout.write('waits'); sys.stdout.flush(); sys.stdin.read()"
    with subprocess.Popen([python, "-c", wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"waits"
        size_mib = pss_mib(process.pid)
        process.communicate()
    return size_mib


async def bwrap_rate() -> float:
    """Give empty sandboxes a second that bubblewrap makes and ends, in two loops of a shell at once."""
    command = ["bwrap", "--unshare-all", *_SYSTEM, "/usr/bin/true"]
    loop = f'i=0; while [ $i -lt {_LOOP_TURNS} ]; do "$@" || exit; i=$((i + 1)); done'
    start = time.perf_counter()
    loops = [await asyncio.create_subprocess_exec("sh", "-c", loop, "sh", *command) for _ in range(2)]
    statuses = [await running.wait() for running in loops]
    assert statuses == [0, 0], f"bwrap failed: {statuses}"
    return 2 * _LOOP_TURNS / (time.perf_counter() - start)


def run_ms(command: list[str]) -> float:
    """Time one run of a command, in milliseconds.

    Raises:
        FloorMissingError: It failed.
    """
    start = time.perf_counter()
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    duration_ms = (time.perf_counter() - start) * 1e3
    if done.returncode != 0:
        reason = done.stderr.strip() or f"it ended with status {done.returncode}"
        raise FloorMissingError(f"{os.path.basename(command[0])} does not run here: {reason}")
    return duration_ms
