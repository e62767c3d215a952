"""The sandbox recipe: what turns a fork of the zygote into PID 1 of a sandbox.

It reads top to bottom, one system call a line, and is prepared by the zygote (`plan`); a call that fails names itself
in its OSError and the process exits. The zygote has already put the process into a PID namespace of its own (it is PID
1 there) and has pivoted into the read-only root (`root`), of whose mounts the process takes a copy.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import struct

from . import linux
from .plan import Plan, Register
from .root import OTHER_PROC
from .user_namespace import UserNamespace

NAMESPACES = (
    linux.CLONE_NEWNS  # mounts of its own, a copy of the zygote's few
    | linux.CLONE_NEWUTS  # host name
    | linux.CLONE_NEWIPC  # System V IPC and POSIX message queues
    | linux.CLONE_NEWCGROUP  # its own cgroup looks like the root of the hierarchy
)

HOST_NAME = b"localhost"
PROCESS_NAME = b"lambent-reaper"
CONTROL = 3
"""Descriptor of the control socket to the agent, once the recipe is through."""
CHILDREN = CONTROL + 1
"""Descriptor that is readable while a child has ended: signalfd(2), nonblocking."""
_SIGCHLD_SET = (1 << signal.SIGCHLD - 1).to_bytes(128, "little")
"""A `sigset_t` of SIGCHLD alone."""

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
    # Measured on AWS Lambda: descriptors, locked memory, stack.
    (resource.RLIMIT_NOFILE, 1024, 1024),
    (resource.RLIMIT_MEMLOCK, 65_536, 65_536),
    (resource.RLIMIT_STACK, 8_388_608, resource.RLIM_INFINITY),
    # AWS allows 10 GiB of core file. On a machine of one's own `core_pattern` may name a program of the host, which 0
    # does not stop and 1 does: core(5).
    (resource.RLIMIT_CORE, 1, 1),
    # POSIX message queues are kernel memory of the whole machine.
    (resource.RLIMIT_MSGQUEUE, 819_200, 819_200),
)

PROCESSES = 742
"""Of this UID in this user namespace; measured on AWS Lambda."""

_BEFORE_ALL_OTHERS = -20

_READ_ONLY = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC
_PROC_FLAGS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


class Recipe:
    """Makes a fork of the zygote PID 1 of a sandbox. Prepared once, filled in for each fork.

    Args:
        targets: Where the slot's mounts belong.
        groups: Number of cgroup hierarchies.
        filters: Programs against system calls, in the order in which they are installed.
        user_namespace: Give it a user namespace of its own, which not every kernel allows.
        confined: The zygote is root in a user namespace alone.
    """

    def __init__(
        self,
        targets: tuple[str, ...],
        groups: int,
        filters: tuple[bytes, ...],
        *,
        user_namespace: bool,
        confined: bool,
    ) -> None:
        self._uid = Register()
        self._user_namespace = UserNamespace() if user_namespace else None
        self._confined = confined
        self._control = Register()
        self._network = Register()
        self._mounts = tuple(Register() for _ in targets)
        self._groups = tuple(Register() for _ in range(groups))
        self._filters = tuple(linux.filter_program(code) for code in filters)
        self._plan = Plan()
        self._describe(targets)

    def fill_in(self, uid: tuple[int, int], control: int, network: int, groups: list[int], mounts: list[int]) -> None:
        """Set what differs from fork to fork.

        Args:
            uid: UID and GID of the sandbox, used by no other one on this machine: what it sees, what the zygote does.
            control: Descriptor of the control socket to the agent.
            network: Descriptor of the network namespace, which is nobody else's; any number when the recipe makes it.
            groups: Descriptors of the groups' `tasks` or `cgroup.procs`, one for each hierarchy.
            mounts: Detached mounts, in the order of the targets; the agent has made them slaves of its own.
        """
        inside, outside = uid
        self._uid.value, self._control.value, self._network.value = outside, control, network
        if self._user_namespace is not None:
            self._user_namespace.set_uid(inside, outside)
        for register, fd in zip(self._groups + self._mounts, groups + mounts):  # noqa: B905 - newer than CPython 3.9
            register.value = fd

    def enter(self) -> None:
        """Become PID 1 of the sandbox, without any privilege and any descriptor but `CONTROL` and `CHILDREN`.

        Raises:
            OSError: A step failed.
        """
        self._plan.carry_out()

    def _describe(self, targets: tuple[str, ...]) -> None:
        self._hear_of_children()
        self._enter_groups_and_namespaces()
        self._mount_files(targets)
        self._separate_from_host()
        self._set_limits()
        self._drop_privileges()
        self._close_descriptors()
        self._filter_system_calls()

    def _hear_of_children(self) -> None:
        call = self._plan.add
        # 0. The zygote leaves its dead to the kernel; PID 1 hears of them through a descriptor. No handler, or it would
        # accept the signal; blocked, so that it is kept.
        for number in (signal.SIGCHLD, signal.SIGINT):
            call("sigaction", number, linux.DEFAULT_ACTION, None)
        call("sigprocmask", signal.SIG_BLOCK, _SIGCHLD_SET, None)

    def _enter_groups_and_namespaces(self) -> None:
        call = self._plan.add
        # 1. Into the cgroups, while the process is one thread and root. Writing 0 to `tasks` moves the caller alone,
        # for which the kernel does not wait for an RCU grace period (10 ms on an idle machine) as it does for another
        # process.
        for group in self._groups:
            call("write", group, b"0", 1)
        # 2. Own namespaces. After step 1, so that the cgroup namespace is rooted at the sandbox's groups. The network's
        # was made beforehand, with loopback and a link that leads nowhere yet. Without root nobody could come back from
        # making one: it is made here, and has loopback alone.
        if self._confined:
            call("unshare", NAMESPACES | linux.CLONE_NEWNET)
            self._raise_loopback()
        else:
            call("setns", self._network, linux.CLONE_NEWNET)
            call("unshare", NAMESPACES)

    def _raise_loopback(self) -> None:
        call = self._plan.add
        loopback = Register()
        call("socket", socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0, result=loopback)
        call("ioctl", loopback, linux.SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", linux.IFF_UP | linux.IFF_RUNNING))
        call("close", loopback)

    def _mount_files(self, targets: tuple[str, ...]) -> None:
        call = self._plan.add
        # 3. The slot's places: code and /tmp come in later through them, when the agent mounts over its side.
        for mount, target in zip(self._mounts, targets):  # noqa: B905 - newer than CPython 3.9
            place = os.fsencode(target)
            call("syscall", linux.SYS_MOVE_MOUNT, mount, b"", linux.AT_FDCWD, place, linux.MOVE_MOUNT_F_EMPTY_PATH)
        # 4. Own /proc: shows this PID namespace only.
        call("mount", b"proc", b"/proc", b"proc", _PROC_FLAGS, None)
        if self._confined:
            call("umount2", os.fsencode(OTHER_PROC), linux.MNT_DETACH)
        # 5. What procfs says or does about the whole machine is hidden or read-only.
        for path in MASKED_FILES:
            self._mount_over(b"/dev/null", path, _READ_ONLY)
        for path in MASKED_DIRECTORIES:
            self._mount_over(b"/var/empty", path, _READ_ONLY)
        for path in READ_ONLY_PATHS:
            self._mount_over(os.fsencode(path), path, _READ_ONLY | linux.MOUNT_ATTR_NODEV)

    def _separate_from_host(self) -> None:
        call = self._plan.add
        # 6. The host's name is nobody's business.
        call("sethostname", HOST_NAME, len(HOST_NAME))
        # 7. The session keyring came with the fork from the agent's login session; without keyrings there is none.
        if linux.SYS_KEYCTL:
            call("syscall", linux.SYS_KEYCTL, linux.KEYCTL_JOIN_SESSION_KEYRING, None, ignored=errno.ENOSYS)

    def _set_limits(self) -> None:
        call = self._plan.add
        # 8. Limits of a process; those of the whole sandbox are its cgroups'.
        for limit, soft, hard in LIMITS:
            self._limit(limit, soft, hard)
        # PID 1 does little, and must get to it whatever the function's thousand processes do; functions are ordinary.
        call("setpriority", os.PRIO_PROCESS, 0, _BEFORE_ALL_OTHERS, ignored=errno.EACCES)

    def _drop_privileges(self) -> None:
        call = self._plan.add
        # 9. From here on a change of UID leaves the capabilities as they are, for the steps that need them.
        self._prctl(linux.PR_SET_SECUREBITS, linux.SECBIT_NO_SETUID_FIXUP)
        # 10. Groups before UID: the user namespace is its maker's, and the maker shall be nobody else.
        # Where the agent's user namespace has one UID, the kernel lets nobody drop a group: they name no file in there.
        call("setgroups", 0, None, ignored=errno.EPERM if self._confined else 0)
        call("setresgid", self._uid, self._uid, self._uid)
        call("setresuid", self._uid, self._uid, self._uid)
        # 11. A user namespace that holds this UID and nothing else. All others stay of the one around it, where the
        # process has lost every capability now.
        if self._user_namespace is not None:
            self._user_namespace.describe(self._plan)
        # Not before: a user namespace passes the limit of its maker on to all UIDs around it, where sandboxes without
        # UIDs of their own are counted together.
        self._limit(resource.RLIMIT_NPROC, PROCESSES, PROCESSES)
        # 12. No capability can come back by execve, and UID 0 (which nobody here can become) would mean nothing.
        for capability in linux.known_capabilities():
            self._prctl(linux.PR_CAPBSET_DROP, capability)
        self._prctl(linux.PR_SET_SECUREBITS, linux.SECUREBITS_LOCKED)
        # 13. The other sets, each by name.
        self._prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
        call("capset", struct.pack("Ii", linux.CAPABILITY_VERSION_3, 0), bytes(24))
        self._prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        # 14. Same UID as the function's code, so: no ptrace of this process, none of its /proc files readable.
        self._prctl(linux.PR_SET_DUMPABLE, 0)
        # 15. Dies with the zygote, which dies with the agent. After step 10, which would clear it.
        self._prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)

    def _close_descriptors(self) -> None:
        call = self._plan.add
        # 16. Standard streams to the sandbox's own /dev/null, and nothing else but the control socket.
        null = Register()
        call("open", b"/dev/null", os.O_RDWR | os.O_CLOEXEC, result=null)
        for standard in (0, 1, 2):
            call("dup2", null, standard)
        call("dup2", self._control, CONTROL)
        call("syscall", linux.SYS_CLOSE_RANGE, CONTROL + 1, linux.LAST_DESCRIPTOR, 0)
        call("signalfd", -1, _SIGCHLD_SET, os.O_CLOEXEC | os.O_NONBLOCK)  # becomes CHILDREN, the lowest number free
        # 17. New files are as usual; the directory exists in every sandbox.
        call("umask", 0o022)
        call("chdir", b"/")
        call("prctl", linux.PR_SET_NAME, PROCESS_NAME, 0, 0, 0)

    def _filter_system_calls(self) -> None:
        # 18. Last, since the steps above need what it refuses. Inherited by every process of the sandbox, for good.
        for program in self._filters:
            self._plan.add("prctl", linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, program, 0, 0)

    def _limit(self, limit: int, soft: int, hard: int) -> None:
        if self._confined:  # root would raise what it was given
            given = resource.getrlimit(limit)[1]
            soft, hard = (value if given == resource.RLIM_INFINITY else _lower(value, given) for value in (soft, hard))
        self._plan.add("setrlimit", limit, struct.pack("@ll", soft, hard))

    def _prctl(self, option: int, first: int) -> None:
        self._plan.add("prctl", option, first, 0, 0, 0)

    def _mount_over(self, source: bytes, target: str, attributes: int) -> None:
        """Bind `source` over a path of procfs, if this kernel has it. Nobody else sees the mounts of the sandbox."""
        path, argument = os.fsencode(target), struct.pack("QQQQ", attributes, 0, 0, 0)
        self._plan.add("mount", source, path, None, linux.MS_BIND, None, ignored=errno.ENOENT)
        self._plan.add(
            "syscall",
            linux.SYS_MOUNT_SETATTR,
            linux.AT_FDCWD,
            path,
            0,
            argument,
            len(argument),
            ignored=errno.ENOENT,
        )


def _lower(limit: int, other: int) -> int:
    return other if limit == resource.RLIM_INFINITY else min(limit, other)
