"""Frozen processes use no CPU, keep what they have, and die when they must: groups by themselves, then sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.patience import PATIENCE
from tests.sandbox_harness import TIMEOUT_S, Lab, config, lab, processes_of, require_disk, zygote_of

from lambent_node_agent.cgroups import CgroupError, Group, Layout, Tree, read_layout
from lambent_node_agent.cgroups.layout import FREEZER, Hierarchy
from lambent_node_agent.sandbox import SandboxHost

SPIN = "import os, sys\nfor fd in sys.argv[1:]: os.write(int(fd), b'0')\nprint(flush=True)\nwhile True: pass"
# A thread of the function's own, which AWS stops between invocations.
SPINNER = """
import threading
count = 0
def spin():
    global count
    while True:
        count += 1
threading.Thread(target=spin, daemon=True).start()
def handler(event, context):
    return count
"""
DEADLINE_S = 10 * PATIENCE


def cpu_ns(pids: list[int]) -> int:
    """CPU time that these processes and their threads have had."""
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def wait_until(holds: Callable[[], bool]) -> None:
    """Look until it holds: the kernel has no event for it on version 1."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        os.sched_yield()


def use_cpu() -> None:
    """Take 50 ms of CPU, in which whoever else may run would run."""
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass


def assert_stands_still(pids: list[int]) -> None:
    """Nobody of these runs."""
    before = cpu_ns(pids)
    use_cpu()
    assert cpu_ns(pids) == before


def unified_freezer() -> Layout:
    """Version 2 with nothing but its freezer, which needs no controller; a hybrid host has it too."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            mount = Path(line.split()[4])
            return Layout((Hierarchy(mount, mount, True, frozenset({FREEZER})),))
    pytest.skip("version 2 is not mounted")


@pytest.fixture(params=[read_layout, unified_freezer], ids=["as-the-agent", "version-2"])
def tree(request: pytest.FixtureRequest) -> Iterator[Tree]:
    if os.geteuid() != 0:
        pytest.skip("control groups need root")
    made = Tree(request.param(), f"test-freezing-{os.getpid()}")
    if not made.can_freeze:
        pytest.skip("this machine has no freezer")
    made.open()
    yield made
    made.close()


@contextlib.contextmanager
def spinning(group: Group) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the group that uses all the CPU it gets; it ends with the block, frozen or not."""
    entrances = group.open_entrances()
    command = [sys.executable, "-c", SPIN, *map(str, entrances)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=entrances)
    for fd in entrances:
        os.close(fd)
    assert process.stdout is not None
    with process:
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()
            with contextlib.suppress(CgroupError):  # swept
                group.thaw().result(DEADLINE_S)


def test_a_frozen_group_uses_no_cpu_until_it_is_thawed(tree: Tree) -> None:
    """Both versions of the freezer, behind the one interface."""
    group = tree.make_group("0")
    with spinning(group) as process:
        for _ in range(2):
            group.freeze().result(DEADLINE_S)
            wait_until(group.is_frozen)
            assert_stands_still([process.pid])
            before = cpu_ns([process.pid])
            group.thaw().result(DEADLINE_S)
            wait_until(lambda before=before: cpu_ns([process.pid]) > before)  # type: ignore[misc] # mypy#15459
            assert not group.is_frozen()
    group.remove()


def test_what_is_killed_while_it_is_frozen_dies_when_it_thaws(tree: Tree) -> None:
    """Version 2 does not wait that long."""
    group = tree.make_group("0")
    with spinning(group) as process:
        group.freeze().result(DEADLINE_S)
        wait_until(group.is_frozen)
        process.kill()
        group.thaw().result(DEADLINE_S)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
    group.remove()


def test_the_last_request_counts(tree: Tree) -> None:
    """A call that comes while its environment is being frozen must not find it frozen for good."""
    group = tree.make_group("0")
    with spinning(group) as process:
        for _ in range(200):
            group.freeze()
            group.thaw().result(DEADLINE_S)
            assert not group.is_frozen()
        before = cpu_ns([process.pid])
        wait_until(lambda: cpu_ns([process.pid]) > before)
    group.remove()


def test_a_sweep_ends_what_a_dead_agent_left_frozen(tree: Tree) -> None:
    """On version 1 it takes no signal before it thaws, in whichever hierarchy the sweep begins."""
    group = tree.make_group("0")
    with spinning(group) as process:
        group.freeze().result(DEADLINE_S)
        wait_until(group.is_frozen)
        tree.sweep()
        assert process.wait(DEADLINE_S) == -signal.SIGKILL


@pytest.mark.asyncio(loop_scope="module")
async def test_a_frozen_function_stands_still_and_goes_on_where_it_was(world: Lab) -> None:
    """Its own threads too; the first call after the thaw is answered as any other."""
    async with world.function(SPINNER) as function:
        first = await function.invoke()
        sandbox, pids = function.sandbox, processes_of(function.sandbox)
        await sandbox.freeze()
        wait_until(sandbox._slot.group.is_frozen)
        assert_stands_still(pids)
        await function.send()  # waits in the socket
        assert_stands_still(pids)
        await sandbox.thaw()
        kind, body = await function.frame()
        assert kind.name == "RESULT"
        assert int(body) > first


@pytest.mark.asyncio(loop_scope="module")
async def test_a_frozen_sandbox_is_closed_and_its_groups_are_used_again(world: Lab) -> None:
    """Nobody waits for it to thaw, and the next function of these groups is not born frozen."""
    async with world.function(SPINNER) as function:
        sandbox = function.sandbox
        uid = sandbox._slot.uid
        await sandbox.freeze()
        wait_until(sandbox._slot.group.is_frozen)
        begun = time.monotonic()
        await sandbox.close()
        assert time.monotonic() - begun < PATIENCE
    async with world.function("def handler(event, context): return event") as function:
        assert function.sandbox._slot.uid == uid
        assert await function.invoke(7) == 7


@pytest.mark.asyncio(loop_scope="module")
async def test_orders_to_a_frozen_sandbox_are_served_when_it_thaws(world: Lab) -> None:
    """A reset of a frozen environment: the reaper is frozen as well."""
    async with world.function(SPINNER) as function:
        sandbox, process = function.sandbox, function.process
        await sandbox.freeze()
        wait_until(sandbox._slot.group.is_frozen)
        killing = asyncio.create_task(sandbox.kill_runtime())
        thawing = asyncio.create_task(sandbox.thaw())
        await asyncio.gather(killing, thawing)
        assert (await process.exit_status).signal == signal.SIGKILL
        async with world.start(sandbox) as again:
            assert (await again.frame())[0].name == "READY"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_frozen_sandbox_whose_reaper_was_killed_is_closed(world: Lab) -> None:
    """By an operator, or for want of memory of the machine: on version 1 its end is known only when it thaws."""
    async with world.function(SPINNER) as function:
        sandbox = function.sandbox
        await sandbox.freeze()
        wait_until(sandbox._slot.group.is_frozen)
        signal.pidfd_send_signal(sandbox._process_fd, signal.SIGKILL)
        await sandbox.close()
        assert sandbox.exited.done()
    async with world.function("def handler(event, context): return event") as function:
        assert await function.invoke(7) == 7


@pytest.mark.asyncio(loop_scope="module")
async def test_a_host_with_frozen_sandboxes_ends(mount_namespace: None, place: Path) -> None:
    """All at once, in less than the five seconds after which a process counts as one that does not die."""
    async with SandboxHost(config(place, "frozen")) as host:
        lab = Lab(host, place)
        for _ in range(3):
            sandbox = await host.create(host.runtimes[0])
            await sandbox.specialise(lab.write(SPINNER), 128, 1000, 16)
            await sandbox.freeze()
        begun = time.monotonic()
    assert time.monotonic() - begun < 2 * PATIENCE


READER = """
import os
SIZE = os.path.getsize("/var/task/model")
def read():
    with open("/var/task/model", "rb") as model:
        return sum(len(piece) for piece in iter(lambda: model.read(1 << 20), b"")) == SIZE
def handler(event, context):
    return read()
"""


@pytest.mark.asyncio(loop_scope="module")
async def test_memory_is_taken_back_from_a_frozen_function(world: Lab) -> None:
    """The files that it has read, which it can read again; with swap off its own memory stays."""
    require_disk(world.directory)
    async with world.sandbox(READER, memory_mib=256) as sandbox:
        model = world.directory / f"code-{world.count}" / "model"
        model.write_bytes(os.urandom(1 << 20) * 48)
        with model.open("rb+") as file:  # nobody's pages, so that they are charged to who reads them next
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        async with world.start(sandbox) as function:
            assert (await function.frame())[0].name == "READY"
            assert await function.invoke()
            await sandbox.freeze()
            wait_until(sandbox._slot.group.is_frozen)
            took = 0
            while step := await asyncio.to_thread(sandbox.reclaim_memory, 16 << 20):
                took += step
            assert took >= 40 << 20
            await sandbox.thaw()
            assert await function.invoke()


@pytest.mark.asyncio(loop_scope="module")
async def test_frozen_sandboxes_end_with_their_zygote(mount_namespace: None, place: Path) -> None:
    """On version 1 they would look alive until the next call, which would be lost."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "zygote-frozen") as made, made.function(SPINNER) as function:
        await function.sandbox.freeze()
        wait_until(function.sandbox._slot.group.is_frozen)
        zygote_of(made.host)._process.kill()
        await function.sandbox.exited
