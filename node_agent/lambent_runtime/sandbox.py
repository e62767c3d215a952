"""The sandbox recipe: what turns a fork of the zygote into PID 1 of a sandbox.

It reads top to bottom, one system call a step; a step that fails names itself in its OSError and the process exits. The
zygote has already put the process into a PID namespace of its own (it is PID 1 there) and has pivoted into the
read-only root (`root`), of whose mounts the process takes a copy.
"""

from __future__ import annotations

import os
import resource
import signal
import socket

from . import linux

NAMESPACES = (
    linux.CLONE_NEWNS  # mounts of its own, a copy of the zygote's few
    | linux.CLONE_NEWUTS  # host name
    | linux.CLONE_NEWIPC  # System V IPC and POSIX message queues
    | linux.CLONE_NEWNET  # only a loopback interface
    | linux.CLONE_NEWCGROUP  # its own cgroup looks like the root of the hierarchy
)

HOST_NAME = "localhost"

MASKED_FILES = (
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
)
MASKED_DIRECTORIES = ("/proc/acpi", "/proc/driver", "/proc/scsi")
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys")
"""What container runtimes hide or make read-only of procfs (OCI runtime specification, `maskedPaths`,
`readonlyPaths`)."""

LIMITS = (
    # Measured on AWS Lambda: descriptors, processes of this UID, locked memory, stack.
    (resource.RLIMIT_NOFILE, 1024, 1024),
    (resource.RLIMIT_NPROC, 742, 742),
    (resource.RLIMIT_MEMLOCK, 65_536, 65_536),
    (resource.RLIMIT_STACK, 8_388_608, resource.RLIM_INFINITY),
    # AWS allows 10 GiB of core file. On a machine of one's own `core_pattern` may name a program of the host, which 0
    # does not stop and 1 does: core(5).
    (resource.RLIMIT_CORE, 1, 1),
    # POSIX message queues are kernel memory of the whole machine.
    (resource.RLIMIT_MSGQUEUE, 819_200, 819_200),
)

_MASK = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC
_PROC_FLAGS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


def enter(uid: int, control: int, cgroups: list[int], mounts: list[tuple[int, str]]) -> None:
    """Become PID 1 of a sandbox.

    On return the process has no privilege, and no descriptor but `control` and `/dev/null`.

    Args:
        uid: UID and GID of the sandbox, used by no other one on this machine.
        control: Descriptor of the control socket to the agent.
        cgroups: Descriptors of the groups' `tasks` or `cgroup.procs`, one for each hierarchy.
        mounts: Detached mounts and where they belong; the agent has made them slaves of its own.

    Raises:
        OSError: A step failed.
    """
    # 1. Into the cgroups, while the process is one thread and root. Writing 0 to `tasks` moves the caller alone, for
    # which    the kernel does not wait for an RCU grace period (10 ms on an idle machine) as it does for another
    # process.
    for group in cgroups:
        os.write(group, b"0")
    # 2. Own namespaces. After step 1, so that the cgroup namespace is rooted at the sandbox's groups.
    linux.unshare(NAMESPACES)
    # 3. The slot's places: code and /tmp come in later through them, when the agent mounts over its side.
    for fd, target in mounts:
        linux.attach_mount(fd, target)
    # 4. Own /proc: shows this PID namespace only.
    linux.mount("proc", "/proc", "proc", _PROC_FLAGS)
    # 5. What procfs says or does about the whole machine is hidden or read-only.
    _mask_proc()
    # 6. Loopback, as every program expects it. This socket is of the new network namespace.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        linux.bring_loopback_up(any_socket.fileno())
    # 7. The host's name is nobody's business.
    linux.set_host_name(HOST_NAME)
    # 8. The session keyring came with the fork from the agent's login session.
    linux.join_new_session_keyring()
    # 9. Limits of a process; those of the whole sandbox are its cgroups'.
    for limit, soft, hard in LIMITS:
        resource.setrlimit(limit, (soft, hard))
    # 10. No capability can come back by execve, and UID 0 (which nobody here can become) would mean nothing.
    linux.drop_bounding_set()
    linux.lock_securebits()
    # 11. Groups before UID: without CAP_SETGID they could not be changed any more.
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # 12. After step 10 a change of UID does not empty the capability sets as it usually would: each by name.
    linux.clear_capabilities()
    linux.set_no_new_privileges()
    # 13. Same UID as the function's code, so: no ptrace of this process, none of its /proc files readable.
    linux.set_dumpable(dumpable=False)
    # 14. Dies with the zygote, which dies with the agent. After step 11, which would clear it.
    linux.set_parent_death_signal(signal.SIGKILL)
    # 15. Standard streams to the sandbox's own /dev/null, and nothing else but the control socket.
    _keep_only(control)
    # 16. New files are as usual; the directory exists in every sandbox.
    os.umask(0o022)
    os.chdir("/")


def _mask_proc() -> None:
    for path in MASKED_FILES:
        if os.path.exists(path):
            linux.bind("/dev/null", path, _MASK)
    for path in MASKED_DIRECTORIES:
        if os.path.isdir(path):
            linux.bind("/var/empty", path, _MASK)
    for path in READ_ONLY_PATHS:
        if os.path.exists(path):
            linux.bind(path, path, _MASK | linux.MOUNT_ATTR_NODEV)


def _keep_only(control: int) -> None:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(3, control)
    os.closerange(control + 1, max(limit, control + 1))
