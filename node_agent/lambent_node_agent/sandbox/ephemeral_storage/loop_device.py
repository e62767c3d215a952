"""Loop devices: a file as a disk. linux/loop.h, loop(4)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

_CTL_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_GET_STATUS64: Final = 0x4C05
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
# struct loop_info64 up to its flags, then to its end: names and keys, which stay empty.
_INFO: Final = struct.Struct("=QQQQQIIII64s64s32sQQ")
_FLAGS_FIELD: Final = 8
# struct loop_config: descriptor, block size, loop_info64, reserved.
_CONFIG: Final = struct.Struct(f"=II{_INFO.size}s64x")

BLOCK_BYTES: Final = 4096
"""Blocks of disks that direct I/O is done to are not larger, and pages are not smaller."""

# Between asking for a free device and taking it another process may have taken it: as many as might be at it at once.
_ATTEMPTS: Final = 64


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """A device that goes by itself when nobody has it open or mounted any more, whichever way its users end.

    Attributes:
        path: Such as `/dev/loop0`.
        fd: Keeps it; close it once the device is mounted.
        direct: True when what is written goes past the page cache, which holds it already on behalf of the file system
            on the device.
    """

    path: str
    fd: int
    direct: bool


def attach(file_fd: int) -> LoopDevice:
    """Make a disk of an open file.

    Raises:
        OSError: There are no loop devices here, or the kernel refused.
    """
    control_fd = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control_fd, _CTL_GET_FREE)}"
            if (device := _configure(path, file_fd)) is not None:
                return device
    finally:
        os.close(control_fd)
    raise OSError(errno.EBUSY, f"{_ATTEMPTS} loop devices were taken by others before they could be used")


def _configure(path: str, file_fd: int) -> LoopDevice | None:
    """Attach the file to this device; None when it is in use."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _AUTOCLEAR | _DIRECT_IO
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
        fcntl.ioctl(fd, _CONFIGURE, _CONFIG.pack(file_fd, BLOCK_BYTES, info))
        # Where the file's own file system has no direct I/O the kernel goes without.
        status = fcntl.ioctl(fd, _GET_STATUS64, bytes(_INFO.size))
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EBUSY:
            return None
        raise
    return LoopDevice(path, fd, bool(_INFO.unpack(status)[_FLAGS_FIELD] & _DIRECT_IO))
