"""UIDs for sandboxes, so that no two on this machine share one, whichever agent they belong to."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from .errors import SandboxError

if TYPE_CHECKING:
    from pathlib import Path

FIRST_UID = 0x1000_0000
"""Above what distributions, directory services and container tools (`/etc/subuid`) hand out."""
UIDS_PER_AGENT = 4096
"""One for each sandbox that an agent may have; more than any machine holds at 128 MiB each."""
MAX_AGENTS = 256


class UidRange:
    """A block of UIDs that is this process's until it ends: an flock on a file of the block's number.

    Limits by UID (processes, keyrings) would otherwise be shared by the sandboxes of two agents on one machine.

    Args:
        directory: Where the lock files of this machine are; made when absent.

    Raises:
        SandboxError: The directory cannot be used, or every block is taken.
    """

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._lock, block = _lock_first(directory)
        except OSError as error:
            raise SandboxError(f"no range of UIDs from {directory}: {error}") from error
        self.first = FIRST_UID + block * UIDS_PER_AGENT

    def close(self) -> None:
        """Give the block back."""
        os.close(self._lock)


def _lock_first(directory: Path) -> tuple[int, int]:
    for block in range(MAX_AGENTS):
        fd = os.open(directory / f"{block}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
        else:
            return fd, block
    raise SandboxError(f"all {MAX_AGENTS} ranges of UIDs in {directory} are taken by other agents")
