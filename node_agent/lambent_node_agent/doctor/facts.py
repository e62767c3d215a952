"""Look at the machine; what follows from it is decided in `checks`."""

from __future__ import annotations

import os
import platform
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lambent_common.machine import Machine, free_disk_mib, read_machine
from lambent_common.programs import ETCD, NATS_SERVER, Program, Version, find_program, program_version
from lambent_node_agent.cgroups import Layout, read_layout
from lambent_node_agent.sandbox import SandboxError, interpreters
from lambent_node_agent.sandbox.seccomp import compile_filters
from lambent_runtime import linux

from .trial import try_sandbox, try_storage

if TYPE_CHECKING:
    from collections.abc import Mapping

# Every namespace that a sandbox has, by the name it goes by in /proc/self/ns.
NAMESPACES = {
    "mnt": linux.CLONE_NEWNS,
    "pid": linux.CLONE_NEWPID,
    "ipc": linux.CLONE_NEWIPC,
    "uts": linux.CLONE_NEWUTS,
    "net": linux.CLONE_NEWNET,
    "cgroup": linux.CLONE_NEWCGROUP,
}


@dataclass(frozen=True, slots=True)
class FoundProgram:
    """A program on this machine; `version` is None when it does not say."""

    path: Path
    version: Version | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found.

    Attributes:
        user_id: Effective UID.
        kernel: Release of the kernel, as `uname -r`.
        namespaces: For each of NAMESPACES None, or why it could not be made.
        layout: The hierarchies of control groups.
        unwritable_groups: Mount points of hierarchies in which no group can be made.
        seccomp_error: Why system calls cannot be filtered; None when they can.
        open_files: Hard limit of descriptors, to which the agent raises its own; None means none.
        pids: Most processes of the machine.
        runtimes: Interpreters by the name of their runtime, with their paths.
        etcd: On PATH; None when missing.
        nats_server: The wheel's, or on PATH; None when missing.
        machine: Memory and CPUs.
        data_dir: Where `lambent up` keeps everything when nothing else is said.
        disk_free_mib: On its disk.
        storage_error: Why /tmp cannot be on disk; None when it can.
        sandbox_error: Why no sandbox could be made; None when one was.
    """

    user_id: int
    kernel: str
    namespaces: Mapping[str, str | None]
    layout: Layout
    unwritable_groups: tuple[Path, ...]
    seccomp_error: str | None
    open_files: int | None
    pids: int
    runtimes: Mapping[str, Path]
    etcd: FoundProgram | None
    nats_server: FoundProgram | None
    machine: Machine
    data_dir: Path
    disk_free_mib: int
    storage_error: str | None
    sandbox_error: str | None


async def gather_facts(search_path: str, data_dir: Path) -> Facts:
    """Look at everything; takes about a second, most of it for starting the programs that say their version.

    Args:
        search_path: Directories as in PATH.
        data_dir: Where a cluster would keep everything.
    """
    # First, while this process has one thread: a fork copies only the calling one.
    namespaces = {name: _try_unshare(flag) for name, flag in NAMESPACES.items()}
    layout = read_layout()
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    found = await interpreters.discover(tuple(search_path.split(":")))
    return Facts(
        user_id=os.geteuid(),
        kernel=platform.release(),
        namespaces=namespaces,
        layout=layout,
        unwritable_groups=tuple(
            hierarchy.mount for hierarchy in layout.hierarchies if not _is_writable(hierarchy.own, hierarchy.mount)
        ),
        seccomp_error=_try_filters(),
        open_files=None if hard_limit == resource.RLIM_INFINITY else hard_limit,
        pids=int(_read("/proc/sys/kernel/pid_max") or 0),
        runtimes={name: interpreter.executable for name, interpreter in found.items()},
        etcd=_find(ETCD, search_path),
        nats_server=_find(NATS_SERVER, search_path),
        machine=read_machine(),
        data_dir=data_dir,
        disk_free_mib=free_disk_mib(data_dir),
        storage_error=(storage_error := try_storage()),
        sandbox_error=await try_sandbox(storage_error),
    )


def _try_filters() -> str | None:
    """Make the filters of system calls, without installing them; None, or why there can be none."""
    try:
        compile_filters()
    except SandboxError as error:
        return str(error)
    return None


def _find(program: Program, search_path: str) -> FoundProgram | None:
    path = find_program(program, search_path)
    return None if path is None else FoundProgram(path, program_version(path))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _is_writable(own: Path, mount: Path) -> bool:
    directory = own if own.exists() else mount
    read_only = bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    return not read_only and os.access(directory, os.W_OK)


def _try_unshare(flag: int) -> str | None:
    """Make a namespace in a child that ends at once; None, or the kernel's objection."""
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            linux.unshare(flag)
        except OSError as error:
            status = error.errno or 255
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return os.strerror(status) if status else None
