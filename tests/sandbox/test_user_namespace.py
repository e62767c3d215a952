"""The user namespace of a sandbox: one UID in it, nothing that belongs to it, and what a host does without."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sandbox.test_isolation import PROBE, probe
from tests.sandbox_harness import OWN_RUNTIME, TIMEOUT_S, Lab, processes_of
from tests.user_namespaces import FORBID

NS_GET_USERNS = 0xB701
"""ioctl_nsfs(2)."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_sandbox_has_a_user_namespace_with_one_uid(world: Lab) -> None:
    """Should it get at a capability: that would count here, where there is neither UID 0 nor anything to use it on."""
    uids, gids, setgroups, uid = await probe(
        world,
        "open('/proc/self/uid_map').read().split()",
        "open('/proc/self/gid_map').read().split()",
        "open('/proc/self/setgroups').read()",
        "os.getuid()",
    )
    assert eval(uids) == eval(gids) == [uid, uid, "1"]
    assert eval(setgroups) == "deny\n"


async def test_only_the_user_namespace_is_the_sandbox_s_own_to_command(world: Lab) -> None:
    """Its other namespaces belong to the one around it, whose capabilities it has lost."""
    async with world.function(PROBE) as function:
        own = processes_of(function.sandbox)[-1]
        assert os.readlink(f"/proc/{own}/ns/user") != os.readlink("/proc/self/ns/user")
        for name in ("mnt", "net", "pid", "ipc", "uts", "cgroup"):
            file = os.open(f"/proc/{own}/ns/{name}", os.O_RDONLY)
            owner = fcntl.ioctl(file, NS_GET_USERNS)
            assert os.fstat(owner).st_ino == os.stat("/proc/self/ns/user").st_ino, name
            os.close(owner)
            os.close(file)


async def test_files_of_others_are_nobody_s_and_have_a_name(world: Lab) -> None:
    """Programs that look an owner up find one; its own files are its own."""
    system, made, path, group = await probe(
        world,
        "os.stat('/usr/bin').st_uid",
        "(open('/tmp/own', 'w').close(), os.stat('/tmp/own').st_uid == os.getuid())[1]",
        "__import__('pathlib').Path('/usr').owner()",
        "__import__('pathlib').Path('/usr').group()",
    )
    assert (system, made) == ("65534", "True")
    assert (eval(path), eval(group)) == ("nobody", "nogroup")


HOST = """
import asyncio, sys
from pathlib import Path
from lambent_node_agent.sandbox import SandboxConfig, SandboxHost

async def main(state, owner, runtime):
    async with SandboxHost(SandboxConfig(Path(state), owner, 0)) as host:
        sandbox = await host.create(runtime)
        await sandbox.specialise(Path("/usr/bin"), 128, 72, 16)
        await sandbox.close()
        print("served")

asyncio.run(main(*sys.argv[1:]))
"""
ENTER = "from lambent_node_agent.sandbox import enter_private_mount_namespace\nenter_private_mount_namespace()\n"


async def test_a_kernel_that_allows_no_user_namespaces_serves_without(mount_namespace: None, place: Path) -> None:
    """Every other layer is there; the agent's log says what is not, and why."""
    arguments = [str(place / "state"), f"forbidden-{os.getpid()}", OWN_RUNTIME]
    command = [sys.executable, "-c", ENTER + FORBID + HOST, *arguments]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, timeout=2 * TIMEOUT_S
    )
    assert "served" in done.stdout, done.stderr
    assert "missing=user-namespace" in done.stdout
    assert "Operation not permitted" in done.stdout
