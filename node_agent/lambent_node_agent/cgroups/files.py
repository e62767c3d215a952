"""Reading and writing of cgroup files, with errors that name file and value."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import CgroupError

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, value: str) -> None:
    """Write a value to a control file.

    Raises:
        CgroupError: The kernel refused it.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise CgroupError(f"write of {value!r} to {path}: {error.strerror}") from error


def open_file(path: Path, flags: int) -> int:
    """Open a control file.

    Raises:
        CgroupError: It is not there, or the kernel refused it.
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise CgroupError(f"open of {path}: {error.strerror}") from error


def write_at_start(fd: int, value: str) -> None:
    """Write a value to an open control file.

    Raises:
        CgroupError: The kernel refused it.
    """
    try:
        os.pwrite(fd, value.encode(), 0)
    except OSError as error:
        raise CgroupError(f"write of {value!r} to an open control file: {error.strerror}") from error


def read_at_start(fd: int) -> str:
    """Return what an open control file says now.

    Raises:
        CgroupError: The kernel refused it.
    """
    try:
        return os.pread(fd, 4096, 0).decode()
    except OSError as error:
        raise CgroupError(f"read of a control file: {error.strerror}") from error


def keyed_value(text: str, key: str) -> int:
    """Return the number on the line `key number` of a flat-keyed file; 0 when there is no such line."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
