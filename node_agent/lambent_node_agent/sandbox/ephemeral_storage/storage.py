"""What the two kinds of storage have in common."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_SIZE_MIB: Final = 512
"""AWS Lambda quotas: `/tmp` of a function that asks for no more. Volumes are made with it, so that most cold starts
have nothing to set."""

DIRECTORY_MODE: Final = 0o1777
"""Of a volume's directory, which is root's: each UID keeps what is its own, as in every `/tmp`."""


class Volume(Protocol):
    """The `/tmp` of one sandbox at a time, at a place of its slot.

    Methods are not for the event loop, since they may wait for the disk, and raise OSError.
    """

    @property
    def sound(self) -> bool:
        """False when nothing can be written because of an error of its file system; one cheap system call."""

    @property
    def as_new(self) -> bool:
        """Whether it is made and as good as new: nobody has put anything into it. A few cheap system calls."""

    def make(self) -> None:
        """Make it, empty and of `DEFAULT_SIZE_MIB`, and mount it at its place.

        Raises:
            SandboxError: Its file system has failed, and there cannot be another one.
        """

    def set_size(self, size_mib: int) -> None:
        """Let it hold this much."""

    def remove(self) -> None:
        """Take it off the machine with all that is in it; nothing when it has not been made."""


class Storage(Protocol):
    """Makes volumes."""

    def volume(self, index: int, place: Path) -> Volume:
        """Return a volume that is yet to be made.

        Args:
            index: Number of the slot; one volume at a time bears it.
            place: Empty directory to mount it at.
        """

    def close(self) -> None:
        """Take everything off the machine. Volumes have been removed, or are given up.

        Raises:
            OSError: Something would not go.
        """


class Untouched:
    """Tells whether anybody has used the mounted, empty directory of a volume since this was made.

    Whoever makes or removes a name in it changes its time of change. Within the tick of the kernel's clock in which
    this was made that would not show: then what is left shows in its size, and what is not left is gone.

    A file that never had a name does not show either (`O_TMPFILE`, as of `tempfile.TemporaryFile`): it has gone with
    the last process that held it, and its space is there when somebody asks for it.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._before = _traces(os.stat(place))

    def __bool__(self) -> bool:
        """Look."""
        return _traces(os.stat(self._place)) == self._before


def _traces(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_mode, status.st_uid, status.st_ctime_ns, status.st_mtime_ns, status.st_size
