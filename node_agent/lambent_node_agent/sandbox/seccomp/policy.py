"""Which system calls a function may make, and why; pure data.

An allow-list: what is not named here is refused, so that a call that a later kernel brings is refused as well. It holds
what programs of a Linux distribution need as an ordinary user, and leaves out what only administrators can use anyway
(it would be refused for want of a capability: here it is refused before the kernel's code for it runs) and what has a
history of holes and no use in a function.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds when `argument & mask == value`.

    Attributes:
        argument: Number of the argument, from 0.
        mask: Bits that count. The kernel reads most arguments as 32 bits wide: a mask of more would be circumvented by
            bits that it ignores.
        value: What they must be.
    """

    argument: int
    mask: int
    value: int


_INT: Final = 0xFFFF_FFFF

_FILES: Final = """
    access cachestat chdir chmod chown close close_range creat dup dup2 dup3 faccessat faccessat2
    fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock
    fremovexattr fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getrandom getxattr
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr
    llistxattr lremovexattr lseek lsetxattr lstat memfd_create mkdir mkdirat mknod mknodat newfstatat open openat
    openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
    removexattr rename renameat renameat2 rmdir sendfile setxattr splice stat statfs statx symlink symlinkat sync
    sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev
"""
"""`mknod` makes FIFOs; devices need a capability. Not `copy_file_range`: see `ANSWERED`."""

_MEMORY: Final = """
    brk map_shadow_stack membarrier mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall
    munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
"""

_PROCESSES: Final = """
    arch_prctl capget capset execve execveat exit exit_group fork get_robust_list getcpu getegid geteuid getgid
    getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid
    ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self pidfd_open
    pidfd_send_signal rseq sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp set_robust_list set_tid_address setfsgid setfsuid setgid setgroups setpgid
    setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid sysinfo times uname vfork wait4 waitid
"""
"""Changes of identity are refused by the kernel, in the way that programs expect. `seccomp` and `landlock` can only
take more away."""

_SIGNALS_AND_TIME: Final = """
    alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep pause restart_syscall rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo setitimer
    sigaltstack tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
    timerfd_gettime timerfd_settime tkill
"""

_WAITING: Final = """
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 futex futex_requeue
    futex_wait futex_waitv futex_wake poll ppoll pselect6 select signalfd signalfd4
"""
"""Not `io_setup` and what belongs to it: how much of it there may be is one number for the whole machine."""

_COMMUNICATION: Final = """
    accept accept4 bind connect getpeername getsockname getsockopt listen mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd recvfrom recvmmsg recvmsg semctl semget semop
    semtimedop sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown
"""
"""System V IPC and message queues are of the sandbox's own namespace."""

ALLOWED: Final = frozenset(" ".join((_FILES, _MEMORY, _PROCESSES, _SIGNALS_AND_TIME, _WAITING, _COMMUNICATION)).split())
"""Calls that are allowed whatever their arguments."""

_NEW_NAMESPACES: Final = 0x7E02_0080
"""CLONE_NEW* of sched.h: time, mount, cgroup, UTS, IPC, user, PID and network namespace."""
_AF_UNIX: Final = 1
_AF_NETLINK: Final = 16
_NETLINK_ROUTE: Final = 0
_INTERNET: Final = (
    *((2, protocol) for protocol in (0, 1, 6, 17)),
    *((10, protocol) for protocol in (0, 6, 17, 58)),
)
"""AF_INET and AF_INET6 with the protocol that the type implies, ICMP's echo, TCP or UDP."""

_IOCTL_TYPE: Final = 0xFF00
"""The byte of an ioctl's number that says whose it is (ioctl(2), Documentation/userspace-api/ioctl)."""
_IOCTLS: Final = (
    *(Condition(1, _IOCTL_TYPE, kind) for kind in (0x5400, 0x8900)),
    Condition(1, _INT, 0x80086601),
)
"""Those of terminals and of every descriptor (FIONREAD, FIOCLEX), those of sockets and interfaces, and FS_IOC_GETFLAGS.
Not a file system's own, by which a function could make subvolumes, which have no limit, search those of others, or have
files compressed and rearranged in the kernel's own time."""

_MERGEABLE: Final = 12
"""MADV_MERGEABLE of madvise(2)."""
_MEMORY_MERGE: Final = 67
"""PR_SET_MEMORY_MERGE of prctl(2)."""


_NAMED_OPTIONS: Final = (0x5356_4D41, 0x5961_6D61)
"""PR_SET_VMA and PR_SET_PTRACER of prctl(2), the only ones that are no small number."""


def _small_but(argument: int, value: int) -> tuple[tuple[Condition, ...], ...]:
    """Return alternatives of which one holds for each number below 128 but `value`: one of its seven bits differs."""
    small = _INT & ~0x7F
    return tuple((Condition(argument, small | 1 << bit, ~value & 1 << bit),) for bit in range(7))


ALLOWED_IF: Final[dict[str, tuple[tuple[Condition, ...], ...]]] = {
    # Threads and processes, but no namespaces: a user namespace would give back every capability inside it.
    "clone": ((Condition(0, _NEW_NAMESPACES, 0),),),
    # Families and protocols that programs use; others (packet, vsock, alg, SCTP, ...) are little used code in the
    # kernel. Of netlink only what lists interfaces and routes.
    "socket": (
        (Condition(0, _INT, _AF_UNIX),),
        *((Condition(0, _INT, family), Condition(2, _INT, protocol)) for family, protocol in _INTERNET),
        (Condition(0, _INT, _AF_NETLINK), Condition(2, _INT, _NETLINK_ROUTE)),
    ),
    "ioctl": tuple((condition,) for condition in _IOCTLS),
    "socketpair": ((Condition(0, _INT, _AF_UNIX),),),
    # Of itself: the reaper has the same UID.
    "prlimit64": ((Condition(0, _INT, 0),),),
    # To ask for it, and to set what every process has; other personalities weaken the layout of memory.
    "personality": ((Condition(0, _INT, 0),), (Condition(0, _INT, _INT),)),
    # Whoever has the kernel merge its memory may find out, by the time that a write takes, whether someone else has
    # the same page: another function, or a virtual machine of this host.
    "madvise": _small_but(2, _MERGEABLE),
    "prctl": (
        *_small_but(0, _MEMORY_MERGE),
        *((Condition(0, _INT, option),) for option in _NAMED_OPTIONS),
    ),
}
"""Calls that are allowed when all conditions of one alternative hold."""

ANSWERED: Final[tuple[tuple[str, tuple[Condition, ...], int], ...]] = (
    ("ioctl", (Condition(1, _INT, 0x40049409),), errno.EOPNOTSUPP),  # FICLONE
    ("ioctl", (Condition(1, _INT, 0x4020940D),), errno.EOPNOTSUPP),  # FICLONERANGE
    ("ioctl", (Condition(1, _INT, 0xC0189436),), errno.EOPNOTSUPP),  # FIDEDUPERANGE
    ("copy_file_range", (), errno.EXDEV),
)
"""Calls, with what their arguments are and what they are answered: what programs fall back from. Files of a function
share no extents, as if its file system could not do that: a million references to one extent would keep the kernel
counting for minutes, while nobody else's files change."""

UNSUPPORTED: Final = frozenset(("clone3",))
"""Answered as by a kernel that does not have them, so that the C library falls back: a filter cannot see the flags of
`clone3`, which are in memory."""
