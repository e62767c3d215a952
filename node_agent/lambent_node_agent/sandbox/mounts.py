"""Mounts of the agent: its private namespace and the places of a slot that reach into a sandbox."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lambent_runtime import linux

from .errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

from contextlib import contextmanager

_CODE_ATTRIBUTES = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
_PLACE_ATTRIBUTES = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
# Two directories and one file of a line.
_SLOT_OPTIONS = "mode=0755,size=64k,nr_inodes=16"


def enter_private_mount_namespace() -> None:
    """Give this process a mount namespace of its own, so that its mounts vanish with it and never show on the host.

    Call it before the first thread: a namespace belongs to a thread. Mounts that the host makes later are still seen.

    Raises:
        OSError: Not permitted.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)


@contextmanager
def reported(step: str) -> Iterator[None]:
    """Turn an OSError inside into a SandboxError that names the step."""
    try:
        yield
    except OSError as error:
        raise SandboxError(f"{step}: {error}") from error


def make_slot_mount(directory: Path, accounts: str) -> None:
    """Mount a slot's tmpfs, from which mounts propagate to the copies that sandboxes hold.

    Args:
        directory: An empty directory.
        accounts: `/etc/passwd`, with the slot's user.
    """
    linux.mount("lambent-slot", str(directory), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _SLOT_OPTIONS)
    linux.mount(None, str(directory), None, linux.MS_SHARED)
    for name in ("task", "tmp"):
        (directory / name).mkdir()
        (directory / name).chmod(0o755)  # whatever our umask is: the slot's user enters them when it rehearses
    passwd = directory / "passwd"
    passwd.write_text(accounts)
    passwd.chmod(0o644)  # whatever our umask is: the slot's user reads it


def copy_places(directory: Path, names: Sequence[str], writable: frozenset[str]) -> list[int]:
    """Return a descriptor for each of a slot's places.

    It is a detached mount, which gets what is mounted over the place later; read-only unless it is one of `writable`.
    """
    copies: list[int] = []
    try:
        for name in names:
            copies.append(linux.clone_mount(str(directory / name)))
            attributes = _PLACE_ATTRIBUTES | (0 if name in writable else linux.MOUNT_ATTR_RDONLY)
            linux.set_mount(copies[-1], attributes=attributes, propagation=linux.MS_SLAVE)
    except OSError:
        for fd in copies:
            os.close(fd)
        raise
    return copies


def bind_code(code: Path, place: Path) -> None:
    """Bind a directory over a slot's place, read-only from the first moment, here and in the sandbox."""
    linux.bind(str(code), str(place), _CODE_ATTRIBUTES)


def unmount(place: Path) -> None:
    """Unmount what is on top of a place, here and in every sandbox that shows it."""
    linux.umount(str(place))
