"""A sandbox under version 2 of control groups: each limit is in the kernel's file for it, and the kernel keeps it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.sandbox_harness import TIMEOUT_S, Lab, processes_of

from lambent_node_agent.cgroups import read_layout
from lambent_node_agent.sandbox import Sandbox

UNIFIED = {hierarchy.unified for hierarchy in read_layout().hierarchies} == {True}
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not UNIFIED, reason="control groups of version 1 here; make test-vm has version 2"),
]

ECHO = "def handler(event, context):\n    return event\n"


def group_of(sandbox: Sandbox) -> Path:
    [directory] = sandbox._slot.group._directories.values()
    return directory


def read(sandbox: Sandbox, name: str) -> str:
    return (group_of(sandbox) / name).read_text().strip()


def path_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text().strip()


def event_count(sandbox: Sandbox, name: str, event: str) -> int:
    return int(dict(line.split() for line in read(sandbox, name).splitlines())[event])


async def test_all_limits_are_the_kernels_own(world: Lab) -> None:
    """What is configured is what the kernel was told."""
    async with world.function(ECHO, memory_mib=128) as function:
        function.sandbox._cpu_millis = 72
        function.sandbox.limit_cpu()
        names = ("memory.max", "memory.swap.max", "cpu.max", "cpu.max.burst", "pids.max")
        assert [read(function.sandbox, name) for name in names] == ["134217728", "0", "1440 20000", "1440", "1024"]


async def test_a_sandbox_is_in_its_group_before_it_has_a_function(world: Lab) -> None:
    """Reaper and runtime; nothing is moved when a call comes."""
    async with world.function(ECHO) as function:
        assert await function.invoke(1) == 1
        processes = processes_of(function.sandbox)
        assert len(processes) == 2
        assert {path_of(pid) for pid in processes} == {
            "0::/" + str(group_of(function.sandbox).relative_to("/sys/fs/cgroup"))
        }


async def test_memory_over_the_limit_is_killed_and_not_swapped_out(world: Lab) -> None:
    """With swap to be had, a limit of memory alone would let a function have all of it."""
    code = "def handler(event, context):\n    return len(bytearray(event << 20))\n"
    async with (
        asyncio.timeout(TIMEOUT_S),
        world.sandbox(code, memory_mib=128) as sandbox,
        world.start(sandbox) as function,
    ):
        await function.frame()
        await function.send(400)
        assert (await function.process.exit_status).oom_killed
        assert event_count(sandbox, "memory.events", "oom_kill") >= 1
        assert read(sandbox, "memory.swap.current") == "0"
        assert 120 << 20 <= int(read(sandbox, "memory.peak")) <= 128 << 20


async def test_a_fork_that_is_one_too_many_is_refused_and_counted(world: Lab) -> None:
    """Processes and threads of a function, those of the platform among them."""
    code = "import os, time\ndef handler(event, context):\n    os.fork() or time.sleep(1000)\n"
    async with world.function(code) as function:
        (group_of(function.sandbox) / "pids.max").write_text("2")
        assert (await function.fail())["errorType"] == "BlockingIOError"
        assert event_count(function.sandbox, "pids.events", "max") == 1


async def test_stalls_of_a_spinning_function_are_pressure_of_its_group(world: Lab) -> None:
    """An operator sees from outside which function wants more than it has."""
    code = "import time\ndef handler(event, context):\n    while time.process_time() < event:\n        pass\n"
    async with world.function(code) as function:
        function.sandbox._cpu_millis = 200
        function.sandbox.limit_cpu()
        await function.invoke(1)
        some = dict(pair.split("=") for pair in read(function.sandbox, "cpu.pressure").splitlines()[0].split()[1:])
        assert int(some["total"]) > 0
        assert event_count(function.sandbox, "cpu.stat", "nr_throttled") > 0


async def test_a_group_is_killed_at_once_with_what_forks_in_it(world: Lab) -> None:
    """By `cgroup.kill`, which leaves no time for a fork between the list of processes and the signals."""
    code = "import os\ndef handler(event, context):\n    while True:\n        os.fork()\n"
    async with asyncio.timeout(TIMEOUT_S), world.sandbox(code) as sandbox, world.start(sandbox) as function:
        await function.frame()
        await function.send()
        (group_of(sandbox) / "cgroup.kill").write_text("1")
        await sandbox.exited
        assert processes_of(sandbox) == []
        assert (await function.process.exit_status).signal == 9
