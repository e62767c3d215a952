"""Start one process that dies with this one, and learn of its end without a thread or a poll."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from typing import TYPE_CHECKING

from .processes import ProcessId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# prctl(2).
_PR_SET_PDEATHSIG = 1

# Loaded before any fork: between fork and exec nothing may be imported.
_LIBC = ctypes.CDLL(None, use_errno=True)


class SpawnedProcess:
    """A running child in a session of its own, which the kernel kills when the supervisor's main thread ends.

    Attributes:
        identity: Its pid and start time.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        identity = ProcessId.of(popen.pid)
        assert identity is not None, "a child that was not waited for keeps its pid"
        self.identity = identity
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(popen.pid)
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.done()

    async def wait(self) -> int:
        """Wait for the end; gives the exit status, or the negative number of the signal that killed it."""
        return await asyncio.shield(self._ended)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self.running:
            self._popen.send_signal(number)

    async def stop(self, timeout_s: float) -> int:
        """SIGTERM, and SIGKILL after the time; gives what `wait` gives."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                return await self.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            return await self.wait()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set_result(self._popen.wait())


def spawn(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> SpawnedProcess:
    """Start a child; must be called on the main thread, whose end the kernel takes for the supervisor's.

    Args:
        command: Program and arguments.
        log: Gets its standard output and error, at the end of what is there.
        environment: Its whole environment.
        pass_fds: Descriptors that it keeps, under the same numbers.

    Raises:
        OSError: The program cannot be executed.
    """
    supervisor = os.getpid()

    def die_with_supervisor() -> None:
        if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != supervisor:
            os._exit(1)  # the supervisor has died since the fork

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        popen = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=dict(environment),
            cwd="/",
            umask=0o077,
            pass_fds=pass_fds,
            start_new_session=True,  # Ctrl-C at the terminal is for the supervisor alone
            preexec_fn=die_with_supervisor,  # noqa: PLW1509, the supervisor has one thread
        )
    finally:
        os.close(descriptor)
    return SpawnedProcess(popen)


def describe_end(status: int) -> str:
    """How a child ended, as said to a person."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
