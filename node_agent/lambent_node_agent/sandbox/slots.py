"""Slots: what a sandbox needs of the host, kept and used again because making it anew costs more than cleaning it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import structlog

from lambent_node_agent.cgroups import CgroupError
from lambent_node_agent.network import NetworkError

from . import mounts
from .errors import SandboxError
from .uid_range import UIDS_PER_AGENT

if TYPE_CHECKING:
    from pathlib import Path

    from lambent_node_agent.cgroups import Group, Tree
    from lambent_node_agent.network import Attachment, LoopbackAttachment, LoopbackOnly, NetworkChoice, Router

    from .ephemeral_storage import Storage, Volume
    from .uid_range import SandboxUid, UidRange

log = structlog.get_logger(__name__)

MAX_PROCESSES = 1024
"""AWS Lambda quotas: processes and threads of an execution environment."""
PLACES = {"task": "/var/task", "tmp": "/tmp", "passwd": "/etc/passwd"}  # noqa: S108 - the sandbox's own /tmp
"""A slot's places on the host side, and where each appears in the sandbox."""
_WRITABLE = frozenset({"tmp"})
_ACCOUNTS = """\
sbx_user{index}:x:{uid}:{uid}::/:/sbin/nologin
nobody:x:65534:65534::/:/sbin/nologin
"""
"""Lines of a sandbox's /etc/passwd. Nobody's is every file of a UID that is not in its user namespace."""
_REMOVE_TIMEOUT_S = 5.0


class Slot:
    """UID, mount point, control groups and network namespace of one sandbox at a time.

    Attributes:
        uid: UID and GID of the sandbox, by both numbers.
        group: Its control groups.
        network: Its network namespace.
        whole: False once its removal has begun: what is left of it can only be removed.
    """

    def __init__(
        self,
        index: int,
        uid: SandboxUid,
        directory: Path,
        *,
        group: Group,
        volume: Volume,
        network: Attachment | LoopbackAttachment,
    ) -> None:
        self.index = index
        self.uid = uid
        self.group = group
        self.network = network
        self.whole = True
        self._network_used = False
        self._directory = directory
        self._volume = volume
        self._has_code = False

    def copy_places(self) -> list[int]:
        """Return descriptors of detached mounts for `PLACES`, in that order; the caller closes them."""
        return mounts.copy_places(self._directory, list(PLACES), _WRITABLE)

    @property
    def sound(self) -> bool:
        """False when its /tmp cannot be written to, because the disk has failed it."""
        return self._volume.sound

    @property
    def has_new_tmp(self) -> bool:
        """Whether its /tmp is there, empty, of the default size and can be written to."""
        return self._volume.as_new

    def make_tmp(self) -> None:
        """Make an empty /tmp for the next sandbox. Not for the event loop.

        Raises:
            OSError, SandboxError: The kernel or the disk refused.
        """
        self._volume.remove()
        self._volume.make()

    def bind_code(self, code: Path) -> None:
        """Show the code in the sandbox that holds the slot's places.

        Raises:
            OSError: The code is not there.
        """
        mounts.bind_code(code, self._directory / "task")
        self._has_code = True

    def set_storage_size(self, ephemeral_storage_mib: int) -> None:
        """Let /tmp hold this much; it is of the default size before. Not for the event loop: it may wait for the disk.

        Raises:
            OSError: The kernel refused.
        """
        self._volume.set_size(ephemeral_storage_mib)

    def clear(self) -> None:
        """Take the code away, and /tmp unless it is as new: most functions never use it. Not for the event loop."""
        if self._has_code:
            mounts.unmount(self._directory / "task")
            self._has_code = False
        if not self._volume.as_new:
            self._volume.remove()

    async def connect(self, choice: NetworkChoice) -> None:
        """Give the sandbox a network. Raises as `Attachment.connect`."""
        self._network_used = True
        await self.network.connect(choice)

    def renew_network(self, networks: Router | LoopbackOnly) -> None:
        """Have a network namespace in which no function has run: connections that end slowly, and counts, outlive one.

        Raises:
            NetworkError: The kernel refused.
        """
        if self._network_used:
            self.network.close()
            self.network = networks.attach(self.index)
            self._network_used = False

    def remove(self) -> None:
        """Give everything back to the host; may be called again after it has failed.

        The sandbox is gone, or its last process is just leaving the groups.

        Raises:
            OSError: A mount or directory would not go.
            CgroupError: There are processes in its groups after some seconds.
            NetworkError: Its connections cannot be forgotten.
        """
        self.whole = False
        if self._directory.exists():
            self.clear()
            self._volume.remove()
            mounts.unmount(self._directory)
            self._directory.rmdir()
        self.network.close()  # after the files: the router and what it remembers go with the agent, directories do not
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
        storage: Makes their /tmp.
        uids: Gives the UID of each slot.
        networks: Makes their network namespaces.
    """

    def __init__(
        self, directory: Path, tree: Tree, storage: Storage, uids: UidRange, networks: Router | LoopbackOnly
    ) -> None:
        self._directory = directory
        self._tree = tree
        self._storage = storage
        self._uids = uids
        self._networks = networks
        self._free: list[Slot] = []
        self._soiled: list[Slot] = []  # given back and not clean yet: nobody's, and to be tried again
        self._unused = 0
        self._vacant: list[int] = []  # below `_unused`, and without a slot: it was removed, or could not be made

    def open(self) -> None:
        """Make the directory, and remove mount points that a dead owner has left; its mounts ended with it."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._directory.iterdir():
            left.rmdir()

    async def take(self) -> Slot:
        """Return a clean slot. What has to be made is made off the event loop.

        Raises:
            SandboxError: There are as many sandboxes as UIDs, or the kernel refused a mount, group or /tmp.
        """
        slot = self._free.pop() if self._free else await self._make_another()
        if slot.has_new_tmp:
            return slot
        if not slot.sound:  # its file system has failed, and is gone when no other slot holds a /tmp in it
            self._soiled += self._free
            self._free.clear()
        try:
            with mounts.reported(f"storage of slot {slot.index}"):
                await asyncio.to_thread(slot.make_tmp)
        except BaseException:
            await self.give_back(slot)
            raise
        return slot

    async def _make_another(self) -> Slot:
        if not self._vacant and self._unused >= UIDS_PER_AGENT:
            raise SandboxError(f"this node has {UIDS_PER_AGENT} sandboxes, one for each UID it may use")
        if not self._vacant:
            self._vacant.append(self._unused)
            self._unused += 1
        index = self._vacant.pop()
        try:
            return await asyncio.to_thread(self._make, index)
        except BaseException:
            self._vacant.append(index)
            raise

    async def give_back(self, slot: Slot) -> None:
        """Clean a slot off the event loop and keep it. Its sandbox must have ended.

        Raises:
            SandboxError: It cannot be cleaned now; its UID and groups are not used before it can.
        """
        await asyncio.to_thread(self._clean, slot)
        if self._soiled:
            another = self._soiled.pop()
            try:
                await asyncio.to_thread(self._clean, another)
            except SandboxError as error:  # no matter of whose slot is clean
                log.warning("slot_not_clean", error=str(error))

    def _clean(self, slot: Slot) -> None:
        try:
            slot.clear()
            if slot.whole and slot.group.reusable and slot.group.reset():
                slot.renew_network(self._networks)
                self._free.append(slot)
            else:
                slot.remove()
                self._vacant.append(slot.index)
        except (OSError, CgroupError, NetworkError) as error:
            self._soiled.append(slot)
            raise SandboxError(f"cleaning of slot {slot.index}: {error}") from error

    def close(self) -> None:
        """Remove every slot that has been given back.

        Raises:
            SandboxError: One was not; the next start sweeps it, and its mounts end with this process.
        """
        while slots := self._free or self._soiled:
            slot = slots.pop()
            with mounts.reported(f"removal of slot {slot.index}"), contextlib.suppress(CgroupError, NetworkError):
                # A group that would not go is swept with the tree, and a network goes with the router.
                slot.remove()
        with mounts.reported("removal of slots"):
            self._directory.rmdir()

    def _make(self, index: int) -> Slot:
        with contextlib.ExitStack() as made:
            try:
                network = self._networks.attach(index)
                made.callback(network.close)
                group = self._tree.make_group(str(index))
                made.callback(group.remove)
                group.limit_processes(MAX_PROCESSES)
            except (CgroupError, NetworkError) as error:
                raise SandboxError(f"making of slot {index}: {error}") from error
            uid, directory = self._uids.of(index), self._directory / str(index)
            with mounts.reported(f"making of slot {index}"):
                directory.mkdir()
                made.callback(_remove_directory, directory)
                mounts.make_slot_mount(directory, _ACCOUNTS.format(index=index, uid=uid.inside))
            volume = self._storage.volume(index, directory / "tmp")
            made.pop_all()
        return Slot(index, uid, directory, group=group, volume=volume, network=network)


def _remove_directory(directory: Path) -> None:
    """Leave nothing of a slot that could not be made."""
    with contextlib.suppress(OSError):
        mounts.unmount(directory)
    with contextlib.suppress(OSError):
        directory.rmdir()
