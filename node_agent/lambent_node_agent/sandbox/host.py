"""The sandboxes of one node agent: zygotes, slots and the pool of ready-made blank sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import structlog

from lambent_node_agent.cgroups import CgroupError, open_tree

from . import interpreters, mounts
from .errors import SandboxError
from .sandbox import Sandbox, fork_into
from .slots import SlotTable
from .uid_range import UidRange
from .zygote_client import Zygote

if TYPE_CHECKING:
    from types import TracebackType

    from lambent_node_agent.cgroups import Tree

    from .interpreters import Interpreter
    from .slots import Slot

log = structlog.get_logger(__name__)

REFILL_DELAY_S = 0.03
"""A new environment's first milliseconds belong to it: the refill would compete for the CPU with the start it
follows."""


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """Configuration of a SandboxHost.

    Attributes:
        state_dir: Directory for mount points; the agent's own, on the disk.
        owner: Mark in the names of directories and control groups: what bears the mark of a dead owner is swept. Unique
            on this machine among live agents; letters, digits, `-` and `_`.
        pool_size: Blank sandboxes kept ready for each runtime that has been started.
        search_path: Directories to look for interpreters in, before the standard ones.
        uid_lock_dir: Where the agents of this machine agree on their UIDs.
    """

    state_dir: Path
    owner: str
    pool_size: int = 2
    search_path: tuple[str, ...] = ()
    uid_lock_dir: Path = Path("/run/lambent/uids")


class SandboxHost:
    """Makes sandboxes. Use it as `async with`; leaving it ends every sandbox and takes everything off the machine.

    Call `enter_private_mount_namespace` before, in the main thread, and enter the host from the main thread: the kernel
    ends the zygotes with the thread that started them.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._interpreters: dict[str, Interpreter] = {}
        self._zygotes: dict[str, Zygote] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        self._pools: dict[str, deque[Sandbox]] = {}
        self._live: set[Sandbox] = set()
        self._refill_wanted = asyncio.Event()
        self._filled = asyncio.Event()
        self._refiller: asyncio.Task[None] | None = None
        self._directory = config.state_dir.resolve() / f"lambent-{config.owner}"
        self._tree: Tree | None = None
        self._slots: SlotTable | None = None
        self._uids: UidRange | None = None
        self._resources = contextlib.AsyncExitStack()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Runtimes that this machine has an interpreter for, such as `python3.11`; newest first."""
        return tuple(self._interpreters)

    @property
    def missing_controllers(self) -> tuple[str, ...]:
        """Of memory, cpu and pids, those whose limits this machine cannot enforce."""
        return self._tree.missing if self._tree is not None else ()

    async def __aenter__(self) -> Self:
        """Sweep what a dead owner left, find the interpreters, start the agent's own one's zygote and fill its pool.

        Raises:
            SandboxError: Not root, or a step of the preparation failed.
        """
        async with self._resources:
            self._prepare()
            self._interpreters = await interpreters.discover(self._config.search_path)
            own = interpreters.own_executable()
            first = next((entry.runtime for entry in self._interpreters.values() if entry.executable == own), None)
            self._resources.push_async_callback(self._stop_zygotes)
            if first is not None:
                await self._zygote_of(first)
            self._resources.push_async_callback(self._end_sandboxes)
            self._refiller = asyncio.get_running_loop().create_task(self._refill())
            self._resources = self._resources.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every sandbox and zygote, then remove mounts, groups and directories."""
        await self._resources.aclose()

    async def create(self, runtime: str) -> Sandbox:
        """Return a blank sandbox: a ready-made one, or one forked now.

        Raises:
            SandboxError: This node does not have the runtime, or a step failed.
        """
        pool = self._pools.get(runtime, deque())
        while pool:
            sandbox = pool.popleft()
            self._want_refill()
            if not sandbox.exited.done():
                return sandbox
            await sandbox.close()
        sandbox = await self._make(runtime)
        self._want_refill()
        return sandbox

    async def wait_until_filled(self) -> None:
        """Wait until the pools of all started runtimes are full."""
        await self._filled.wait()

    def ready_made(self, runtime: str) -> int:
        """Return how many blank sandboxes of this runtime wait."""
        return len(self._pools.get(runtime, ()))

    def protect_control_plane(self, pid: int) -> None:
        """Guarantee a process of the control plane its CPU share against all sandboxes of this node.

        Raises:
            SandboxError: The kernel refused.
        """
        assert self._tree is not None
        try:
            self._tree.protect(pid)
        except CgroupError as error:
            raise SandboxError(str(error)) from error

    def _prepare(self) -> None:
        """Take the machine's resources, each with its way back on the stack."""
        with mounts.reported("state directory"):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in self._directory.glob("root-*"):
                left.rmdir()
        self._resources.callback(self._remove_directory)
        self._uids = UidRange(self._config.uid_lock_dir)
        self._resources.callback(self._uids.close)
        try:
            self._tree = open_tree(self._config.owner)
        except CgroupError as error:
            raise SandboxError(str(error)) from error
        self._resources.callback(self._tree.close)
        self._slots = SlotTable(self._directory / "slots", self._tree, self._uids.first)
        with mounts.reported("slots"):
            self._slots.open()
        self._resources.callback(self._slots.close)

    def _remove_directory(self) -> None:
        for left in self._directory.glob("root-*"):
            left.rmdir()
        self._directory.rmdir()

    async def _zygote_of(self, runtime: str) -> Zygote:
        """Return the runtime's running zygote, started now if need be."""
        interpreter = self._interpreters.get(runtime)
        if interpreter is None:
            raise SandboxError(f"this node has no interpreter for {runtime}; it has {', '.join(self._interpreters)}")
        async with self._starting.setdefault(runtime, asyncio.Lock()):
            zygote = self._zygotes.get(runtime)
            if zygote is not None and not zygote.exited.done():
                return zygote
            if zygote is not None:
                log.warning("zygote ended", runtime=runtime)
                await zygote.stop()
            base = self._directory / f"root-{runtime}"
            base.mkdir(exist_ok=True)
            zygote = await Zygote.start(interpreter, base)
            self._zygotes[runtime] = zygote
            self._pools.setdefault(runtime, deque())
            self._want_refill()
            return zygote

    async def _make(self, runtime: str) -> Sandbox:
        zygote = await self._zygote_of(runtime)
        assert self._slots is not None
        slot = self._slots.take()
        try:
            control, process_fd = await fork_into(slot, zygote)
        except BaseException:
            await asyncio.shield(self._slots.give_back(slot))
            raise
        sandbox = Sandbox(runtime, slot, control, process_fd, self._release)
        self._live.add(sandbox)
        await sandbox.wait_until_ready()
        return sandbox

    async def _release(self, sandbox: Sandbox, slot: Slot) -> None:
        self._live.discard(sandbox)
        assert self._slots is not None
        await self._slots.give_back(slot)

    def _want_refill(self) -> None:
        self._filled.clear()
        self._refill_wanted.set()

    async def _refill(self) -> None:
        """Keep the pools full; the only task that does."""
        while True:
            await self._refill_wanted.wait()
            self._filled.clear()
            await asyncio.sleep(REFILL_DELAY_S)
            self._refill_wanted.clear()
            for runtime, pool in list(self._pools.items()):
                try:
                    while not self._is_full(runtime):
                        pool.append(await self._make(runtime))
                except SandboxError as error:
                    log.warning("pool not filled", runtime=runtime, error=str(error))  # the next take tries again
            if not self._refill_wanted.is_set() and all(map(self._is_full, self._pools)):
                self._filled.set()

    def _is_full(self, runtime: str) -> bool:
        return len(self._pools[runtime]) >= self._config.pool_size

    async def _end_sandboxes(self) -> None:
        if self._refiller is not None:
            self._refiller.cancel()
            await asyncio.wait([self._refiller])
        for result in await asyncio.gather(*(sandbox.close() for sandbox in list(self._live)), return_exceptions=True):
            if isinstance(result, BaseException):
                log.error("sandbox not closed", error=str(result))

    async def _stop_zygotes(self) -> None:
        for zygote in self._zygotes.values():
            await zygote.stop()
