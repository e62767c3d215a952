"""One class for each version of the freezer: what is in the group does not run, and is killed all the same.

Rules from the kernel's documentation: admin-guide/cgroup-v1/freezer-subsystem, admin-guide/cgroup-v2, `cgroup.freeze`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from . import files

if TYPE_CHECKING:
    from pathlib import Path


class Freezer:
    """Stops and continues whatever is in a group, by one write to an open descriptor.

    Args:
        directory: The group's.
    """

    _file: ClassVar[str]
    _frozen: ClassVar[str]
    _thawed: ClassVar[str]

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._state = files.open_file(directory / self._file, os.O_RDWR)

    def freeze(self) -> None:
        """Stop every process in the group, and those that enter it; returns before the last one has stopped.

        Raises:
            CgroupError: The kernel refused.
        """
        files.write_at_start(self._state, self._frozen)

    def thaw(self) -> None:
        """Let them run again. Raises as `freeze`."""
        files.write_at_start(self._state, self._thawed)

    def is_frozen(self) -> bool:
        """Tell whether every process in the group has stopped."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._state)


class FreezerV1(Freezer):
    """`freezer` of version 1: what is killed here dies when it thaws."""

    _file, _frozen, _thawed = "freezer.state", "FROZEN", "THAWED"

    def is_frozen(self) -> bool:
        """See Freezer."""
        return files.read_at_start(self._state).strip() == self._frozen


class FreezerV2(Freezer):
    """`cgroup.freeze` of version 2, which needs no controller: what is killed here dies at once."""

    _file, _frozen, _thawed = "cgroup.freeze", "1", "0"

    def is_frozen(self) -> bool:
        """See Freezer."""
        return files.keyed_value((self._directory / "cgroup.events").read_text(), "frozen") == 1
