"""A function's user namespace holds its own UID and no other, and cannot be changed, left or nested."""

from __future__ import annotations

import pytest

from tests.security.target import SYSTEM_CALLS, Attack, Target


async def test_the_map_of_uids_is_one_line_and_stays_so(attack: Attack) -> None:
    """A line for UID 0, or for a neighbour's, would make that user's files the function's to open."""
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    own = os.getuid()
    def write(name, text):
        with open("/proc/self/" + name, "w") as file:
            file.write(text)
    lines = ["0 0 1", f"0 {own} 1", f"{own} {own} 1", f"{own + 1} {own + 1} 1", "0 0 4294967295"]
    answers = [attempt(write, name, line) for name in ("uid_map", "gid_map") for line in lines]
    answers.append(attempt(write, "setgroups", "allow"))
    maps = [open("/proc/self/" + name).read().split() for name in ("uid_map", "gid_map")]
    return sorted(set(answers)), maps == [[str(own), str(own), "1"]] * 2, open("/proc/self/setgroups").read()
"""
    )
    answers, unchanged, setgroups = await attack(source)
    assert set(answers) <= {"EPERM", "EACCES"}
    assert (unchanged, setgroups) == (True, "deny\n")


async def test_nobody_can_be_become_but_oneself(attack: Attack) -> None:
    """UID 0, the neighbours' UIDs and all groups have no number in the namespace."""
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    others = [0, 1, 65534, os.getuid() - 1, os.getuid() + 1, 1000]
    open("/tmp/own", "w").close()
    return sorted({
        *[attempt(os.setresuid, other, other, other) for other in others],
        *[attempt(os.setresgid, other, other, other) for other in others],
        *[attempt(os.setgroups, [other]) for other in others],
        *[attempt(os.chown, "/tmp/own", other, -1) for other in others],
    })
"""
    )
    assert set(await attack(source)) <= {"EPERM", "EINVAL"}


@pytest.mark.parametrize("path", ["/proc/sys/user/max_user_namespaces", "/proc/1/uid_map", "/proc/1/setgroups"])
async def test_settings_of_the_namespace_cannot_be_written(attack: Attack, path: str) -> None:
    """They are its owner's, who is the function: the mount of /proc/sys and the reaper's state are in the way."""
    source = SYSTEM_CALLS + "def handler(event, context):\n    return attempt(open, event, 'w')\n"
    assert await attack(source, path) in ("EROFS", "EACCES")


async def test_every_process_is_in_the_namespace_without_a_capability(target: Target) -> None:
    """As the host sees it, with what the function has started: in every set, after every way of starting a program."""
    source = """
import os, subprocess
def handler(event, context):
    subprocess.Popen(["/usr/bin/sleep", "100"])
    return os.getuid()
"""
    name = await target.deploy(source)
    uid = (await target.client.invoke(name)).json()
    processes = target.processes_of(uid)
    assert len(processes) >= 3
    for process in processes:
        status = target.status(process)
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert len({target.namespaces(process) for process in processes}) == 1
