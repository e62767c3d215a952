"""A runtime process inside a sandbox, as the agent sees it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    import socket


def is_end(status: int) -> bool:
    """Tell whether waitpid(2) gives this for a process that has ended. The number comes from a sandbox."""
    return 0 <= status <= 0xFFFF and (os.WIFEXITED(status) or os.WIFSIGNALED(status))


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a runtime process ended: exactly one of `code` and `signal` is set.

    Attributes:
        code: Exit status, 0 to 255.
        signal: Number of the signal that killed it.
        oom_killed: It was killed by SIGKILL while the kernel counted an out-of-memory kill in its memory group.
    """

    code: int | None = None
    signal: int | None = None
    oom_killed: bool = False

    @classmethod
    def from_wait_status(cls, status: int, *, oom_killed: bool) -> ExitStatus:
        """Translate what waitpid(2) gave for a process that has ended."""
        assert is_end(status), status
        if os.WIFSIGNALED(status):
            return cls(signal=os.WTERMSIG(status), oom_killed=oom_killed)
        return cls(code=os.waitstatus_to_exitcode(status))


@dataclass(frozen=True, slots=True)
class RuntimeProcess:
    """The runtime process that `Sandbox.start_runtime` started.

    The caller owns `channel` and `log_fd` and closes both; neither end of the process's life closes them.

    Attributes:
        channel: Stream socket that speaks `lambent_runtime.channel`; nonblocking.
        log_fd: Read end of the pipe that is the process's stdout and stderr; nonblocking. A process that it left behind
            may hold the other end, so its end of file is no sign of exit: `exit_status` is.
        exit_status: Set once when the process has ended, also when the whole sandbox ended. Never fails.
    """

    channel: socket.socket
    log_fd: int
    exit_status: asyncio.Future[ExitStatus]
