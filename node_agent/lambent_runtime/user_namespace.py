"""A user namespace of a sandbox's own, in which there is one UID and no other.

It holds nothing: the sandbox's mounts, network, processes and IPC belong to the namespace around it. A capability that
code might get hold of would count in here alone, over nothing; UID 0 is not there at all.
"""

from __future__ import annotations

import ctypes
import os
import signal

from . import linux
from .plan import Plan, Register, Text

_LINE = b"%10d %10d 1"
"""UID inside, UID outside, number of UIDs: user_namespaces(7). Of one length, whatever the numbers are."""
_LINE_BYTES = 23


class UserNamespace:
    """The steps into it, for a plan; the UID may be set later.

    The process has changed to the sandbox's UID and GID before, and still has its capabilities. Here it gets all of
    them anew, in the namespace: to drop them is what comes next.
    """

    def __init__(self) -> None:
        self._line: Text = ctypes.create_string_buffer(_LINE_BYTES)

    def set_uid(self, inside: int, outside: int) -> None:
        """Set the one UID, and GID, that there is.

        Args:
            inside: What the sandbox sees.
            outside: Its number around the namespace, which the process has when it takes the steps.
        """
        ctypes.memmove(self._line, _LINE % (inside, outside), _LINE_BYTES)

    def describe(self, plan: Plan) -> None:
        """Add the steps."""
        # A process that changed its UID is not dumpable, and then /proc says that its files are root's.
        plan.add("prctl", linux.PR_SET_DUMPABLE, 1, 0, 0, 0)
        plan.add("unshare", linux.CLONE_NEWUSER)
        # Who may drop groups could get at files that are closed to a group: before `gid_map`, the kernel insists.
        _write(plan, b"/proc/self/setgroups", b"deny", 4)
        _write(plan, b"/proc/self/uid_map", self._line, _LINE_BYTES)
        _write(plan, b"/proc/self/gid_map", self._line, _LINE_BYTES)


def _write(plan: Plan, path: bytes, content: bytes | Text, length: int) -> None:
    file = Register()
    plan.add("open", path, os.O_WRONLY | os.O_CLOEXEC, result=file)
    plan.add("write", file, content, length)
    plan.add("close", file)


def attempt(inside: int, uid: int) -> None:
    """Take the steps in this process, as a sandbox of this UID would, and print why the kernel refuses one, if it does.

    The process is of no other use after it.
    """
    plan, namespace = Plan(), UserNamespace()
    namespace.set_uid(inside, uid)
    plan.add("prctl", linux.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    plan.add("prctl", linux.PR_SET_SECUREBITS, linux.SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    plan.add("setresgid", uid, uid, uid)
    plan.add("setresuid", uid, uid, uid)
    namespace.describe(plan)
    try:
        plan.carry_out()
    except OSError as error:
        print(error.strerror)
