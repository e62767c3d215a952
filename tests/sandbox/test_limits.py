"""Memory, CPU, processes and disk of one environment are bounded, and the bounds are told."""

from __future__ import annotations

import asyncio
import os
import sys
import time

import pytest
from tests.patience import PATIENCE
from tests.sandbox_harness import TIMEOUT_S, Lab, processes_of, used_memory_bytes

from lambent_node_agent.sandbox import Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_memory_bomb_is_killed_and_told_from_other_kills(world: Lab) -> None:
    """The caller learns Runtime.OutOfMemory, not just a signal."""
    code = """
import os
def handler(event, context):
    if event:
        os.kill(os.getpid(), 9)
    kept = [b"x" * (1 << 20) for _ in range(1000)]
"""
    for event, oom_killed in ((0, True), (1, False), (0, True)):
        async with asyncio.timeout(TIMEOUT_S), world.function(code, memory_mib=128) as function:
            await function.send(event)
            status = await function.process.exit_status
            assert (status.signal, status.oom_killed) == (9, oom_killed)
            assert 120 * oom_killed <= function.sandbox.peak_memory_mib() <= 128


async def test_a_child_that_uses_too_much_memory_is_killed(world: Lab) -> None:
    """With all of its sandbox on version 2; on version 1 alone, and the function goes on."""
    code = """
import subprocess, sys
def handler(event, context):
    bomb = "kept = [b'x' * (1 << 20) for _ in range(1000)]"
    return subprocess.run([sys.executable, "-c", bomb]).returncode
"""
    async with asyncio.timeout(TIMEOUT_S), world.function(code, memory_mib=128) as function:
        await function.send()
        try:
            kind, body = await function.frame()
        except (EOFError, ConnectionResetError):
            await function.sandbox.exited
            assert function.sandbox.out_of_memory
        else:
            assert (kind.name, body) == ("RESULT", b"-9")


async def test_memory_below_the_limit_is_to_be_had(world: Lab) -> None:
    """A function of 128 MB can use most of it."""
    code = "def handler(event, context):\n    return len(bytearray(100 << 20))\n"
    async with world.function(code, memory_mib=128) as function:
        assert await function.invoke() == 100 << 20
        assert 100 <= function.sandbox.peak_memory_mib() <= 128


async def test_the_next_environment_starts_a_new_peak(world: Lab) -> None:
    """Groups are used again; the figures of the last user must not be."""
    async with world.function("def handler(e, c):\n    return len(bytearray(90 << 20))\n") as function:
        await function.invoke()
        assert function.sandbox.peak_memory_mib() >= 90
    async with world.function("def handler(e, c):\n    return 0\n") as function:
        await function.invoke()
        assert function.sandbox.peak_memory_mib() < 30


async def test_a_group_that_is_still_charged_is_not_used_again(world: Lab) -> None:
    """The next environment would have that much less. Here the charge is for a file that outlives its writer."""
    code = "def handler(e, c):\n    return 0\n"
    write = "import os, sys\nkept, *groups = map(int, sys.argv[1:])\nfor group in groups:\n    os.write(group, b'0')\n"
    with os.fdopen(os.memfd_create("kept"), "wb") as kept:
        async with world.function(code) as function:
            entrances = function.sandbox._slot.group.open_entrances()
            descriptors = (kept.fileno(), *entrances)
            writer = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                f"{write}os.write(kept, bytes(32 << 20))",
                *map(str, descriptors),
                pass_fds=descriptors,
            )
            assert await writer.wait() == 0
            for entrance in entrances:
                os.close(entrance)
            assert used_memory_bytes(function.sandbox) > 32 << 20
        async with world.function(code) as function:
            assert used_memory_bytes(function.sandbox) < 16 << 20


async def test_a_fork_bomb_stays_within_its_bounds(world: Lab) -> None:
    """It ends with an error in the function, and kill_runtime removes all of it."""
    code = """
import os, time
def handler(event, context):
    children = 0
    try:
        while True:
            if os.fork() == 0:
                time.sleep(1000)
            children += 1
    except OSError as error:
        return [error.errno, children]
"""
    async with world.function(code, memory_mib=2048) as function:
        errno, children = await function.invoke()
        assert errno == 11
        assert 500 <= children <= 742
        await function.sandbox.kill_runtime()
        assert len(processes_of(function.sandbox)) == 1
        assert (await function.process.exit_status).signal == 9


def throttled_periods(sandbox: Sandbox) -> int:
    """Return in how many periods the sandbox's processes have waited for their quota."""
    for directory in sandbox._slot.group._directories.values():
        for line in (directory / "cpu.stat").read_text().splitlines() if (directory / "cpu.stat").exists() else ():
            if line.startswith("nr_throttled "):
                return int(line.split()[1])
    pytest.skip("no cpu controller here")


async def test_the_quota_holds_from_the_first_invocation_on(world: Lab) -> None:
    """Init runs at full speed, as on AWS; then CPU follows memory."""
    code = """
import time
def burn():
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.1:
        pass
    return 0.1 / (time.perf_counter() - wall)
burn()
def handler(event, context):
    return burn()
"""
    async with asyncio.timeout(TIMEOUT_S), world.sandbox(code) as sandbox:
        sandbox._cpu_millis = 200
        before = throttled_periods(sandbox)
        async with world.start(sandbox) as function:
            await function.frame()
            assert throttled_periods(sandbox) == before
            sandbox.limit_cpu()
            assert await function.invoke() < 0.35
            assert throttled_periods(sandbox) > before


async def test_a_short_handler_of_a_small_function_does_not_stall(world: Lab) -> None:
    """The burst covers what a small handler needs; a stall would be most of a period."""
    async with world.function("def handler(event, context):\n    return 1\n") as function:
        function.sandbox._cpu_millis = 72
        function.sandbox.limit_cpu()
        started = time.perf_counter()
        await function.invoke()
        assert time.perf_counter() - started < PATIENCE
