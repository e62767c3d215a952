"""The user namespace of a sandbox: one UID in it, nothing that belongs to it, and what a host does without."""

from __future__ import annotations

import asyncio
import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sandbox.test_isolation import PROBE, probe
from tests.sandbox_harness import OWN_RUNTIME, Lab, processes_of

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
import asyncio, ctypes, struct, sys
from pathlib import Path
from lambent_node_agent.sandbox import SandboxConfig, SandboxHost, enter_private_mount_namespace
from lambent_runtime import linux

def forbid_user_namespaces(number):
    "As the filters of containers do: EPERM to unshare(2) with CLONE_NEWUSER, everything else passes."
    program = b"".join(struct.pack("HBBI", *line) for line in (
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 3, number),
        (0x20, 0, 0, 16),  # load its first argument
        (0x45, 0, 1, linux.CLONE_NEWUSER),
        (0x06, 0, 0, 0x00050001),  # EPERM
        (0x06, 0, 0, 0x7FFF0000),
    ))
    if ctypes.CDLL(None).prctl(22, 2, linux.filter_program(program), 0, 0):
        raise OSError("no filter")

async def main(state, owner, runtime):
    async with SandboxHost(SandboxConfig(Path(state), owner, 0)) as host:
        sandbox = await host.create(runtime)
        await sandbox.specialise(Path("/usr/bin"), 128, 72, 16)
        await sandbox.close()
        print("served")

enter_private_mount_namespace()
forbid_user_namespaces(int(sys.argv[1]))
asyncio.run(main(*sys.argv[2:]))
"""


async def test_a_kernel_that_allows_no_user_namespaces_serves_without(mount_namespace: None, place: Path) -> None:
    """Every other layer is there; the agent's log says what is not, and why."""
    number = {"x86_64": 272, "aarch64": 97}.get(platform.machine())
    if number is None:
        pytest.skip(f"the number of unshare(2) on {platform.machine()} is not known here")
    arguments = [str(number), str(place / "state"), f"forbidden-{os.getpid()}", OWN_RUNTIME]
    command = [sys.executable, "-c", HOST, *arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=60)
    assert "served" in done.stdout, done.stderr
    assert "no_user_namespaces" in done.stdout
    assert "Operation not permitted" in done.stdout
