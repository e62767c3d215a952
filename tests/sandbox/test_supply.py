"""Zygotes and pools are kept in the background, whatever fails; a slot is one process's at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from tests.sandbox_harness import OWN_RUNTIME, TIMEOUT_S, Lab, config, lab, pool_of, processes_of, until, zygote_of

from lambent_node_agent.sandbox import SandboxError, SandboxHost
from lambent_node_agent.sandbox import sandbox as sandbox_module
from lambent_node_agent.sandbox.demand import Bounds
from lambent_node_agent.sandbox.errors import SlotLostError
from lambent_node_agent.sandbox.sandbox import fork_into
from lambent_node_agent.sandbox.slots import SlotTable
from lambent_node_agent.sandbox.zygote_client import Zygote
from lambent_runtime import messages

pytestmark = pytest.mark.asyncio(loop_scope="module")

FREEZER = Path("/sys/fs/cgroup/freezer")
HAS_FREEZER = (FREEZER / "cgroup.procs").exists()


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Let this process open nothing more."""
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_the_pool_is_filled_again_after_a_failure_that_nobody_thought_of(
    mount_namespace: None, place: Path
) -> None:
    """Descriptors run out for a moment; after it cold starts come from the pool as before."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "filled", pool_size=2) as made:
        taken = await made.host.create(OWN_RUNTIME)
        with no_descriptors_left(), structlog.testing.capture_logs() as logs:
            await until(lambda: any(entry["event"] == "runtime_not_ready" for entry in logs))
        await made.host.wait_until_filled()
        assert made.host.ready_made(OWN_RUNTIME) == 2
        await taken.close()


def given_back(slots: SlotTable) -> list[int]:
    """Slots for the next sandboxes: as they are, or, on version 2 before Linux 6.12, to be made anew."""
    return [*(slot.index for slot in slots._free), *slots._vacant]


async def test_no_descriptor_for_a_sandbox_is_a_sandbox_error(world: Lab) -> None:
    """Whoever asked for it hears what is short, not that the code is missing."""
    sandbox, other = [await world.host.create(OWN_RUNTIME) for _ in range(2)]
    await other.close()
    with no_descriptors_left():
        with pytest.raises(SandboxError, match="Too many open files"):
            await world.host.create(OWN_RUNTIME)
        with pytest.raises(SandboxError, match="Too many open files"):
            await sandbox.start_runtime("handler.handler", {})
    again = await world.host.create(OWN_RUNTIME)
    await sandbox.close()  # with it the slot is cleaned that could not be while nothing could be opened
    slots = world.host._supplies[OWN_RUNTIME]._slots
    assert sorted([again._slot.index, *given_back(slots)]) == list(range(slots._unused))
    await again.close()


async def test_every_runtime_has_a_zygote_before_it_is_asked_for(world: Lab) -> None:
    """The first function of a runtime that is not the agent's own does not wait for an interpreter to start."""
    zygotes = [supply._zygote for supply in world.host._supplies.values()]
    assert len(zygotes) == len(world.host.runtimes)
    assert all(zygote is not None and not zygote.exited.done() for zygote in zygotes)


async def test_a_zygote_that_died_is_replaced_before_it_is_asked_for(mount_namespace: None, place: Path) -> None:
    """With it died its pool; the next cold start finds a new one."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "again", pool_size=1) as made:
        zygote, [pooled] = zygote_of(made.host), pool_of(made.host)
        zygote._process.kill()
        await zygote.exited
        await made.host.wait_until_filled()
        assert zygote_of(made.host) is not zygote
        assert made.host.ready_made(OWN_RUNTIME) == 1
        assert pool_of(made.host) != [pooled]
        assert pooled.exited.done()


async def test_the_slot_of_a_cancelled_fork_is_not_used_before_its_process_has_ended(
    mount_namespace: None, place: Path
) -> None:
    """The order is on its way when nobody waits any more; two processes may not share a UID and its groups."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "late") as made:
        first = await made.host.create(OWN_RUNTIME)
        slot = first._slot
        await first.close()
        zygote = zygote_of(made.host)
        zygote._process.send_signal(signal.SIGSTOP)
        unwanted = asyncio.create_task(made.host.create(OWN_RUNTIME))
        await until(lambda: zygote._answers)
        unwanted.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unwanted
        wanted = asyncio.create_task(made.host.create(OWN_RUNTIME))
        await until(lambda: len(zygote._answers) == 2)
        zygote._process.send_signal(signal.SIGCONT)
        second = await wanted
        assert second._slot.uid != slot.uid
        await until(lambda: not made.host._supplies[OWN_RUNTIME]._background)
        third = await made.host.create(OWN_RUNTIME)
        assert third._slot.uid == slot.uid
        await asyncio.gather(second.close(), third.close())


async def test_a_zygote_that_dies_with_an_order_fails_it(mount_namespace: None, place: Path) -> None:
    """The next one serves, with the same slot."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "failed") as made:
        zygote = zygote_of(made.host)
        zygote._process.send_signal(signal.SIGSTOP)
        forking = asyncio.create_task(made.host.create(OWN_RUNTIME))
        await until(lambda: zygote._answers)
        zygote._process.kill()
        with pytest.raises(SandboxError, match="has ended"):
            await forking
        sandbox = await made.host.create(OWN_RUNTIME)
        assert sandbox._slot.index == 0
        await sandbox.close()


def idle_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


async def refuse_fork(world: Lab) -> tuple[asyncio.Task[tuple[socket.socket, int]], int]:
    """Play a zygote that forked and then says that it did not; give the sandbox's end of its control socket."""
    supply = world.host._supplies[OWN_RUNTIME]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with idle_process() as process, theirs:
        zygote = Zygote(supply._interpreter, ours, process)
        slot = await supply._slots.take()
        forking = asyncio.create_task(fork_into(slot, zygote))
        await until(lambda: zygote._answers)
        _message, [control, *others] = messages.receive(theirs)
        for fd in others:
            os.close(fd)
        messages.send(theirs, {"event": "failed", "error": "no memory"})
        await until(lambda: not zygote._answers)
        await zygote.stop()
    await supply._slots.give_back(slot)
    return forking, control


async def test_a_fork_that_failed_is_over_when_its_process_is(world: Lab) -> None:
    """A process that came after all reads the end of its control socket, and leaves before its slot is used again."""
    async with asyncio.timeout(TIMEOUT_S):
        forking, control = await refuse_fork(world)
        with socket.socket(fileno=control) as process:
            messages.send(process, {"event": "ready"})
            process.setblocking(True)
            assert await asyncio.to_thread(process.recv, 1) == b""
            assert not forking.done()
        with pytest.raises(SandboxError, match="no memory"):
            await forking


async def test_a_slot_is_lost_when_its_process_may_still_come(world: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stuck in the kernel: nobody may share its UID."""
    monkeypatch.setattr(sandbox_module, "FORK_END_TIMEOUT_S", 0.05)
    async with asyncio.timeout(TIMEOUT_S):
        forking, control = await refuse_fork(world)
        with pytest.raises(SlotLostError):
            await forking
        os.close(control)


@pytest.mark.skipif(not HAS_FREEZER, reason="only the freezer of version 1 keeps a killed process")
async def test_a_sandbox_that_would_not_die_can_be_closed_once_it_has(
    mount_namespace: None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process stuck in the kernel keeps its slot until it is gone, and no longer."""
    monkeypatch.setattr(sandbox_module, "KILL_TIMEOUT_S", 0.05)
    group = FREEZER / f"lambent-test-{os.getpid()}"
    async with asyncio.timeout(TIMEOUT_S), lab(place, "stuck") as made:
        sandbox = await made.host.create(OWN_RUNTIME)
        group.mkdir()
        try:
            for pid in processes_of(sandbox):
                (group / "cgroup.procs").write_text(str(pid))
            (group / "freezer.state").write_text("FROZEN")
            await until(lambda: (group / "freezer.state").read_text() == "FROZEN\n")
            with pytest.raises(SandboxError, match="is alive"):
                await sandbox.close()
            (group / "freezer.state").write_text("THAWED")
            await sandbox.exited
            await sandbox.close()
            again = await made.host.create(OWN_RUNTIME)
            assert again._slot is sandbox._slot
            await again.close()
        finally:
            group.rmdir()


async def test_a_burst_leaves_a_pool_for_the_next_one(mount_namespace: None, place: Path) -> None:
    """Made while nobody waits, several at a time; when no burst comes, back to what is kept at least."""
    growing = replace(config(place, "burst", pool_size=1), memory_mib=4096)
    async with asyncio.timeout(TIMEOUT_S), SandboxHost(growing) as host:
        await host.wait_until_filled()
        burst = await asyncio.gather(*(host.create(OWN_RUNTIME) for _ in range(12)))
        for sandbox in burst:
            sandbox.end_start()  # as when its function has said READY
        await host.wait_until_filled()
        assert host.ready_made(OWN_RUNTIME) >= 12
        waiting = host._supplies[OWN_RUNTIME]._pool.copy()
        again = await asyncio.gather(*(host.create(OWN_RUNTIME) for _ in range(12)))
        assert set(again) <= set(waiting)
        await asyncio.gather(*(sandbox.close() for sandbox in [*burst, *again]))


async def test_a_pool_shrinks_when_its_demand_has_ended(mount_namespace: None, place: Path) -> None:
    """Blank sandboxes that nobody asks for any more are memory of nobody."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "shrinks", pool_size=4) as made:
        supply = made.host._supplies[OWN_RUNTIME]
        supply._bounds = Bounds(1, 4)  # as if the three others had been there for a burst long ago
        first, *others = pool_of(made.host)
        supply._want()
        await made.host.wait_until_filled()
        await asyncio.gather(*(sandbox.exited for sandbox in others))
        assert pool_of(made.host) == [first]


async def test_a_start_that_forks_goes_before_the_pool(mount_namespace: None, place: Path) -> None:
    """A pool is filled with what the starts leave of the CPU."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "before", pool_size=2) as made:
        supply, zygote = made.host._supplies[OWN_RUNTIME], zygote_of(made.host)
        taken = [await made.host.create(OWN_RUNTIME) for _ in range(2)]
        zygote._process.send_signal(signal.SIGSTOP)
        start = asyncio.create_task(made.host.create(OWN_RUNTIME))
        await until(lambda: zygote._answers)
        await until(lambda: not supply._wanted.is_set())  # the keeper has taken notice, and would make two
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(zygote._answers) == 1
        zygote._process.send_signal(signal.SIGCONT)
        taken.append(await start)
        await made.host.wait_until_filled()
        assert made.host.ready_made(OWN_RUNTIME) == 2
        await asyncio.gather(*(sandbox.close() for sandbox in taken))


async def test_a_slot_that_cannot_be_cleaned_is_no_matter_of_others(mount_namespace: None, place: Path) -> None:
    """It is tried again whenever another one is given back, whose sandbox is closed all the same."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "soiled") as made:
        slots = made.host._supplies[OWN_RUNTIME]._slots
        soiled = await slots.take()
        soiled._has_code = True  # a mount that does not go
        with pytest.raises(SandboxError, match="cleaning of slot 0"):
            await slots.give_back(soiled)
        with structlog.testing.capture_logs() as logs:
            await (await made.host.create(OWN_RUNTIME)).close()
        assert [entry["event"] for entry in logs] == ["slot_not_clean"]
        assert soiled.index not in given_back(slots)
        soiled._has_code = False
        await (await made.host.create(OWN_RUNTIME)).close()
        assert soiled.index in given_back(slots)
