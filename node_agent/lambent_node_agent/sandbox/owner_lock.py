"""Locks that keep one agent from sweeping what another, living one uses."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from .errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PID_BYTES = 32


class OwnerLock:
    """An owner mark that is this process's until it ends: an flock on a file of the mark's name, with our pid in it.

    Files of owners that have died are removed.

    Args:
        directory: Where the lock files of this machine are; made when absent.
        owner: The mark.

    Raises:
        SandboxError: A living process has the mark, which the message names; or the directory cannot be used.
    """

    def __init__(self, directory: Path, owner: str) -> None:
        self._path = directory / f"{owner}.lock"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            with _one_at_a_time(directory):
                _remove_dead(directory, self._path)
                self._fd = _lock(self._path)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        except OSError as error:
            raise SandboxError(f"the owner mark {owner!r} cannot be locked in {directory}: {error}") from error

    def close(self) -> None:
        """Give the mark back and leave no file."""
        self._path.unlink(missing_ok=True)  # while it is locked: see _lock
        os.close(self._fd)


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Keep agents that start together from taking each other's probes of a lock for its owner."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # for the microseconds of a few system calls
        yield
    finally:
        os.close(fd)


def _remove_dead(directory: Path, ours: Path) -> None:
    for path in directory.glob("*.lock"):
        if path == ours:
            continue
        with suppress(FileNotFoundError):  # it has just ended, and removed its own
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            except BlockingIOError:
                continue  # its owner lives
            finally:
                os.close(fd)


def _lock(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file between our open and our lock: then it locks nothing.
            if os.fstat(fd).st_nlink:
                return fd
        except BlockingIOError as error:
            holder = os.pread(fd, _PID_BYTES, 0).decode(errors="replace").strip()
            os.close(fd)
            raise SandboxError(
                f"the agent with the owner mark {path.stem!r} runs already, as process {holder or 'unknown'}; "
                "give this one an --owner, --id and --state-dir of its own"
            ) from error
        os.close(fd)


def lock_directory(directory: Path) -> int:
    """Lock a directory for as long as the descriptor that this returns is open.

    Raises:
        SandboxError: Another process has locked it, or it cannot be opened.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
    except BlockingIOError as error:
        message = f"the state directory {directory} is used by another agent; give this one a --state-dir of its own"
        raise SandboxError(message) from error
    except OSError as error:
        raise SandboxError(f"the state directory {directory} cannot be locked: {error}") from error
    return fd
