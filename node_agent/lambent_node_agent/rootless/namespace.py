"""Enter a user namespace in which this process is root: over its own namespaces, and over nothing else."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lambent_node_agent.sandbox import FIRST_UID, UIDS_PER_AGENT, Confinement, SandboxError
from lambent_runtime import linux

from .subordinate_ids import Block, largest_block

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROGRAMS = {"newuidmap": Path("/etc/subuid"), "newgidmap": Path("/etc/subgid")}
"""What maps a block of IDs into a namespace, being setuid root, and where it looks up whose block that is."""
_TIMEOUT_S = 10.0
_ALL_UIDS = ["0", "0", "4294967295"]
"""The map of the first user namespace: user_namespaces(7)."""


def enter_user_namespace() -> Confinement:
    """Make this process root in a user namespace of its own. Call it before the first thread.

    The user is UID 0 in it. UIDs for sandboxes come from the user's block in `/etc/subuid`; without one, or without
    `newuidmap`, there are none, and sandboxes share the user's own.

    Raises:
        SandboxError: The kernel refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    blocks, remark = _blocks(uid)
    with _Mapper(os.getpid(), (uid, gid), blocks) as mapper:
        try:
            linux.unshare(linux.CLONE_NEWUSER)
        except OSError as error:
            raise SandboxError(
                "without root, sandboxes are made in a user namespace, and the kernel refuses one: "
                f"{error.strerror}; allow it (sysctl user.max_user_namespaces, on Ubuntu also "
                "kernel.apparmor_restrict_unprivileged_userns=0), or run this as root"
            ) from error
        if blocks:
            refusal = mapper.map()
            if refusal is None:
                return Confinement(uids=min(block.size for block in blocks.values()))
            remark = refusal
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise SandboxError(f"the user namespace of an agent without root: {error}") from error
    return Confinement(uids=0, remark=remark)


def is_root() -> bool:
    """Whether this process is the machine's root, and not of a user namespace, as in a container of a user's."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == _ALL_UIDS


def lock_dir(environment: Mapping[str, str]) -> Path:
    """Where all agents of this user agree on owner marks and UIDs: in its runtime directory, or else in its home."""
    runtime_dir = Path(environment.get("XDG_RUNTIME_DIR") or "/nonexistent")
    if runtime_dir.is_dir():
        return runtime_dir / "lambent"
    return Path(environment.get("HOME") or tempfile.gettempdir(), ".cache", "lambent")


def _blocks(uid: int) -> tuple[dict[str, Block], str]:
    """Return the block of each program, or none and why."""
    try:
        name: str | None = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = None
    blocks: dict[str, Block] = {}
    for program, path in _PROGRAMS.items():
        if shutil.which(program, path=os.defpath) is None:
            return {}, f"{program} is not installed (apt-get install uidmap)"
        block = largest_block(path.read_text() if path.exists() else "", uid, name)
        if block is None or block.size < UIDS_PER_AGENT:
            # What `usermod --add-subuids` is given by default, and by distributions to every new user.
            return {}, f"{path} has no {UIDS_PER_AGENT} IDs of {name or uid} (usermod --add-{path.name}s 100000-165535)"
        blocks[program] = block
    return blocks, ""


class _Mapper:
    """A process that stays outside of the namespace, where `newuidmap` may write its maps; ends with the block.

    Args:
        pid: Who enters it.
        own: UID and GID that are 0 inside.
        blocks: For each program what else it maps.
    """

    def __init__(self, pid: int, own: tuple[int, int], blocks: Mapping[str, Block]) -> None:
        self._commands = [
            [program, str(pid), "0", str(one), "1", str(FIRST_UID), str(block.first), str(block.size)]
            for one, (program, block) in zip(own, blocks.items(), strict=False)
        ]

    def __enter__(self) -> Self:
        orders, self._order = os.pipe()
        self._answer, answers = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._order)
            os.close(self._answer)
            if os.read(orders, 1):
                os.write(answers, _carry_out(self._commands).encode())
            os._exit(0)
        os.close(orders)
        os.close(answers)
        return self

    def map(self) -> str | None:
        """Have the maps written; None, or why they could not be."""
        os.write(self._order, b"m")
        answer = os.read(self._answer, 4096).decode()
        return None if answer == "mapped" else answer

    def __exit__(self, *_error: object) -> None:
        os.close(self._order)
        os.close(self._answer)
        os.waitpid(self._pid, 0)


def _carry_out(commands: list[list[str]]) -> str:
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, env={})
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{command[0]}: {error}"
        if done.returncode:
            return done.stderr.strip() or f"{command[0]} ended with status {done.returncode}"
    return "mapped"
