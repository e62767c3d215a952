"""Storage in the function's memory: for machines that cannot have it on disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lambent_runtime import linux

from .storage import DEFAULT_SIZE_MIB, DIRECTORY_MODE, Untouched

if TYPE_CHECKING:
    from pathlib import Path


class MemoryStorage:
    """A tmpfs for each volume; what is in it counts as memory of the function that wrote it."""

    def volume(self, index: int, place: Path) -> MemoryVolume:  # noqa: ARG002 - nothing is shared that needs a name
        """See `Storage`."""
        return MemoryVolume(place)

    def close(self) -> None:
        """There is nothing but the volumes."""


class MemoryVolume:
    """A tmpfs at a place. See `Volume`."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._untouched: Untouched | None = None

    @property
    def sound(self) -> bool:
        """Memory does not fail."""
        return True

    @property
    def as_new(self) -> bool:
        """See `Volume`."""
        return bool(self._untouched)

    def make(self) -> None:
        """Mount it."""
        self._mount(0, DEFAULT_SIZE_MIB)
        self._untouched = Untouched(self._place)

    def set_size(self, size_mib: int) -> None:
        """Change the limit of the mounted tmpfs."""
        self._untouched = None
        self._mount(linux.MS_REMOUNT, size_mib)

    def remove(self) -> None:
        """Unmount it, which frees its memory."""
        self._untouched = None
        if os.path.ismount(self._place):
            linux.umount(str(self._place))

    def _mount(self, flags: int, size_mib: int) -> None:
        flags |= linux.MS_NOSUID | linux.MS_NODEV
        linux.mount("tmp", str(self._place), "tmpfs", flags, f"mode={DIRECTORY_MODE:o},size={size_mib}m")
