"""Slots: what a sandbox needs of the host, kept and used again because making it anew costs more than cleaning it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from lambent_node_agent.cgroups import CgroupError

from . import mounts
from .errors import SandboxError
from .uid_range import UIDS_PER_AGENT

if TYPE_CHECKING:
    from pathlib import Path

    from lambent_node_agent.cgroups import Group, Tree

MAX_PROCESSES = 1024
"""AWS Lambda quotas: processes and threads of an execution environment."""
PLACES = {"task": "/var/task", "tmp": "/tmp", "passwd": "/etc/passwd"}  # noqa: S108 - the sandbox's own /tmp
"""A slot's places on the host side, and where each appears in the sandbox."""
_REMOVE_TIMEOUT_S = 5.0


class Slot:
    """UID, mount point and control groups of one sandbox at a time.

    Attributes:
        uid: UID and GID of the sandbox.
        group: Its control groups.
    """

    def __init__(self, index: int, uid: int, directory: Path, group: Group) -> None:
        self.index = index
        self.uid = uid
        self.group = group
        self._directory = directory
        self._mounted: list[str] = []

    def copy_places(self) -> list[int]:
        """Return descriptors of detached mounts for `PLACES`, in that order; the caller closes them."""
        return mounts.copy_places(self._directory, list(PLACES))

    def bind(self, code: Path, ephemeral_storage_mib: int) -> None:
        """Show the code and an empty /tmp in the sandbox that holds the slot's places.

        Raises:
            OSError: The code is not there.
        """
        mounts.bind_code(code, self._directory / "task")
        self._mounted.append("task")
        mounts.mount_temporary(self._directory / "tmp", ephemeral_storage_mib)
        self._mounted.append("tmp")

    def unbind(self) -> None:
        """Take code and /tmp away; takes milliseconds when /tmp was full."""
        while self._mounted:
            mounts.unmount(self._directory / self._mounted[-1])
            self._mounted.pop()

    def remove(self) -> None:
        """Give everything back to the host; may be called again after it has failed.

        The sandbox is gone, or its last process is just leaving the groups.

        Raises:
            OSError: A mount or directory would not go.
            CgroupError: There are processes in its groups after some seconds.
        """
        self.unbind()
        if self._directory.exists():
            mounts.unmount(self._directory)
            self._directory.rmdir()
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        while True:
            try:
                self.group.remove()
            except CgroupError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)  # no event tells on version 1 when the last task has left
            else:
                return


class SlotTable:
    """All slots of an agent.

    Args:
        directory: Holds the slots' mount points; the owner's alone.
        tree: The owner's control groups.
        first_uid: UID of slot 0; the others follow.
    """

    def __init__(self, directory: Path, tree: Tree, first_uid: int) -> None:
        self._directory = directory
        self._tree = tree
        self._first_uid = first_uid
        self._free: list[Slot] = []
        self._soiled: list[Slot] = []  # given back and not clean yet: nobody's, and to be tried again
        self._unused = 0
        self._vacant: list[int] = []  # below `_unused`, and without a slot: it was removed, or could not be made

    def open(self) -> None:
        """Make the directory, and remove mount points that a dead owner has left; its mounts ended with it."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._directory.iterdir():
            left.rmdir()

    def take(self) -> Slot:
        """Return a clean slot.

        Raises:
            SandboxError: There are as many sandboxes as UIDs, or the kernel refused a mount or group.
        """
        if self._free:
            return self._free.pop()
        index = self._vacant.pop() if self._vacant else self._unused
        if index >= UIDS_PER_AGENT:
            raise SandboxError(f"this node has {UIDS_PER_AGENT} sandboxes, one for each UID it may use")
        try:
            slot = self._make(index)
        except BaseException:
            if index < self._unused:
                self._vacant.append(index)
            raise
        self._unused = max(self._unused, index + 1)
        return slot

    async def give_back(self, slot: Slot) -> None:
        """Clean a slot off the event loop and keep it. Its sandbox must have ended.

        Raises:
            SandboxError: It cannot be cleaned now; its UID and groups are not used before it can.
        """
        await asyncio.to_thread(self._clean, slot)
        if self._soiled:
            await asyncio.to_thread(self._clean, self._soiled.pop())

    def _clean(self, slot: Slot) -> None:
        try:
            slot.unbind()
            if slot.group.reusable:
                slot.group.reset()
                self._free.append(slot)
            else:
                slot.remove()
                self._vacant.append(slot.index)
        except (OSError, CgroupError) as error:
            self._soiled.append(slot)
            raise SandboxError(f"cleaning of slot {slot.index}: {error}") from error

    def close(self) -> None:
        """Remove every slot that has been given back.

        Raises:
            SandboxError: One was not; the next start sweeps it, and its mounts end with this process.
        """
        while slots := self._free or self._soiled:
            slot = slots.pop()
            with mounts.reported(f"removal of slot {slot.index}"), contextlib.suppress(CgroupError):
                slot.remove()  # a group that would not go is swept with the tree
        with mounts.reported("removal of slots"):
            self._directory.rmdir()

    def _make(self, index: int) -> Slot:
        uid = self._first_uid + index
        directory = self._directory / str(index)
        try:
            group = self._tree.make_group(str(index))
        except CgroupError as error:
            raise SandboxError(str(error)) from error
        try:
            group.limit_processes(MAX_PROCESSES)
            with mounts.reported(f"making of slot {index}"):
                directory.mkdir()
                mounts.make_slot_mount(directory, f"sbx_user{index}:x:{uid}:{uid}::/:/sbin/nologin\n")
        except (SandboxError, CgroupError) as error:
            group.remove()
            with contextlib.suppress(OSError):
                directory.rmdir()
            raise SandboxError(str(error)) from error
        return Slot(index, uid, directory, group)
