"""From blank to closed: starts, kills, restarts, reuse, the pool, and what is left at the end."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sandbox_harness import OWN_RUNTIME, TIMEOUT_S, Lab, config, lab, pool_of, processes_of, until, zygote_of

from lambent_node_agent.sandbox import SandboxError, SandboxHost
from lambent_node_agent.sandbox.seccomp.libseccomp import Library
from lambent_runtime.channel import Kind

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = "def handler(event, context):\n    return event\n"
COUNTER = """
import os
count = 0
def handler(event, context):
    global count
    count += 1
    open("/tmp/seen", "a").write("x")
    return [count, os.path.getsize("/tmp/seen")]
"""


def groups_of(owner: str) -> list[Path]:
    """Return the directories in cgroup hierarchies that bear an owner's mark."""
    found = []
    for parent, names, _files in os.walk("/sys/fs/cgroup"):
        found += [Path(parent) / name for name in names if name.startswith(f"lambent-{owner}")]
    return found


def mounts(of: str = "self") -> str:
    """Return the mount table of a process."""
    return Path(f"/proc/{of}/mounts").read_text()


def open_things() -> tuple[int, int]:
    """Return the numbers of descriptors and mounts of this process."""
    return len(os.listdir("/proc/self/fd")), mounts().count("\n")


def start_agent(place: Path, owner: str) -> subprocess.Popen[bytes]:
    """Start an agent with one environment; it prints the processes' ids."""
    (place / "code").mkdir()
    (place / "code" / "handler.py").write_text(ECHO)
    arguments = [str(place / "state"), owner, OWN_RUNTIME, str(place / "code")]
    return subprocess.Popen([sys.executable, "-c", AGENT, *arguments], stdout=subprocess.PIPE)


async def test_a_kill_leaves_the_sandbox_and_its_tmp(world: Lab) -> None:
    """After a timeout AWS starts the process anew in the same environment: globals are gone, /tmp is not."""
    async with asyncio.timeout(TIMEOUT_S), world.sandbox(COUNTER) as sandbox:
        async with world.start(sandbox) as function:
            await function.frame()
            assert [await function.invoke(), await function.invoke()] == [[1, 1], [2, 2]]
            await sandbox.kill_runtime()
            assert (await function.process.exit_status).signal == 9
        async with world.start(sandbox) as function:
            await function.frame()
            assert await function.invoke() == [1, 3]
        assert not sandbox.exited.done()


async def test_a_kill_ends_every_process_of_the_function(world: Lab) -> None:
    """Daemons with their own session, double forks and ignored signals are all the same to SIGKILL."""
    code = """
import os, signal, subprocess, sys, time
def handler(event, context):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            if os.fork():
                os._exit(0)
            time.sleep(1000)
"""
    async with world.function(code) as function:
        await function.invoke()
        assert len(processes_of(function.sandbox)) > 5
        await function.sandbox.kill_runtime()
        assert len(processes_of(function.sandbox)) == 1


async def test_orphans_leave_no_zombie(world: Lab) -> None:
    """A long-lived environment must not fill its process table."""
    code = """
import os
def handler(event, context):
    for _ in range(50):
        if os.fork() == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.wait()
    while sum(name.isdigit() for name in os.listdir("/proc")) > 2:
        os.sched_yield()
    return True
"""
    async with world.function(code) as function:
        assert await function.invoke()  # comes back once the reaper has collected all of them


async def test_a_second_process_is_refused_while_the_first_runs(world: Lab) -> None:
    """One environment serves one invocation at a time."""
    async with world.function(ECHO) as function:
        with pytest.raises(SandboxError, match="still runs"):
            await function.sandbox.start_runtime("handler.handler", {})


async def test_a_closed_sandbox_refuses_everything(world: Lab) -> None:
    """Its slot may be another's by now."""
    sandbox = await world.host.create(OWN_RUNTIME)
    await sandbox.close()
    await sandbox.close()
    assert sandbox.exited.done()
    with pytest.raises(SandboxError, match="has ended"):
        await sandbox.start_runtime("handler.handler", {})
    with pytest.raises(SandboxError, match="has ended"):
        await sandbox.kill_runtime()


async def test_closing_ends_a_running_process(world: Lab) -> None:
    """And tells whoever waits for its exit."""
    async with asyncio.timeout(TIMEOUT_S):
        async with world.sandbox(ECHO) as sandbox, world.start(sandbox) as function:
            assert (await function.frame())[0] is Kind.READY
            await sandbox.close()
            assert (await function.process.exit_status).signal == 9


async def test_the_next_user_of_a_slot_finds_nothing(world: Lab) -> None:
    """Slots are used again: files of the last function must not be."""
    async with world.function("def handler(e, c):\n    open('/tmp/secret', 'w').write('s')\n") as function:
        await function.invoke()
        slot = function.sandbox._slot
    async with world.function(
        "import os\ndef handler(e, c):\n    return os.listdir('/tmp') + os.listdir('/var/task')\n"
    ) as function:
        assert function.sandbox._slot.uid == slot.uid  # where a peak cannot start anew, the groups are made again
        assert await function.invoke() == ["handler.py"]


async def test_unknown_runtimes_and_missing_code_are_told(world: Lab, place: Path) -> None:
    """The message names what is missing."""
    with pytest.raises(SandboxError, match=r"python2\.7"):
        await world.host.create("python2.7")
    sandbox = await world.host.create(OWN_RUNTIME)
    with pytest.raises(SandboxError, match="nowhere"):
        await sandbox.specialise(place / "nowhere", 128, 72, 512)
    await sandbox.close()


async def test_a_hundred_environments_leave_nothing(world: Lab) -> None:
    """No descriptor, mount, group or process stays behind."""
    code = world.write(ECHO)

    async def live() -> None:
        sandbox = await world.host.create(OWN_RUNTIME)
        await sandbox.specialise(code, 128, 72, 16)
        await sandbox.close()

    await asyncio.gather(*(live() for _ in range(10)))
    before = open_things()
    for _ in range(10):
        await asyncio.gather(*(live() for _ in range(10)))
    assert open_things() == before


async def test_the_pool_hands_out_ready_made_sandboxes(mount_namespace: None, place: Path) -> None:
    """A cold start takes what was made before, and the pool is filled again."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "pool", pool_size=2) as made:
        await made.host.wait_until_filled()
        assert made.host.ready_made(OWN_RUNTIME) == 2
        waiting = pool_of(made.host)
        sandbox = await made.host.create(OWN_RUNTIME)
        assert sandbox is waiting[0]
        await made.host.wait_until_filled()
        assert made.host.ready_made(OWN_RUNTIME) == 2
        await sandbox.close()


TRACES = """
import json, os, sys
before = sorted(name for name in sys.modules if "rehears" in name)
def handler(event, context):
    return {
        "variables": sorted(os.environ), "directory": os.getcwd(), "arguments": sys.argv[1:], "first": sys.path[0],
        "path": [entry for entry in sys.path if "rehears" in entry], "modules": before,
        "importers": [path for path in sys.path_importer_cache if "rehears" in path],
    }
"""


def wait_until_receiving(pid: int) -> None:
    """Wait until a process is in recvmsg(2): a runtime looks for its order with poll(2) until it has rehearsed."""
    receiving = str(Library().number("recvmsg"))
    while Path(f"/proc/{pid}/syscall").read_text().split()[0] != receiving:
        os.sched_yield()


async def test_a_rehearsal_leaves_no_trace(mount_namespace: None, place: Path) -> None:
    """A pooled runtime has made a start and an invocation for nothing; the function must not see them."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "rehearsal", pool_size=1) as made:
        await made.host.wait_until_filled()
        [waiting] = pool_of(made.host)
        await until(lambda: len(processes_of(waiting)) == 2)  # the reaper is ready before it has forked the runtime
        [_reaper, runtime] = processes_of(waiting)
        await asyncio.to_thread(wait_until_receiving, runtime)
        async with made.function(TRACES) as pooled, made.function(TRACES) as forked:
            seen = await pooled.invoke({})
            assert processes_of(waiting) == [_reaper, runtime]
            assert seen == await forked.invoke({})
    assert seen["path"] == []
    assert seen["importers"] == []
    assert seen["modules"] == ["lambent_runtime.rehearsal"]
    assert seen["directory"] == seen["first"] == "/var/task"


async def test_a_rehearsal_succeeds_whatever_the_agents_umask_is(mount_namespace: None, place: Path) -> None:
    """Daemons of `lambent up` let nobody read their files; who fails in a rehearsal is gone when its order comes."""
    before = os.umask(0o077)
    try:
        async with asyncio.timeout(TIMEOUT_S), lab(place, "umask", pool_size=1) as made:
            await made.host.wait_until_filled()
            [pooled] = pool_of(made.host)
            [_reaper, runtime] = processes_of(pooled)
            await asyncio.to_thread(wait_until_receiving, runtime)
            assert processes_of(pooled) == [_reaper, runtime]
    finally:
        os.umask(before)


async def test_a_cold_start_does_not_wait_for_the_reaper(mount_namespace: None, place: Path) -> None:
    """Its order goes to the process that waits for it; to wake another one first would take as long as half a start."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "direct") as made, made.sandbox(ECHO) as sandbox:
        [reaper, _runtime] = processes_of(sandbox)
        os.kill(reaper, signal.SIGSTOP)
        async with made.start(sandbox) as function:
            assert (await function.frame())[0] is Kind.READY
            assert await function.invoke(1) == 1
            os.kill(reaper, signal.SIGCONT)
            await sandbox.kill_runtime()
            assert (await function.process.exit_status).signal == 9


@pytest.mark.parametrize("noticed", [True, False])
async def test_a_process_that_dies_while_it_waits_costs_no_start(
    mount_namespace: None, place: Path, noticed: bool
) -> None:
    """The kernel may choose it as the victim; the reaper then forks another, whether or not the agent has heard."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "lost") as made, made.sandbox(ECHO) as sandbox:
        [reaper, waiting] = processes_of(sandbox)
        end = os.pidfd_open(waiting)
        if not noticed:
            os.kill(reaper, signal.SIGSTOP)
        os.kill(waiting, signal.SIGKILL)
        await asyncio.to_thread(select.select, [end], [], [])
        os.close(end)
        while noticed and sandbox._waiting is not None:  # noqa: ASYNC110 - the sandbox tells nobody
            await asyncio.sleep(0)
        async with made.start(sandbox) as function:
            os.kill(reaper, signal.SIGCONT)
            assert (await function.frame())[0] is Kind.READY
            assert await function.invoke(1) == 1
            assert not function.process.exit_status.done()


async def test_a_pooled_sandbox_that_died_is_not_handed_out(mount_namespace: None, place: Path) -> None:
    """The out-of-memory killer of the machine may have taken it."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "dead", pool_size=1) as made:
        await made.host.wait_until_filled()
        assert made.host.ready_made(OWN_RUNTIME) == 1
        [waiting] = pool_of(made.host)
        signal.pidfd_send_signal(waiting._process_fd, signal.SIGKILL)
        await waiting.exited
        async with made.function(ECHO) as function:
            assert await function.invoke(1) == 1


async def test_a_dead_zygote_takes_its_sandboxes_and_is_started_again(mount_namespace: None, place: Path) -> None:
    """Its environments are reported as ended, and the node goes on."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "zygote") as made:
        sandbox = await made.host.create(OWN_RUNTIME)
        zygote_of(made.host)._process.kill()
        await sandbox.exited
        await sandbox.close()
        async with made.function(ECHO) as function:
            assert await function.invoke(2) == 2


async def test_zygotes_do_not_get_the_signals_of_the_agents_terminal(world: Lab) -> None:
    """Ctrl-C is the agent's to act on: running invocations may end first."""
    await (await world.host.create(OWN_RUNTIME)).close()
    assert os.getsid(zygote_of(world.host)._process.pid) != os.getsid(0)


async def test_leaving_the_host_takes_everything_off_the_machine(mount_namespace: None, place: Path) -> None:
    """Also sandboxes that nobody has closed."""
    async with asyncio.timeout(TIMEOUT_S), lab(place, "leave", pool_size=1) as made:
        sandbox = await made.host.create(OWN_RUNTIME)
        await sandbox.specialise(made.write(ECHO), 128, 72, 16)
        process = await sandbox.start_runtime("handler.handler", {})
        assert groups_of(f"leave-{os.getpid()}")
    assert (await process.exit_status).signal == 9
    process.channel.close()
    os.close(process.log_fd)
    assert groups_of(f"leave-{os.getpid()}") == []
    assert str(place) not in mounts()
    assert os.listdir(place / "state") == []


AGENT = """
import asyncio, json, os, sys
from pathlib import Path
from lambent_node_agent.sandbox import SandboxConfig, SandboxHost, enter_private_mount_namespace
from tests.sandbox_harness import processes_of, zygote_of

async def main():
    async with SandboxHost(SandboxConfig(Path(sys.argv[1]), sys.argv[2], pool_size=1)) as host:
        sandbox = await host.create(sys.argv[3])
        await sandbox.specialise(Path(sys.argv[4]), 128, 72, 16)
        process = await sandbox.start_runtime("handler.handler", {})
        await asyncio.get_running_loop().sock_recv(process.channel, 13)  # READY
        print(json.dumps([*processes_of(sandbox), zygote_of(host)._process.pid]), flush=True)
        await asyncio.Event().wait()

enter_private_mount_namespace()
asyncio.run(main())
"""


async def test_a_killed_agent_leaves_no_process_and_no_mount_and_the_next_one_sweeps(
    mount_namespace: None, place: Path
) -> None:
    """SIGKILL gives nobody a chance to clean up: the kernel ends the processes, the next start takes the rest."""
    owner = f"killed-{os.getpid()}"
    with start_agent(place, owner) as agent:
        assert agent.stdout is not None
        try:
            while not (line := await asyncio.to_thread(agent.stdout.readline)).startswith(b"["):
                assert b"ephemeral_storage_without_direct_io" in line  # the disk of a virtual machine is memory
            pids = json.loads(line)
            assert len(pids) == 3  # reaper, runtime, zygote
            processes = [os.pidfd_open(pid) for pid in pids]
        finally:
            agent.kill()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(TIMEOUT_S):
        for process in processes:
            ended = asyncio.Event()
            loop.add_reader(process, ended.set)
            await ended.wait()
            loop.remove_reader(process)
            os.close(process)
    assert str(place) not in mounts("1")
    assert groups_of(owner)
    async with asyncio.timeout(TIMEOUT_S), SandboxHost(config(place, "killed")) as host:
        await (await host.create(OWN_RUNTIME)).close()
    assert groups_of(owner) == []
    assert os.listdir(place / "state") == []


async def test_agents_on_one_machine_use_different_uids(world: Lab, place: Path) -> None:
    """Limits by UID would otherwise be shared between the nodes of one machine."""
    code = "import os\ndef handler(event, context):\n    return os.getuid()\n"
    async with lab(place, "second") as other, world.function(code) as first, other.function(code) as second:
        assert await first.invoke() != await second.invoke()
