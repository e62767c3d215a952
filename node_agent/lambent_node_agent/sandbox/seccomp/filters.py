"""Compiles the policy, with libseccomp, into the filters that a sandbox installs."""

from __future__ import annotations

import errno
import struct
from itertools import pairwise
from pathlib import Path

from lambent_node_agent.sandbox.errors import SandboxError

from . import libseccomp
from .policy import ALLOWED, ALLOWED_IF, ANSWERED, UNSUPPORTED

_KERNEL_FILTERS = Path("/proc/sys/kernel/seccomp/actions_avail")
"""There with CONFIG_SECCOMP_FILTER: seccomp(2)."""

# Classic BPF (linux/bpf_common.h): what is loaded is the first word of `struct seccomp_data`, the number of the call.
_LOAD_NUMBER = struct.pack("=HBBI", 0x20, 0, 0, 0)
_JUMP_IF_NOT_BELOW = 0x35
_JUMP_IF_ABOVE = 0x25
_RETURN = 0x06


def compile_filters() -> tuple[bytes, bytes]:
    """Make the filters, in the order in which they are to be installed.

    Of two that refuse a call the one that was installed last says how (seccomp(2)): so a call that libseccomp does not
    know, which may be newer than it, is answered as by an older kernel, and programs fall back.

    Returns:
        The allow-list, which answers EPERM to everything else; and what answers ENOSYS to calls that nobody knows.

    Raises:
        SandboxError: The kernel has no filters, or libseccomp is missing or cannot make them.
    """
    if not _KERNEL_FILTERS.exists():
        raise SandboxError(f"the kernel cannot filter system calls: there is no {_KERNEL_FILTERS}")
    library = libseccomp.Library()
    return _allow_list(library), _known_calls(library)


def _allow_list(library: libseccomp.Library) -> bytes:
    with libseccomp.Filter(library, libseccomp.errno_action(errno.EPERM)) as made:
        for name in sorted(ALLOWED):
            if (number := library.number(name)) is not None:
                made.add(libseccomp.ALLOW, number)
        for name, alternatives in ALLOWED_IF.items():
            if (number := library.number(name)) is not None:
                for conditions in alternatives:
                    made.add(libseccomp.ALLOW, number, conditions)
        for name, conditions, answer in ANSWERED:
            if (number := library.number(name)) is not None:
                made.add(libseccomp.errno_action(answer), number, conditions)
        return made.program()


def _known_calls(library: libseccomp.Library) -> bytes:
    """Make the filter that answers ENOSYS to what libseccomp does not know.

    By ranges of numbers, for which libseccomp has no rules: so it is of a dozen instructions instead of 470, which the
    kernel would compile for each sandbox. Of foreign architectures it knows nothing; the allow-list ends those.
    """
    unsupported = {library.number(name) for name in UNSUPPORTED}
    known = [number for number in library.known_numbers() if number not in unsupported]
    answer = libseccomp.errno_action(errno.ENOSYS)
    program = [_LOAD_NUMBER]
    for first, last in ranges(known):
        program += [
            _instruction(_JUMP_IF_NOT_BELOW, first, if_true=1),
            _instruction(_RETURN, answer),
            _instruction(_JUMP_IF_ABOVE, last, if_true=1),
            _instruction(_RETURN, libseccomp.ALLOW),
        ]
    return b"".join([*program, _instruction(_RETURN, answer)])


def ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Give the first and last of each run of ascending numbers without a gap."""
    gaps = [(before, after) for before, after in pairwise(numbers) if after != before + 1]
    firsts = [*numbers[:1], *(after for _, after in gaps)]
    lasts = [*(before for before, _ in gaps), *numbers[-1:]]
    return list(zip(firsts, lasts, strict=True))


def _instruction(code: int, operand: int, *, if_true: int = 0) -> bytes:
    """Give a `struct sock_filter` (linux/filter.h) that goes on with the next one, or `if_true` further."""
    return struct.pack("=HBBI", code, if_true, 0, operand)
