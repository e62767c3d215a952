"""System calls that the standard library has no function for, each as one typed function over ctypes.

Every function raises OSError with the call's name and operands. Numbers of system calls are those of the unified table
(424 and up, the same on every architecture), or listed by machine. Linux 5.12 or newer (`mount_setattr`).
"""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_interpreter = ctypes.PyDLL(None, use_errno=True)
"""The same, called without giving up the interpreter's lock, which a fork would otherwise have to take again."""

# sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# sys/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2

# linux/mount.h
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_MOUNT_SETATTR = 442
SYS_CLOSE_RANGE = 436
LAST_DESCRIPTOR = 0xFFFFFFFF
_OPEN_TREE_CLONE = 1
AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
MOVE_MOUNT_F_EMPTY_PATH = 0x4

# net/if.h, linux/sockios.h
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
IFF_RUNNING = 0x40

# linux/mman.h
MADV_MERGEABLE = 12

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
# linux/securebits.h: NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, each with its lock.
SECUREBITS_LOCKED = 0b11101111
SECBIT_NO_SETUID_FIXUP = 0b100
CAPABILITY_VERSION_3 = 0x20080522

KEYCTL_JOIN_SESSION_KEYRING = 1
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}.get(os.uname().machine, 0)
"""0 on a machine whose number is not known here."""

_ACTION_BYTES = 256
"""Room for a `struct sigaction`: 152 bytes on x86-64."""
DEFAULT_ACTION = bytes(_ACTION_BYTES)
"""A `struct sigaction` with SIG_DFL."""


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` for new ones; for `CLONE_NEWPID` it is the next child that enters."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace of kind `kind` that `fd` refers to."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), f"setns({kind:#x})")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount a file system, or change a mount or its propagation."""
    result = _libc.mount(
        source.encode() if source is not None else None,
        os.fsencode(target),
        kind.encode() if kind is not None else None,
        ctypes.c_ulong(flags),
        options.encode() if options is not None else None,
    )
    _check(result, f"mount({source}, {target}, {kind}, {flags:#x}, {options})")


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """Unmount what is mounted at `target`, by default at once even when it is in use."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), f"umount2({target}, {flags:#x})")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root of this mount namespace and move the old one to `put_old`."""
    _check(_libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), f"pivot_root({new_root}, {put_old})")


def clone_mount(path: str, *, recursive: bool = False) -> int:
    """Return a descriptor of a detached copy of the mount at `path`, with `path` as its root: open_tree(2).

    The copy belongs to no namespace until `attach_mount`, may be sent to another process, and is in the same peer group
    as the original.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(ctypes.c_long(SYS_OPEN_TREE), AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags))
    return _check(result, f"open_tree({path})")


def set_mount(fd: int, *, attributes: int = 0, propagation: int = 0, recursive: bool = False) -> None:
    """Add attributes to, and set the propagation of, the mount behind `fd`: mount_setattr(2)."""
    argument = struct.pack("QQQQ", attributes, 0, propagation, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_int(fd),
        b"",
        ctypes.c_uint(flags),
        argument,
        ctypes.c_size_t(len(argument)),
    )
    _check(result, f"mount_setattr({attributes:#x}, {propagation:#x})")


def attach_mount(fd: int, target: str) -> None:
    """Mount a detached mount at `target`: move_mount(2)."""
    result = _libc.syscall(
        ctypes.c_long(SYS_MOVE_MOUNT),
        ctypes.c_int(fd),
        b"",
        AT_FDCWD,
        os.fsencode(target),
        ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
    )
    _check(result, f"move_mount({target})")


def bind(source: str, target: str, attributes: int, *, recursive: bool = False) -> None:
    """Bind `source` at `target` with its attributes on from the first moment.

    A classic bind is writable until it is remounted, and copies that were propagated to other namespaces in between
    stay so.
    """
    fd = clone_mount(source, recursive=recursive)
    try:
        set_mount(fd, attributes=attributes, propagation=MS_PRIVATE, recursive=recursive)
        attach_mount(fd, target)
    finally:
        os.close(fd)


def _prctl(option: int, first: int, second: int, call: str) -> None:
    unused = ctypes.c_ulong(0)
    _check(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(first), ctypes.c_ulong(second), unused, unused), call)


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send this process `number` when the thread that forked it ends. Changing UID clears it."""
    _prctl(PR_SET_PDEATHSIG, number, 0, "prctl(PR_SET_PDEATHSIG)")


def set_process_name(name: str) -> None:
    """Set what `ps -o comm` shows; at most 15 bytes count."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(PR_SET_NAME, ctypes.addressof(buffer), 0, "prctl(PR_SET_NAME)")


def merge_memory(mappings: list[bytes]) -> None:
    """Let the kernel merge equal pages of this process's data and heap, also in its forks, while KSM runs: madvise(2).

    Not of its stack, nor of what it or a fork asks the kernel for from now on.

    Args:
        mappings: The lines of /proc/self/maps.
    """
    for mapping in mappings:
        addresses, rights, *described = mapping.split()
        if rights == b"rw-p" and described[-1] != b"[stack]":
            start, end = (int(address, 16) for address in addresses.split(b"-"))
            result = _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(MADV_MERGEABLE))
            _check(result, "madvise(MADV_MERGEABLE)")


def hide_arguments() -> None:
    """Blank the command line of this process and its forks, as /proc shows it, but for the program's name."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()  # from the third on: proc_pid_stat(5)
    start, end = int(fields[48 - 3]), int(fields[49 - 3])
    name_bytes = ctypes.string_at(start, end - start).index(b"\0")
    ctypes.memset(start + name_bytes, 0, end - start - name_bytes)


def ignore_signal(number: int) -> None:
    """Ignore a signal without the `signal` module's knowledge, which in forks says what a fresh interpreter's says."""
    _libc.signal(ctypes.c_int(number), ctypes.c_void_p(1))


def signal_action(number: int) -> bytes:
    """Return what is done on a signal, for another process's sigaction(2): a `struct sigaction`."""
    action = ctypes.create_string_buffer(_ACTION_BYTES)
    _check(_libc.sigaction(ctypes.c_int(number), None, action), f"sigaction({number})")
    return action.raw


_FILTER_BYTES = 8
"""Of a `struct sock_filter`."""
_kept_filters: list[ctypes.Array[ctypes.c_char]] = []


def filter_program(code: bytes) -> bytes:
    """Return a `struct sock_fprog` of a seccomp filter, whose instructions stay where it says for good."""
    buffer = ctypes.create_string_buffer(code, len(code))
    _kept_filters.append(buffer)
    return struct.pack("@HP", len(code) // _FILTER_BYTES, ctypes.addressof(buffer))


def known_capabilities() -> range:
    """Return the capabilities that this kernel knows."""
    unused = ctypes.c_ulong(0)
    for capability in range(64):
        if _libc.prctl(ctypes.c_int(PR_CAPBSET_READ), ctypes.c_ulong(capability), unused, unused, unused) < 0:
            return range(capability)
    return range(64)


def fork() -> int:
    """Fork without what `os.fork` runs in the child; 0 there.

    That repairs locks that other threads might hold, which a process of one thread does not have, and seeds `random`
    anew, which `bootstrap` does: it would write to 0.7 MiB of pages that the child would otherwise share.
    """
    return _check(_interpreter.fork(), "fork")
