"""The sandboxes of one node agent: what it takes of the machine, and a supply of sandboxes for each runtime."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import structlog

from lambent_node_agent.cgroups import CgroupError, Tree, read_layout

from . import interpreters, mounts, user_namespaces
from .demand import Bounds
from .ephemeral_storage import ImageStorage, MemoryStorage
from .errors import SandboxError
from .owner_lock import OwnerLock, lock_directory
from .seccomp import compile_filters
from .slots import SlotTable
from .supply import Supply
from .uid_range import UidRange

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from .ephemeral_storage import Storage
    from .sandbox import Sandbox

log = structlog.get_logger(__name__)

NEEDED_CONTROLLERS = ("memory", "pids")
"""Without one of these a function could take the machine down; without cpu functions are only unfair to each other."""

SECCOMP = "seccomp"
"""Without its filters a function can try every hole of the kernel."""

DISK = "disk"
"""Without /tmp on disk functions have it in their memory."""

NEEDED_PROTECTIONS = (*NEEDED_CONTROLLERS, SECCOMP, DISK)
"""Without one of these functions run only where the operator says so by name."""


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """Configuration of a SandboxHost.

    Attributes:
        state_dir: Directory for mount points; the agent's own, on the disk.
        owner: Mark in the names of directories and control groups: what bears the mark of a dead owner is swept. Unique
            on this machine among live agents; letters, digits, `-` and `_`.
        pool_size: Blank sandboxes that are at least kept ready for each runtime: for the agent's own from the start,
            for others from the first one that is asked for on.
        memory_mib: Memory for functions; with demand a pool grows up to a part of it (`demand`). 0 keeps `pool_size`.
        search_path: Directories to look for interpreters in, before the standard ones.
        lock_dir: Where the agents of this machine agree on owner marks and UIDs.
        allow_missing: Of `NEEDED_PROTECTIONS`, those without which functions may run all the same.
        disk_mib: What the /tmp of all sandboxes together may hold.
    """

    state_dir: Path
    owner: str
    pool_size: int = 2
    memory_mib: int = 0
    search_path: tuple[str, ...] = ()
    lock_dir: Path = Path("/run/lambent")
    allow_missing: frozenset[str] = frozenset()
    disk_mib: int = 4096


class SandboxHost:
    """Makes sandboxes. Use it as `async with`; leaving it ends every sandbox and takes everything off the machine.

    Call `enter_private_mount_namespace` before, in the main thread, and enter the host from the main thread: the kernel
    ends the zygotes with the thread that started them.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._directory = config.state_dir.resolve() / f"lambent-{config.owner}"
        self._supplies: dict[str, Supply] = {}
        self._tree: Tree | None = None
        self._resources = contextlib.AsyncExitStack()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Runtimes that this machine has an interpreter for, such as `python3.11`; newest first."""
        return tuple(self._supplies)

    async def __aenter__(self) -> Self:
        """Sweep what a dead owner left, find the interpreters, start the agent's own one's zygote.

        The zygotes of the others are started in the background, one after the other.

        Raises:
            SandboxError: Not root, a living agent has the owner mark or the state directory, the machine cannot limit
                functions as it must, or a step of the preparation failed.
        """
        async with self._resources:
            slots = self._prepare()
            filters = _filters(self._config.allow_missing)
            objection = await user_namespaces.objection(slots.first_uid)
            if objection is not None:
                log.warning("no_user_namespaces", reason=objection)
            found = await interpreters.discover(self._config.search_path)
            turn = asyncio.Lock()
            bounds = Bounds.of(self._config.pool_size, self._config.memory_mib)
            self._supplies = {
                runtime: Supply(
                    interpreter,
                    self._directory / f"root-{runtime}",
                    slots,
                    filters=filters,
                    user_namespace=objection is None,
                    bounds=bounds,
                    turn=turn,
                )
                for runtime, interpreter in found.items()
            }
            self._resources.push_async_callback(self._stop_zygotes)
            self._resources.push_async_callback(self._end_sandboxes)
            own = interpreters.own_executable()
            for runtime, interpreter in found.items():
                if interpreter.executable == own:
                    await self._supplies[runtime].use()
            for supply in self._supplies.values():
                supply.keep()
            self._resources = self._resources.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every sandbox and zygote, then remove mounts, groups and directories.

        Raises:
            SandboxError: Something could not be removed; the rest has been.
        """
        await self._resources.aclose()

    @property
    def can_freeze(self) -> bool:
        """Whether sandboxes can be frozen on this machine."""
        assert self._tree is not None
        return self._tree.can_freeze

    async def create(self, runtime: str) -> Sandbox:
        """Return a blank sandbox: a ready-made one, or one forked now.

        Raises:
            SandboxError: This node does not have the runtime, or a step failed.
        """
        supply = self._supplies.get(runtime)
        if supply is None:
            raise SandboxError(f"this node has no interpreter for {runtime}; it has {', '.join(self._supplies)}")
        return await supply.take()

    async def wait_until_filled(self) -> None:
        """Wait until every runtime's zygote runs and the pools of those in use are full."""
        await asyncio.gather(*(supply.wait_until_full() for supply in self._supplies.values()))

    def ready_made(self, runtime: str) -> int:
        """Return how many blank sandboxes of this runtime wait."""
        return self._supplies[runtime].ready_made

    def protect_control_plane(self, pid: int) -> None:
        """Guarantee a process of the control plane its CPU share against all sandboxes of this node.

        Raises:
            SandboxError: The kernel refused.
        """
        assert self._tree is not None
        with _cgroups_reported():
            self._tree.protect(pid)

    def _prepare(self) -> SlotTable:
        """Take the machine's resources, each with its way back on the stack."""
        tree = Tree(read_layout(), self._config.owner)
        _require_controllers(tree.missing, self._config.allow_missing)
        # 1. Nothing may be swept that a living agent uses.
        self._resources.callback(OwnerLock(self._config.lock_dir / "owners", self._config.owner).close)
        with mounts.reported("state directory"):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._resources.callback(os.close, lock_directory(self._directory.parent))
        # 2. Directories and UIDs.
        self._sweep_directory()
        self._resources.callback(self._remove_directory)
        uids = UidRange(self._config.lock_dir / "uids")
        self._resources.callback(uids.close)
        # 3. Control groups.
        with _cgroups_reported():
            tree.open()
        self._tree = tree
        self._resources.callback(self._close_tree)
        # 4. What /tmp is made of.
        storage = _open_storage(self._directory, self._config)
        self._resources.callback(_close_storage, storage)
        # 5. Slots, which need all of that.
        slots = SlotTable(self._directory / "slots", tree, storage, uids.first)
        with mounts.reported("slots"):
            slots.open()
        self._resources.callback(slots.close)
        return slots

    def _sweep_directory(self) -> None:
        with mounts.reported("state directory"):
            for left in self._directory.glob("root-*"):
                left.rmdir()

    def _remove_directory(self) -> None:
        self._sweep_directory()
        with mounts.reported("state directory"):
            self._directory.rmdir()

    def _close_tree(self) -> None:
        assert self._tree is not None
        with _cgroups_reported():
            self._tree.close()

    async def _end_sandboxes(self) -> None:
        await asyncio.gather(*(supply.close() for supply in self._supplies.values()))

    async def _stop_zygotes(self) -> None:
        await asyncio.gather(*(supply.stop_zygote() for supply in self._supplies.values()))


@contextlib.contextmanager
def _cgroups_reported() -> Iterator[None]:
    try:
        yield
    except CgroupError as error:
        raise SandboxError(str(error)) from error


def _filters(allowed: frozenset[str]) -> tuple[bytes, ...]:
    """Make the filters of system calls; none where there can be none and the operator accepts that."""
    try:
        return compile_filters()
    except SandboxError as error:
        if SECCOMP not in allowed:
            raise SandboxError(
                f"functions would run without a filter of system calls: {error}; mend that, or accept it with "
                f"--allow-missing {SECCOMP}"
            ) from error
        log.warning("system_calls_not_filtered", reason=str(error))
        return ()


def _open_storage(directory: Path, config: SandboxConfig) -> Storage:
    """Make the storage of /tmp on the disk; in memory where that cannot be and the operator accepts it."""
    try:
        return ImageStorage(directory, config.disk_mib)
    except SandboxError as error:
        if DISK not in config.allow_missing:
            raise SandboxError(
                f"{error}; mend that, or have it in functions' memory with --allow-missing {DISK}"
            ) from error
        log.warning("ephemeral_storage_in_memory", reason=str(error))
        return MemoryStorage()


def _close_storage(storage: Storage) -> None:
    with mounts.reported("storage of /tmp"):
        storage.close()


def _require_controllers(missing: tuple[str, ...], allowed: frozenset[str]) -> None:
    """Refuse to run functions without the limits that keep the machine alive, unless the operator has said so."""
    refused = [name for name in NEEDED_CONTROLLERS if name in missing and name not in allowed]
    if refused:
        names = ",".join(refused)
        raise SandboxError(
            f"this machine has no control group controller for {names}, so functions would run without that limit; "
            f"enable it at the kernel's command line or in the container, or accept it with --allow-missing {names}"
        )
    for name in missing:
        log.warning("limit_not_enforced", controller=name)
