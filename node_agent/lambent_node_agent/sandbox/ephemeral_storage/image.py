"""Storage on the node's disk: one file with a btrfs in it, and in that a subvolume with a hard limit for each volume.

Making a subvolume, limiting it and taking it away are one system call each, of some 50 microseconds, whatever is in it.
A file system for each volume (an ext4 in a file of its own) takes ten milliseconds to mount and to unmount.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import structlog

from lambent_node_agent.sandbox.errors import SandboxError
from lambent_runtime import linux

from . import btrfs, loop_device
from .storage import DEFAULT_SIZE_MIB, DIRECTORY_MODE, Untouched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = structlog.get_logger(__name__)

_MIB: Final = 1 << 20
_MKFS: Final = "mkfs.btrfs"
_MKFS_OPTIONS: Final = (
    # Files and trees share all room. Divided as usual, a function that reserves much and uses nothing of it could leave
    # the trees without any, so that nobody could make a file any more.
    "--mixed",
    "--metadata=single",  # nothing must survive anything
    "--data=single",
    "--nodiscard",  # the file is one hole already
    "--quiet",
)
_MKFS_TIMEOUT_S: Final = 60.0  # 20 ms as a rule
_SYSTEM_PROGRAMS: Final = "/usr/sbin:/sbin"  # not on every PATH, not even root's

_MOUNT_OPTIONS: Final = ",".join(
    (
        "nodatacow",  # what is overwritten stays in its place: no room is needed for it, and no checksums are kept
        "nobarrier",  # a function's fsync does not become one of the host's disk: nothing must survive a crash
        "discard",  # what is freed becomes a hole in the file; `discard=async` leaves out mixed room
        "commit=5",  # seconds until what dead sandboxes had is found and freed, instead of 30
    )
)
_NAME: Final = "ephemeral-storage"
_TOTAL: Final = 1
"""Number of the quota group of all volumes together."""
_VOLUME_NAME: Final = "tmp"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def file_mib(capacity_mib: int) -> int:
    """Size of the file for a capacity: the file system needs some of it for itself, even when the volumes are full."""
    return capacity_mib + capacity_mib // 8 + 256


class ImageStorage:
    """Volumes in one image. When its file system fails, as on a full disk of the host, the next volume is in a new one.

    The image is a sparse file that has no name any more: it, its loop device and its mount are the kernel's to free
    when this process and its sandboxes have ended, however they do.

    Args:
        directory: For the mount point, on the disk that is to be used; the owner's alone. In the agent's own mount
            namespace.
        capacity_mib: What all volumes together may hold.

    Raises:
        SandboxError: The machine lacks something for it; the message says what.
    """

    def __init__(self, directory: Path, capacity_mib: int) -> None:
        self._directory = directory
        self._capacity_mib = capacity_mib
        self._lock = threading.Lock()
        self._generations = 0
        for left in directory.glob(f"{_NAME}-*"):
            left.unlink()  # of an agent that was killed a moment before it would have done so
        try:
            self._image = self._make_image()
        except SandboxError:
            with suppress(FileNotFoundError):
                (directory / _NAME).rmdir()  # the agent may go on without it, and is to leave nothing
            raise

    def volume(self, index: int, place: Path) -> ImageVolume:
        """See `Storage`."""
        return ImageVolume(self, f"{index}", place)

    def close(self) -> None:
        """Unmount the image, which frees its space."""
        self._image.close()

    def sound_image(self) -> _Image:
        """Return the image for new volumes: another one when that of before has failed.

        Raises:
            SandboxError: There cannot be another one.
        """
        with self._lock:
            if not self._image.sound:
                log.error("ephemeral_storage_failed", help="is the disk full? new environments get storage anew")
                self._image.retire()
                self._image = self._make_image()
            return self._image

    def _make_image(self) -> _Image:
        try:
            # A name of its own, or mkfs.btrfs takes it for the one before, which may still be mounted.
            self._generations += 1
            file = self._directory / f"{_NAME}-{self._generations}"
            return _Image(file, self._directory / _NAME, self._capacity_mib)
        except OSError as error:
            raise SandboxError(f"no storage on disk: {error}") from error


class ImageVolume:
    """A subvolume, mounted at a place. See `Volume`."""

    def __init__(self, storage: ImageStorage, name: str, place: Path) -> None:
        self._storage = storage
        self._name = name
        self._place = place
        self._image: _Image | None = None
        self._untouched: Untouched | None = None

    @property
    def sound(self) -> bool:
        """A btrfs that cannot write turns itself read-only."""
        return os.access(self._place, os.W_OK)

    @property
    def as_new(self) -> bool:
        """See `Volume`."""
        return bool(self._untouched) and self.sound

    def make(self) -> None:
        """Make a subvolume, in another image if that of before has failed."""
        image = self._storage.sound_image()
        path = image.create_volume(self._name)
        self._image = image
        linux.bind(path, str(self._place), linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV)
        self._untouched = Untouched(self._place)

    def set_size(self, size_mib: int) -> None:
        """Change the subvolume's limit."""
        self._untouched = None
        fd = os.open(self._place, _DIRECTORY)
        try:
            btrfs.limit_subvolume(fd, size_mib)
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Unmount and destroy the subvolume; the time that it takes does not depend on what is in it."""
        self._untouched = None
        if os.path.ismount(self._place):
            linux.umount(str(self._place))
        if self._image is not None:
            self._image.destroy_volume(self._name)
            self._image = None


class _Image:
    """One file system, from the empty file to its end. Its methods may be called from several threads."""

    def __init__(self, file: Path, mount_point: Path, capacity_mib: int) -> None:
        self._mount_point = mount_point
        self._lock = threading.Lock()
        self._retired = False
        self._users = 1  # volumes, and the storage until it retires this image
        self._destroyed: deque[int] = deque()  # subvolumes whose quota groups may still be there
        device = _make_device(file, file_mib(capacity_mib))
        try:
            _make_file_system(device.path)
            self._mount_point.mkdir(exist_ok=True, mode=0o700)
            flags = linux.MS_NOSUID | linux.MS_NODEV
            linux.mount(device.path, str(self._mount_point), "btrfs", flags, _MOUNT_OPTIONS)
        finally:
            os.close(device.fd)
        with ExitStack() as made:
            made.callback(linux.umount, str(self._mount_point))
            self._mount_point.chmod(0o700)
            self._fd = os.open(self._mount_point, _DIRECTORY)
            made.callback(os.close, self._fd)
            btrfs.enable_quota(self._fd)
            self._group = btrfs.make_group(self._fd, _TOTAL, capacity_mib)
            made.pop_all()
        if not device.direct:
            log.warning("ephemeral_storage_without_direct_io", help="what /tmp holds is cached twice")

    @property
    def sound(self) -> bool:
        """False once the file system has turned itself read-only, or this has been retired and closed."""
        return self._fd >= 0 and os.access(".", os.W_OK, dir_fd=self._fd)

    def create_volume(self, name: str) -> str:
        """Make an empty subvolume for anybody to write to, and return its path."""
        with self._lock:
            self._users += 1
        try:
            # In a directory of its own, which is locked while a subvolume is taken out of it.
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=self._fd)
            with _opened(name, self._fd) as parent_fd:
                btrfs.create_subvolume(parent_fd, _VOLUME_NAME, DEFAULT_SIZE_MIB, self._group)
                try:
                    os.chmod(_VOLUME_NAME, DIRECTORY_MODE, dir_fd=parent_fd)
                except BaseException:
                    btrfs.destroy_subvolume(parent_fd, _VOLUME_NAME)  # or there could never be another one
                    raise
        except BaseException:
            self._let_go()
            raise
        return f"/proc/self/fd/{self._fd}/{name}/{_VOLUME_NAME}"

    def destroy_volume(self, name: str) -> None:
        """Take a subvolume away; one of an image that has failed goes with that."""
        if not self._retired and self.sound:
            with _opened(name, self._fd) as parent_fd:
                with _opened(_VOLUME_NAME, parent_fd) as fd:
                    number = btrfs.subvolume_id(fd)
                btrfs.destroy_subvolume(parent_fd, _VOLUME_NAME)
            self._destroyed.append(number)
            self._remove_groups()
        self._let_go()

    def retire(self) -> None:
        """Make room for another image. This one goes with the last sandbox that has a volume of it."""
        if not self._retired:
            self._retired = True
            linux.umount(str(self._mount_point))
            self._let_go()

    def close(self) -> None:
        """Unmount it and leave no directory."""
        self.retire()
        self._mount_point.rmdir()

    def _let_go(self) -> None:
        """The last user closes it."""
        with self._lock:
            self._users -= 1
            if not self._users:
                os.close(self._fd)
                self._fd = -1

    def _remove_groups(self) -> None:
        """Remove quota groups of subvolumes that are gone; kernels since 6.12 do so themselves."""
        with self._lock:
            while self._destroyed:
                try:
                    btrfs.remove_group(self._fd, self._destroyed[0])
                except OSError as error:
                    if error.errno == errno.EBUSY:  # something of it is left, and of those after it
                        return
                    if error.errno != errno.ENOENT:
                        raise
                self._destroyed.popleft()


@contextmanager
def _opened(name: str, parent_fd: int) -> Iterator[int]:
    fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _make_device(path: Path, size_mib: int) -> loop_device.LoopDevice:
    """Make a loop device of a new sparse file, whose name is removed again: it goes with the device."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        path.unlink()
        os.ftruncate(fd, size_mib * _MIB)
        return loop_device.attach(fd)
    finally:
        os.close(fd)


def _make_file_system(device: str) -> None:
    program = shutil.which(_MKFS, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PROGRAMS}")
    if program is None:
        raise SandboxError(f"no storage on disk: {_MKFS} is not installed (Debian and Ubuntu: btrfs-progs)")
    command = (program, *_MKFS_OPTIONS, device)
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_MKFS_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise SandboxError(f"no storage on disk: {_MKFS} failed: {error.stderr.strip()[-200:]}") from error
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"no storage on disk: {_MKFS} took more than {_MKFS_TIMEOUT_S:g} s") from error
