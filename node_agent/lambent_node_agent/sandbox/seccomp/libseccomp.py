"""The few functions of libseccomp that are used here, over ctypes: its own bindings are for the system's Python."""

from __future__ import annotations

import ctypes
import os
import tempfile
from typing import TYPE_CHECKING, Final, Self

from lambent_node_agent.sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from .policy import Condition

_LIBRARY: Final = "libseccomp.so.2"

# seccomp.h
ALLOW: Final = 0x7FFF_0000
KILL_PROCESS: Final = 0x8000_0000
_ERRNO: Final = 0x0005_0000
_CMP_MASKED_EQ: Final = 7
_FLTATR_ACT_BADARCH: Final = 2
_FLTATR_CTL_OPTIMIZE: Final = 8
_BINARY_TREE: Final = 2
_NATIVE: Final = 0
_SYSCALL_ERROR: Final = -1

_MAX_SYSCALLS: Final = 1024
"""Above every number that a kernel has; there are some 470."""


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def errno_action(number: int) -> int:
    """Give the action that answers a call with `errno` set."""
    return _ERRNO | number


class Library:
    """libseccomp as it is installed here.

    Raises:
        SandboxError: It is not.
    """

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise SandboxError(f"{_LIBRARY} is not installed (Debian and Ubuntu: libseccomp2): {error}") from error
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
        self.functions = library

    def number(self, name: str) -> int | None:
        """Give the number of a system call on this machine; None when this libseccomp or this machine has none."""
        found = int(self.functions.seccomp_syscall_resolve_name(name.encode()))
        return found if found >= 0 else None

    def known_numbers(self) -> list[int]:
        """Give the numbers of all system calls of this machine that this libseccomp knows."""
        free = ctypes.CDLL(None).free
        known = []
        for number in range(_MAX_SYSCALLS):
            name = self.functions.seccomp_syscall_resolve_num_arch(ctypes.c_uint32(_NATIVE), ctypes.c_int(number))
            if name is not None:
                free(ctypes.c_void_p(name))
                known.append(number)
        return known


class Filter:
    """A filter in the making. Use it as a context manager.

    Args:
        library: The library.
        default: What is done about calls that no rule is for.
    """

    def __init__(self, library: Library, default: int) -> None:
        self._functions = library.functions
        self._context = ctypes.c_void_p(self._functions.seccomp_init(ctypes.c_uint32(default)))
        if not self._context:
            raise SandboxError("libseccomp makes no filter")

    def __enter__(self) -> Self:
        """Set what every filter here has."""
        # Calls of another architecture (32 bits on 64) would have other numbers: nothing here is for them.
        self._set(_FLTATR_ACT_BADARCH, KILL_PROCESS)
        self._set(_FLTATR_CTL_OPTIMIZE, _BINARY_TREE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free it."""
        self._functions.seccomp_release(self._context)

    def add(self, action: int, number: int, conditions: Iterable[Condition] = ()) -> None:
        """Say what is done about a call when all conditions hold; a further rule for the same call is an alternative.

        Raises:
            SandboxError: libseccomp does not take the rule.
        """
        comparisons = [_Comparison(one.argument, _CMP_MASKED_EQ, one.mask, one.value) for one in conditions]
        array = (_Comparison * len(comparisons))(*comparisons)
        _check(
            self._functions.seccomp_rule_add_array(
                self._context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(comparisons)), array
            ),
            f"rule for system call {number}",
        )

    def program(self) -> bytes:
        """Give it as the kernel takes it: an array of `struct sock_filter`.

        Raises:
            SandboxError: libseccomp cannot make it.
        """
        with tempfile.TemporaryFile() as file:  # It writes to descriptors alone, before version 2.6.
            _check(self._functions.seccomp_export_bpf(self._context, ctypes.c_int(file.fileno())), "filter")
            file.seek(0)
            return file.read()

    def _set(self, attribute: int, value: int) -> None:
        _check(
            self._functions.seccomp_attr_set(self._context, ctypes.c_int(attribute), ctypes.c_uint32(value)),
            f"attribute {attribute}",
        )


def _check(result: int, what: str) -> None:
    if result < 0:
        raise SandboxError(f"libseccomp: {what}: {os.strerror(-result)}")
