"""Processes named so that a kill never meets a stranger: by pid and start time, held by a pidfd."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_PROC = Path("/proc")

# proc(5), /proc/pid/stat: field 22 is starttime; we count from the state, field 3, behind the bracketed name.
_START_TIME = 22 - 3


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for all time since boot: a pid is used again, a pid with its start time is not.

    Attributes:
        pid: Process id.
        start_ticks: Clock ticks from boot to its start.
    """

    pid: int
    start_ticks: int

    @classmethod
    def own(cls) -> Self:
        """This process."""
        own = cls.of(os.getpid())
        assert own is not None
        return own

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """A running process, or one that nobody has waited for yet; None when there is none."""
        try:
            stat = (_PROC / str(pid) / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return cls(pid=pid, start_ticks=int(stat.rpartition(")")[2].split()[_START_TIME]))

    def encode(self) -> bytes:
        """One line for a file."""
        return f"{self.pid} {self.start_ticks} {boot_id()}\n".encode()

    @classmethod
    def decode(cls, line: bytes) -> Self | None:
        """Read `encode`'s line; None when it is not one, or is of another boot."""
        words = line.decode(errors="replace").split()
        if len(words) != 3 or not (words[0].isdigit() and words[1].isdigit()) or words[2] != boot_id():
            return None
        return cls(pid=int(words[0]), start_ticks=int(words[1]))

    def open(self) -> int | None:
        """A pidfd of this very process; None when it has ended."""
        if self.pid <= 0:
            return None
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        # Looked at after the pidfd is held: from here on the pid cannot become another process's.
        if ProcessId.of(self.pid) == self:
            return descriptor
        os.close(descriptor)
        return None

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return not self.wait_until_ended(0)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; whether the process was there to get it."""
        descriptor = self.open()
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait_until_ended(self, timeout_s: float) -> bool:
        """Block until it has ended; whether it did within the time."""
        descriptor = self.open()
        if descriptor is None:
            return True
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            return bool(poller.poll(timeout_s * 1000))
        finally:
            os.close(descriptor)


def boot_id() -> str:
    """Name of the time since this boot."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def kill_all(processes: list[ProcessId], timeout_s: float) -> list[ProcessId]:
    """SIGKILL processes and wait until they have ended; gives those that have not within the time."""
    killed = [process for process in processes if process.send(signal.SIGKILL)]
    deadline = time.monotonic() + timeout_s
    return [process for process in killed if not process.wait_until_ended(max(0.0, deadline - time.monotonic()))]
