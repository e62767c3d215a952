"""What is used of btrfs's own system calls: subvolumes, and quota groups that limit them.

Sources: linux/btrfs.h, btrfs-ioctl(2). Every function raises OSError.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct
from typing import Final

_MAGIC: Final = 0x94
_WRITE, _READ = 1, 2
_ARGUMENT_BYTES: Final = 4096  # of calls that take a name


def _number(direction: int, number: int, size: int) -> int:
    """As the macro _IOC of asm-generic/ioctl.h."""
    return direction << 30 | size << 16 | _MAGIC << 8 | number


SUBVOL_CREATE_V2: Final = _number(_WRITE, 24, _ARGUMENT_BYTES)
SNAP_DESTROY: Final = _number(_WRITE, 15, _ARGUMENT_BYTES)

# struct btrfs_ioctl_vol_args_v2 up to its name: fd, transid, flags, size and address of the inheritance, two unused.
_VOLUME: Final = struct.Struct("=qQQQQ16x")
_QGROUP_INHERIT: Final = 4
# struct btrfs_qgroup_inherit with one group: flags, number of groups, two of copies, limit, group.
_INHERIT: Final = struct.Struct("=QQ16x40sQ")
_SET_LIMITS: Final = 1

_QUOTA_CTL: Final = _number(_READ | _WRITE, 40, 16)
_QUOTA: Final = struct.Struct("=QQ")
_QUOTA_ENABLE: Final = 1
_QUOTA_ENABLE_SIMPLE: Final = 4
_QUOTA_RESCAN_WAIT: Final = _MAGIC << 8 | 46

# struct btrfs_qgroup_limit: which are set; bytes referenced, bytes exclusive, and two that reserve nothing.
_LIMIT: Final = struct.Struct("=QQ24x")
_MAX_REFERENCED: Final = 1
_QGROUP_CREATE: Final = _number(_WRITE, 42, 16)
_QGROUP_CREATION: Final = struct.Struct("=QQ")
_QGROUP_LIMIT: Final = _number(_READ, 43, 48)

_INO_LOOKUP: Final = _number(_READ | _WRITE, 18, _ARGUMENT_BYTES)
# struct btrfs_ioctl_ino_lookup_args up to its name: subvolume, inode.
_INO: Final = struct.Struct("=QQ")
_FIRST_INODE: Final = 256

_LEVEL_SHIFT: Final = 48
_MIB: Final = 1 << 20


def enable_quota(fs_fd: int) -> None:
    """Have the file system count what each subvolume holds.

    By simple quotas (Linux 6.7), which make and remove files three times as fast as full ones, or else by those.
    """
    try:
        fcntl.ioctl(fs_fd, _QUOTA_CTL, _QUOTA.pack(_QUOTA_ENABLE_SIMPLE, 0))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        fcntl.ioctl(fs_fd, _QUOTA_CTL, _QUOTA.pack(_QUOTA_ENABLE, 0))
        fcntl.ioctl(fs_fd, _QUOTA_RESCAN_WAIT)


def make_group(fs_fd: int, number: int, size_mib: int) -> int:
    """Make a quota group of level 1, above those of subvolumes, and return its id."""
    group = 1 << _LEVEL_SHIFT | number
    fcntl.ioctl(fs_fd, _QGROUP_CREATE, _QGROUP_CREATION.pack(1, group))
    fcntl.ioctl(fs_fd, _QGROUP_LIMIT, struct.pack("=Q", group) + _limit(size_mib))
    return group


def remove_group(fs_fd: int, subvolume_id: int) -> None:
    """Remove the quota group of a subvolume that is gone."""
    fcntl.ioctl(fs_fd, _QGROUP_CREATE, _QGROUP_CREATION.pack(0, subvolume_id))


def create_subvolume(parent_fd: int, name: str, size_mib: int, group: int) -> None:
    """Make a subvolume that holds at most `size_mib`, and with all others of `group` at most that group's limit."""
    inherit = ctypes.create_string_buffer(_INHERIT.pack(_SET_LIMITS, 1, _limit(size_mib), group), _INHERIT.size)
    argument = _VOLUME.pack(0, 0, _QGROUP_INHERIT, _INHERIT.size, ctypes.addressof(inherit)) + name.encode()
    fcntl.ioctl(parent_fd, SUBVOL_CREATE_V2, _padded(argument))


def limit_subvolume(fd: int, size_mib: int) -> None:
    """Change what the subvolume of an open directory may hold."""
    fcntl.ioctl(fd, _QGROUP_LIMIT, struct.pack("=Q", 0) + _limit(size_mib))


def destroy_subvolume(parent_fd: int, name: str) -> None:
    """Take a subvolume away with all that is in it; its space is free some seconds later."""
    fcntl.ioctl(parent_fd, SNAP_DESTROY, _padded(struct.pack("=q", 0) + name.encode()))


def subvolume_id(fd: int) -> int:
    """Return the number of the subvolume that an open file is in, which is that of its quota group as well."""
    argument = _padded(_INO.pack(0, _FIRST_INODE))
    fcntl.ioctl(fd, _INO_LOOKUP, argument)
    number: int = _INO.unpack_from(argument)[0]
    return number


def _padded(argument: bytes) -> bytearray:
    return bytearray(argument.ljust(_ARGUMENT_BYTES, b"\0"))


def _limit(size_mib: int) -> bytes:
    return _LIMIT.pack(_MAX_REFERENCED, size_mib * _MIB)
