"""Compiles the policy, with libseccomp, into the filters that a sandbox installs."""

from __future__ import annotations

import errno
from pathlib import Path

from lambent_node_agent.sandbox.errors import SandboxError

from . import libseccomp
from .policy import ALLOWED, ALLOWED_IF, ANSWERED, UNSUPPORTED

_KERNEL_FILTERS = Path("/proc/sys/kernel/seccomp/actions_avail")
"""There with CONFIG_SECCOMP_FILTER: seccomp(2)."""


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
    unsupported = {library.number(name) for name in UNSUPPORTED}
    with libseccomp.Filter(library, libseccomp.errno_action(errno.ENOSYS)) as made:
        for number in library.known_numbers():
            if number not in unsupported:
                made.add(libseccomp.ALLOW, number)
        return made.program()
