"""UIDs for sandboxes, so that no two on this machine share one, whichever agent they belong to."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, NamedTuple

from .errors import SandboxError

if TYPE_CHECKING:
    from pathlib import Path

FIRST_UID = 0x1000_0000
"""Above what distributions, directory services and container tools (`/etc/subuid`) hand out."""
UIDS_PER_AGENT = 4096
"""One for each sandbox that an agent may have; more than any machine holds at 128 MiB each."""
MAX_AGENTS = 256
ALL_UIDS = MAX_AGENTS * UIDS_PER_AGENT


class SandboxUid(NamedTuple):
    """UID and GID of a sandbox: as it sees them, and as the agent does."""

    inside: int
    outside: int


class UidRange:
    """A block of UIDs that is this process's until it ends: an flock on a file of the block's number.

    Limits by UID (processes, keyrings) would otherwise be shared by the sandboxes of two agents on one machine.

    Attributes:
        block: Number of the block; no other agent of this machine has it.

    Args:
        directory: Where the lock files of this machine are; made when absent.
        uids: How many UIDs there are from `FIRST_UID` on; 0: sandboxes share the agent's own, which each then sees as
            one of these.

    Raises:
        SandboxError: The directory cannot be used, or every block is taken.
    """

    def __init__(self, directory: Path, uids: int = ALL_UIDS) -> None:
        self.shared = uids == 0
        blocks = MAX_AGENTS if self.shared else min(uids // UIDS_PER_AGENT, MAX_AGENTS)
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._lock, self.block = _lock_first(directory, blocks)
        except OSError as error:
            raise SandboxError(f"no range of UIDs from {directory}: {error}") from error
        self._first = FIRST_UID + self.block * UIDS_PER_AGENT

    def of(self, index: int) -> SandboxUid:
        """Return the UID of the sandbox in a slot."""
        inside = self._first + index
        return SandboxUid(inside, os.geteuid() if self.shared else inside)

    def close(self) -> None:
        """Give the block back."""
        os.close(self._lock)


def _lock_first(directory: Path, blocks: int) -> tuple[int, int]:
    for block in range(blocks):
        fd = os.open(directory / f"{block}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
        else:
            return fd, block
    raise SandboxError(f"all {blocks} ranges of UIDs in {directory} are taken by other agents")
