"""The sandboxes of one node agent: what it takes of the machine, and a supply of sandboxes for each runtime."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import structlog

from lambent_node_agent import isolation
from lambent_node_agent.cgroups import CgroupError, Tree, read_layout
from lambent_node_agent.isolation import Level, Protection
from lambent_node_agent.network import LoopbackOnly, NamedNetworks, NetworkError, NetworkSettings, Router

from . import interpreters, memory_merging, mounts, user_namespaces
from .demand import Bounds
from .ephemeral_storage import ImageStorage, MemoryStorage
from .errors import SandboxError
from .owner_lock import OwnerLock, lock_directory
from .seccomp import compile_filters
from .slots import SlotTable
from .supply import Supply
from .uid_range import ALL_UIDS, UidRange

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from .confinement import Confinement
    from .ephemeral_storage import Storage
    from .sandbox import Sandbox

log = structlog.get_logger(__name__)

DEFAULT_LOCK_DIR = Path("/run/lambent")

NETWORK = "network"
"""Without its rules functions have no network, for there would be no limit to where they connect. An operator accepts
that by this name; it is no matter of a level."""


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
        disk_mib: What the /tmp of all sandboxes together may hold.
        allow_missing: Names of protections without which functions may run all the same; see `isolation`.
        required: Level of isolation below which they may not, whatever is allowed.
        confinement: What an agent without root has; None as root.
        network: Where functions may connect to.
        merge_memory: Let the kernel merge equal pages of all sandboxes, whosever they are.
    """

    state_dir: Path
    owner: str
    pool_size: int = 2
    memory_mib: int = 0
    search_path: tuple[str, ...] = ()
    lock_dir: Path = DEFAULT_LOCK_DIR
    allow_missing: frozenset[str] = frozenset()
    disk_mib: int = 4096
    required: Level = Level.REDUCED
    confinement: Confinement | None = None
    network: NetworkSettings = field(default_factory=NetworkSettings)
    merge_memory: bool = False


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
        self._named_networks = NamedNetworks()
        self._missing: Mapping[Protection, str] = {}
        self._resources = contextlib.AsyncExitStack()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Runtimes that this machine has an interpreter for, such as `python3.11`; newest first."""
        return tuple(self._supplies)

    @property
    def missing(self) -> Mapping[Protection, str]:
        """What this machine does not protect itself by, each with its reason."""
        return self._missing

    @property
    def named_networks(self) -> NamedNetworks:
        """What functions with a VpcConfig may name here: nothing, where functions have loopback alone."""
        return self._named_networks

    async def __aenter__(self) -> Self:
        """Sweep what a dead owner left, find the interpreters, start the agent's own one's zygote.

        The zygotes of the others are started in the background, one after the other.

        Raises:
            SandboxError: Not root, a living agent has the owner mark or the state directory, the machine cannot limit
                functions as it must, or a step of the preparation failed.
        """
        async with self._resources:
            tree, uids = self._claim()
            filters, without_filters = _filters()
            without_namespace = await user_namespaces.objection(uids.of(0))
            storage, without_disk = _open_storage(self._directory, self._config)
            self._resources.callback(_close_storage, storage)
            objections = {
                Protection.SECCOMP: without_filters,
                Protection.DISK: without_disk,
                Protection.USER_NAMESPACE: without_namespace,
                Protection.OWN_PAGES: _merging(self._config),
            }
            self._require(tree, uids, objections)
            slots = await self._make_slots(tree, storage, uids)
            found = await interpreters.discover(self._config.search_path)
            turn = asyncio.Lock()
            bounds = Bounds.of(self._config.pool_size, self._config.memory_mib)
            self._supplies = {
                runtime: Supply(
                    interpreter,
                    self._directory / f"root-{runtime}",
                    slots,
                    filters=filters,
                    user_namespace=without_namespace is None,
                    confined=self._config.confinement is not None,
                    merge_memory=self._config.merge_memory,
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

    def _claim(self) -> tuple[Tree, UidRange]:
        """Take what is this agent's alone, each with its way back on the stack."""
        config = self._config
        tree = Tree(read_layout(delegated=config.confinement is not None), config.owner)
        # 1. Nothing may be swept that a living agent uses.
        self._resources.callback(OwnerLock(config.lock_dir / "owners", config.owner).close)
        with mounts.reported("state directory"):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._resources.callback(os.close, lock_directory(self._directory.parent))
        # 2. Directories and UIDs.
        self._sweep_directory()
        self._resources.callback(self._remove_directory)
        confinement = config.confinement
        uids = UidRange(config.lock_dir / "uids", ALL_UIDS if confinement is None else confinement.uids)
        self._resources.callback(uids.close)
        # 3. Control groups.
        with _cgroups_reported():
            tree.open()
        self._tree = tree
        self._resources.callback(self._close_tree)
        return tree, uids

    def _require(self, tree: Tree, uids: UidRange, objections: Mapping[Protection, str | None]) -> None:
        """Find out what is missing, and refuse to run functions without what the operator wants.

        Raises:
            SandboxError: Something is missing that must be there.
        """
        missing = {protection for protection, objection in objections.items() if objection is not None}
        missing |= {protection for protection in Protection if protection.value in tree.missing}
        if Protection.USER_NAMESPACE not in missing:
            # Its rlimit holds for the namespace of a sandbox as a whole, and nobody in there may raise it.
            missing.discard(Protection.PIDS)
        if not tree.limits_swap and _machine_swaps():
            missing.add(Protection.SWAP)
        if uids.shared:
            missing.add(Protection.OWN_UID)
            if Protection.USER_NAMESPACE in missing:
                raise SandboxError(
                    "sandboxes have neither a UID nor a user namespace of their own: "
                    f"{objections[Protection.USER_NAMESPACE]}"
                )
        self._missing = {protection: objections.get(protection) or protection.without for protection in missing}
        allowed = isolation.accepted(self._config.allow_missing, confined=self._config.confinement is not None)
        said = isolation.refusal(self._missing, allowed, self._config.required)
        if said is not None:
            raise SandboxError(said)
        for protection in isolation.in_order(missing):
            log.warning("not_protected", missing=protection.value, reason=self._missing[protection])

    async def _make_slots(self, tree: Tree, storage: Storage, uids: UidRange) -> SlotTable:
        networks = _open_networks(self._config, uids.block)
        self._resources.callback(networks.close)
        if isinstance(networks, Router):
            self._named_networks = self._config.network.named
        with _network_reported():
            await networks.serve_names()
        self._resources.push_async_callback(networks.stop_names)
        slots = SlotTable(self._directory / "slots", tree, storage, uids, networks)
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


@contextlib.contextmanager
def _network_reported() -> Iterator[None]:
    try:
        yield
    except NetworkError as error:
        raise SandboxError(str(error)) from error


def _filters() -> tuple[tuple[bytes, ...], str | None]:
    """Make the filters of system calls; none, and why, where there can be none."""
    try:
        return compile_filters(), None
    except SandboxError as error:
        return (), str(error)


def _merging(config: SandboxConfig) -> str | None:
    """Say why sandboxes do not keep their pages for themselves; None when they do.

    Raises:
        SandboxError: The operator wants them merged, and the kernel would not do that.
    """
    if not config.merge_memory:
        return None
    if (objection := memory_merging.objection()) is not None:
        raise SandboxError(f"--merge-memory: {objection}")
    return f"--merge-memory: {Protection.OWN_PAGES.without}"


def _open_storage(directory: Path, config: SandboxConfig) -> tuple[Storage, str | None]:
    """Make the storage of /tmp on the disk; in memory, and why, where that cannot be."""
    if config.confinement is not None:
        return MemoryStorage(), "without root no file can be mounted, so /tmp is memory of the function"
    try:
        return ImageStorage(directory, config.disk_mib), None
    except SandboxError as error:
        return MemoryStorage(), str(error)


def _close_storage(storage: Storage) -> None:
    with mounts.reported("storage of /tmp"):
        storage.close()


def _machine_swaps() -> bool:
    return len(Path("/proc/swaps").read_text().splitlines()) > 1  # the first has the names of the columns


def _open_networks(config: SandboxConfig, number: int) -> Router | LoopbackOnly:
    """Make the network of functions; none without root, or where there can be none and the operator accepts that."""
    if config.confinement is not None:
        return LoopbackOnly(confined=True)
    try:
        router = Router(number, config.network, config.lock_dir)
        router.open()
    except NetworkError as error:
        if NETWORK not in config.allow_missing:
            raise SandboxError(
                f"functions would have no network: {error}; mend that, or accept it with --allow-missing {NETWORK}"
            ) from error
        log.warning("functions_without_network", reason=str(error))
        return LoopbackOnly()
    return router
