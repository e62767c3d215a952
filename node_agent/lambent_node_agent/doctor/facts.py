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
from lambent_node_agent.rootless import enter_user_namespace, is_root, lock_dir
from lambent_node_agent.sandbox import DEFAULT_LOCK_DIR, SandboxError, interpreters, memory_merging
from lambent_node_agent.sandbox.seccomp import compile_filters
from lambent_runtime import linux

from .trial import try_network, try_sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lambent_node_agent.isolation import Protection
    from lambent_node_agent.sandbox import Confinement

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
        confinement: The user namespace in which sandboxes are made without root; None as root, and where there is none.
        confinement_error: Why there is none; None when there is, and as root.
        kernel: Release of the kernel, as `uname -r`.
        namespaces: For each of NAMESPACES None, or why it could not be made.
        layout: The hierarchies of control groups.
        usable: What of them this user may use; all of them as root.
        unwritable_groups: Mount points of hierarchies in which no group can be made.
        seccomp_error: Why system calls cannot be filtered; None when they can.
        network_error: Why functions can have no network; None when they can.
        merging_error: Why the kernel merges no pages now; None when it does.
        open_files: Hard limit of descriptors, to which the agent raises its own; None means none.
        pids: Most processes of the machine.
        runtimes: Interpreters by the name of their runtime, with their paths.
        etcd: On PATH; None when missing.
        nats_server: The wheel's, or on PATH; None when missing.
        machine: Memory and CPUs.
        data_dir: Where `lambent up` keeps everything when nothing else is said.
        disk_free_mib: On its disk.
        sandbox_error: Why no sandbox could be made; None when one was.
        missing: What the machine does not protect itself by, and why; None when no sandbox could be made.
    """

    user_id: int
    confinement: Confinement | None
    confinement_error: str | None
    kernel: str
    namespaces: Mapping[str, str | None]
    layout: Layout
    usable: Layout
    unwritable_groups: tuple[Path, ...]
    seccomp_error: str | None
    network_error: str | None
    merging_error: str | None
    open_files: int | None
    pids: int
    runtimes: Mapping[str, Path]
    etcd: FoundProgram | None
    nats_server: FoundProgram | None
    machine: Machine
    data_dir: Path
    disk_free_mib: int
    sandbox_error: str | None
    missing: Mapping[Protection, str] | None


async def gather_facts(search_path: str, data_dir: Path) -> Facts:
    """Look at everything; takes about a second, most of it for starting the programs that say their version.

    Args:
        search_path: Directories as in PATH.
        data_dir: Where a cluster would keep everything.
    """
    # First, while this process has one thread: a fork copies only the calling one.
    user_id = os.geteuid()
    confinement, confinement_error = _confine()
    namespaces = {name: _try_unshare(flag) for name, flag in NAMESPACES.items()}
    layout, usable = read_layout(), read_layout(delegated=confinement is not None)
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    found = await interpreters.discover(tuple(search_path.split(":")))
    sandbox_error, missing = await try_sandbox(
        confinement, DEFAULT_LOCK_DIR if confinement is None else lock_dir(os.environ)
    )
    return Facts(
        user_id=user_id,
        confinement=confinement,
        confinement_error=confinement_error,
        kernel=platform.release(),
        namespaces=namespaces,
        layout=layout,
        usable=usable,
        unwritable_groups=tuple(
            hierarchy.mount for hierarchy in usable.hierarchies if not _is_writable(hierarchy.own, hierarchy.mount)
        ),
        seccomp_error=_try_filters(),
        network_error=try_network(),
        merging_error=memory_merging.objection(),
        open_files=None if hard_limit == resource.RLIM_INFINITY else hard_limit,
        pids=int(_read("/proc/sys/kernel/pid_max") or 0),
        runtimes={name: interpreter.executable for name, interpreter in found.items()},
        etcd=_find(ETCD, search_path),
        nats_server=_find(NATS_SERVER, search_path),
        machine=read_machine(),
        data_dir=data_dir,
        disk_free_mib=free_disk_mib(data_dir),
        sandbox_error=sandbox_error,
        missing=missing,
    )


def _confine() -> tuple[Confinement | None, str | None]:
    """Become root in a user namespace, unless we are root; or tell why not."""
    if is_root():
        return None, None
    try:
        return enter_user_namespace(), None
    except SandboxError as error:
        return None, str(error)


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
