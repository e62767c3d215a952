"""What a host takes of the machine: an owner mark, a directory, controllers; and what it refuses to run without."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sandbox_harness import TIMEOUT_S, Lab, config, lab

from lambent_node_agent.sandbox import SandboxConfig, SandboxError, SandboxHost
from lambent_node_agent.sandbox.owner_lock import OwnerLock

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = "def handler(event, context):\n    return event\n"
# A machine without a controller: this process's mounts are its own.
HOST = """
import asyncio, sys
from pathlib import Path
from lambent_node_agent.sandbox import SandboxConfig, SandboxHost, enter_private_mount_namespace
from lambent_runtime import linux

async def main(state, owner, runtime, *allowed):
    async with SandboxHost(SandboxConfig(Path(state), owner, 0, allow_missing=frozenset(allowed))) as host:
        sandbox = await host.create(runtime)
        await sandbox.specialise(Path("/usr/bin"), 128, 72, 16)
        await sandbox.close()
        print("served")

enter_private_mount_namespace()
if sys.argv[1] == "seccomp":
    linux.mount("/dev/null", sys.argv.pop(2), None, linux.MS_BIND)
elif Path("/sys/fs/cgroup/cgroup.controllers").exists():
    # Version 2 has one mount for all controllers: their list gets another one mounted over it.
    names, shorter = Path("/sys/fs/cgroup/cgroup.controllers"), Path(sys.argv[2] + "-controllers")
    shorter.write_text(" ".join(name for name in names.read_text().split() if name != sys.argv[1]))
    linux.mount(str(shorter), str(names), None, linux.MS_BIND)
else:
    linux.umount("/sys/fs/cgroup/" + sys.argv[1])
asyncio.run(main(*sys.argv[2:]))
"""


async def test_an_owner_mark_belongs_to_one_living_agent(world: Lab, place: Path) -> None:
    """A second agent under the same name would kill the first one's functions when it sweeps."""
    async with lab(place / "a", "twice") as made, made.function(ECHO) as function:
        owner = f"twice-{os.getpid()}"
        with pytest.raises(SandboxError, match=rf"{owner}.* runs already, as process {os.getpid()};.*--owner"):
            await SandboxHost(config(place / "b", "twice")).__aenter__()
        assert await function.invoke(1) == 1
    assert f"{owner}.lock" not in os.listdir("/run/lambent/owners")
    async with lab(place / "a", "twice") as made, made.function(ECHO) as function:
        assert await function.invoke(2) == 2


async def test_the_mark_of_a_dead_agent_is_free_and_leaves_no_file(place: Path) -> None:
    """A machine on which agents were killed for years has no more of them in /run than live."""
    for owner in ("dead", "dead-too"):
        (place / f"{owner}.lock").write_text("1")
    lock, other = OwnerLock(place, "dead"), OwnerLock(place, "living")
    assert sorted(os.listdir(place)) == ["dead.lock", "living.lock"]
    with pytest.raises(SandboxError, match=f"runs already, as process {os.getpid()}"):
        OwnerLock(place, "dead")
    other.close()
    lock.close()
    assert os.listdir(place) == []


async def test_a_state_directory_belongs_to_one_living_agent(world: Lab, place: Path) -> None:
    """Its cache of code is the agent's own."""
    async with lab(place, "one"):
        with pytest.raises(SandboxError, match=r"state is used by another agent.*--state-dir"):
            await SandboxHost(config(place, "other")).__aenter__()


def has_controller(name: str) -> bool:
    groups = Path("/sys/fs/cgroup")
    return os.geteuid() == 0 and any((groups / path).exists() for path in ("cgroup.controllers", f"{name}/tasks"))


def run_without(controller: str, place: Path, *allowed: str) -> subprocess.CompletedProcess[str]:
    if not has_controller(controller):
        pytest.skip(f"{controller} has no hierarchy of its own here that could be hidden")
    return run_host(controller, place, allowed=allowed)


def installed_libseccomp() -> str:
    ctypes.CDLL("libseccomp.so.2")
    mappings = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split()[-1] for line in mappings if "libseccomp" in line)


def run_host(
    missing: str, place: Path, *hidden: str, allowed: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    runtime = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    arguments = [missing, *hidden, str(place / "state"), f"without-{os.getpid()}", runtime, *allowed]
    command = [sys.executable, "-c", HOST, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * TIMEOUT_S)


async def test_a_machine_that_cannot_limit_memory_is_refused_unless_allowed_by_name(place: Path) -> None:
    """A function of 128 MB could take all of the machine, and nobody would know why."""
    refused = await asyncio.to_thread(run_without, "memory", place)
    assert "memory is not enforced" in refused.stderr
    assert "--allow-missing memory" in refused.stderr
    allowed = await asyncio.to_thread(run_without, "memory", place, "memory")
    assert "served" in allowed.stdout, allowed.stderr
    assert "missing=memory" in allowed.stdout


async def test_a_machine_without_filters_of_system_calls_is_refused_unless_allowed_by_name(place: Path) -> None:
    """Functions could then try every hole of the kernel."""
    library = installed_libseccomp()
    refused = await asyncio.to_thread(run_host, "seccomp", place, library)
    assert "libseccomp.so.2 is not installed" in refused.stderr
    assert "--allow-missing seccomp" in refused.stderr
    allowed = await asyncio.to_thread(run_host, "seccomp", place, library, allowed=("seccomp",))
    assert "served" in allowed.stdout, allowed.stderr
    assert "missing=seccomp" in allowed.stdout


async def test_a_machine_that_cannot_share_cpu_is_warned_about(place: Path) -> None:
    """Functions are unfair to each other then, and no more."""
    done = await asyncio.to_thread(run_without, "cpu", place)
    assert "served" in done.stdout, done.stderr
    assert "missing=cpu" in done.stdout


async def test_a_machine_that_counts_no_processes_in_groups_counts_them_by_rlimit(place: Path) -> None:
    """The rlimit holds for a sandbox's user namespace as a whole: nothing is missing."""
    done = await asyncio.to_thread(run_without, "pids", place)
    assert "served" in done.stdout, done.stderr
    assert "missing=" not in done.stdout


async def test_a_host_that_is_refused_leaves_nothing(world: Lab, place: Path) -> None:
    """Another one may start at once."""
    taken = SandboxConfig(place / "state", "not-a-directory", lock_dir=place / "locks")
    (place / "locks").write_text("")
    with pytest.raises(SandboxError, match="owner mark"):
        await SandboxHost(taken).__aenter__()
    assert not (place / "state").exists()
