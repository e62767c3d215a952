"""What one runtime has ready for cold starts: its zygote and its pool of blank sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from typing import TYPE_CHECKING

import structlog

from . import mounts
from .demand import Demand
from .errors import SandboxError, SlotLostError
from .sandbox import KILL_TIMEOUT_S, SETUP_TIMEOUT_S, Sandbox, fork_into
from .zygote_client import FORK_TIMEOUT_S, Zygote

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from pathlib import Path
    from typing import Any

    from .demand import Bounds
    from .interpreters import Interpreter
    from .slots import Slot, SlotTable

log = structlog.get_logger(__name__)

REFILL_DELAY_S = 0.03
"""A new environment's first milliseconds belong to it: the refill would compete for the CPU with the start it
follows."""
MAX_START_S = 1.0
"""A start that takes longer runs code of its function's, and shares the CPU with the refill as with other functions."""
REFILLS_AT_ONCE = os.cpu_count() or 1
"""Sandboxes made for the pool at the same time: the zygote forks one by one, but each sets itself up on its own CPU."""
MANY_STARTS = max(1, REFILLS_AT_ONCE // 2)
"""Starts at the same time that leave no CPU for the refill: each keeps its sandbox busy, and the daemons."""
SHRINK_INTERVAL_S = 5.0
"""How often a pool that is larger than its least is looked at; its size halves in six times that."""
LOSS_DELAY_S = 1.0
"""Before what died is replaced, when nobody has asked for it yet: what dies again and again must not take a CPU."""
MAX_RETRY_S = 60.0
"""What failed is tried again after `LOSS_DELAY_S`, then after twice as long each time, up to this."""
_MAKING_MEMORY = 8  # how many of the last sandboxes tell how long one takes
# A fork that nobody waits for any more: it is made, or fails, then its sandbox is closed.
_END_TIMEOUT_S = FORK_TIMEOUT_S + SETUP_TIMEOUT_S + KILL_TIMEOUT_S


class Supply:
    """Zygote and pool of one runtime, both kept by a task in the background.

    Args:
        interpreter: What the zygote runs.
        base: Directory for the zygote's root; made when absent.
        slots: Where sandboxes get their slots.
        filters: What they install against system calls, in order.
        user_namespace: Give each a user namespace of its own.
        confined: This process is root in a user namespace alone.
        merge_memory: Let the kernel merge equal pages of all of them.
        bounds: Of the blank sandboxes kept ready, from the first one that is asked for on.
        turn: Supplies that share it start their zygotes in the background one after the other.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        base: Path,
        slots: SlotTable,
        *,
        filters: Sequence[bytes],
        user_namespace: bool,
        confined: bool,
        merge_memory: bool,
        bounds: Bounds,
        turn: asyncio.Lock,
    ) -> None:
        self._interpreter = interpreter
        self._base = base
        self._slots = slots
        self._filters = filters
        self._user_namespace = user_namespace
        self._confined = confined
        self._merge_memory = merge_memory
        self._bounds = bounds
        self._demand = Demand()
        self._making_s = 0.0
        self._turn = turn
        self._zygote: Zygote | None = None
        self._starting = asyncio.Lock()
        self._pool: deque[Sandbox] = deque()
        self._in_use = False
        self._live: set[Sandbox] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._full = asyncio.Event()
        self._delay_s = REFILL_DELAY_S
        self._refilling = 0
        self._starts = 0  # in progress
        self._last_start_over_s = 0.0
        self._few_starts = asyncio.Event()
        self._few_starts.set()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def ready_made(self) -> int:
        """How many blank sandboxes wait."""
        return len(self._pool)

    async def wait_until_full(self) -> None:
        """Wait until the zygote runs and the pool has the size that it is to have."""
        await self._full.wait()

    async def use(self) -> None:
        """Start the zygote now, and fill the pool in the background.

        Raises:
            SandboxError: The zygote did not come up.
        """
        self._in_use = True
        await self._running_zygote()
        self._want()

    def keep(self) -> None:
        """Start the task that keeps the zygote running and the pool full."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        self._want()

    async def take(self) -> Sandbox:
        """Return a ready-made sandbox, or one forked now.

        Raises:
            SandboxError: A step failed.
        """
        self._in_use = True
        self._demand = self._demand.started(self._now(), self._making_s)
        self._starts += 1
        if self._starts >= MANY_STARTS:
            self._few_starts.clear()
        try:
            sandbox = self._take_ready_made() or await self._make()
        except BaseException:
            self._start_over()
            raise
        else:
            sandbox.started.add_done_callback(self._start_over)
            return sandbox
        finally:
            self._want()

    async def close(self) -> None:
        """End the task and every sandbox; the zygote goes on."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=_END_TIMEOUT_S)
        if self._background:
            await asyncio.wait(self._background, timeout=_END_TIMEOUT_S)
        for result in await asyncio.gather(*(sandbox.close() for sandbox in list(self._live)), return_exceptions=True):
            if isinstance(result, BaseException):
                log.error("sandbox_not_closed", runtime=self._interpreter.runtime, error=str(result))

    async def stop_zygote(self) -> None:
        """End the zygote, with whatever sandboxes it still has."""
        if self._zygote is not None:
            await self._zygote.stop()

    def _take_ready_made(self) -> Sandbox | None:
        while self._pool:
            sandbox = self._pool.popleft()
            sandbox.exited.remove_done_callback(self._lost)
            if sandbox.sound:
                return sandbox
            self._spawn(sandbox.close())
        return None

    def _start_over(self, _started: asyncio.Future[None] | None = None) -> None:
        self._starts -= 1
        self._last_start_over_s = self._now()
        if self._starts < MANY_STARTS:
            self._few_starts.set()

    async def _make(self) -> Sandbox:
        zygote = await self._running_zygote()
        forking = asyncio.get_running_loop().create_task(self._fork(zygote))
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:
            # The zygote has the order: the process will come, with this UID and these groups, whoever waits for it.
            self._spawn(_close_when_made(forking))
            raise

    async def _fork(self, zygote: Zygote) -> Sandbox:
        slot = await self._slots.take()
        try:
            control, process_fd = await fork_into(slot, zygote)
        except SlotLostError:
            raise
        except BaseException:
            await self._slots.give_back(slot)
            raise
        sandbox = Sandbox(self._interpreter.runtime, slot, control, process_fd, self._release)
        self._live.add(sandbox)
        await sandbox.wait_until_ready()
        return sandbox

    async def _release(self, sandbox: Sandbox, slot: Slot) -> None:
        self._live.discard(sandbox)
        await self._slots.give_back(slot)

    def _runs(self) -> bool:
        return self._zygote is not None and not self._zygote.exited.done()

    async def _running_zygote(self) -> Zygote:
        """Return the running zygote, started now if need be."""
        async with self._starting:
            if self._zygote is not None and not self._zygote.exited.done():
                return self._zygote
            if self._zygote is not None:
                log.warning("zygote_ended", runtime=self._interpreter.runtime)
                await self._zygote.stop()
            with mounts.reported("directory of a zygote's root"):
                self._base.mkdir(exist_ok=True)
            self._zygote = await Zygote.start(
                self._interpreter,
                self._base,
                self._filters,
                user_namespace=self._user_namespace,
                confined=self._confined,
                merge_memory=self._merge_memory,
            )
            self._zygote.exited.add_done_callback(self._zygote_ended)
            return self._zygote

    # What the task in the background does

    def _want(self) -> None:
        self._full.clear()
        self._wanted.set()

    def _lost(self, _exited: asyncio.Future[None]) -> None:
        """The zygote or a sandbox of the pool has ended."""
        self._delay_s = LOSS_DELAY_S
        self._want()

    def _zygote_ended(self, exited: asyncio.Future[None]) -> None:
        self._lost(exited)
        for sandbox in self._live:
            # It was killed with the zygote. On version 1 it dies of it when it thaws, and not with the next call.
            self._spawn(sandbox.thaw())

    async def _keep(self) -> None:
        retry_s: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(retry_s or self._shrink_interval_s()):
                    await self._wanted.wait()
            if self._wanted.is_set():
                await asyncio.sleep(self._delay_s)
            self._wanted.clear()
            self._delay_s = REFILL_DELAY_S
            try:
                await self._replenish()
            except Exception as error:  # noqa: BLE001 - nobody watches this task, and it must not end
                retry_s = min(2 * retry_s, MAX_RETRY_S) if retry_s is not None else LOSS_DELAY_S
                log.warning("runtime_not_ready", runtime=self._interpreter.runtime, error=repr(error), retry_s=retry_s)
            else:
                retry_s = None
                if not self._wanted.is_set():
                    self._full.set()

    async def _replenish(self) -> None:
        for sandbox in [sandbox for sandbox in self._pool if not sandbox.sound]:
            sandbox.exited.remove_done_callback(self._lost)
            self._pool.remove(sandbox)
            self._spawn(sandbox.close())
        if not self._runs():
            async with self._turn:
                await self._running_zygote()
        while len(self._pool) > self._size():
            sandbox = self._pool.pop()
            sandbox.exited.remove_done_callback(self._lost)
            self._spawn(sandbox.close())
        # No TaskGroup: up to CPython 3.12 it leaves the task counted as cancelled after a failure, and the next timeout
        # of the task would end it.
        refills = (self._refill() for _ in range(REFILLS_AT_ONCE))
        for failure in await asyncio.gather(*refills, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _refill(self) -> None:
        """Make sandboxes for the pool, one after the other, until it and what others make are enough."""
        while True:
            await self._give_way()
            if len(self._pool) + self._refilling >= self._size():
                return
            self._refilling += 1
            start = self._now()
            try:
                sandbox = await self._make()
            finally:
                self._refilling -= 1
            self._making_s += (self._now() - start - self._making_s) / _MAKING_MEMORY
            sandbox.exited.add_done_callback(self._lost)
            self._pool.append(sandbox)

    async def _give_way(self) -> None:
        """Wait while starts need the CPU more than the pool does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._demand.at + MAX_START_S):
                await self._few_starts.wait()
        if self._few_starts.is_set():
            await asyncio.sleep(max(0.0, self._last_start_over_s + REFILL_DELAY_S - self._now()))

    def _size(self) -> int:
        """How many blank sandboxes are to wait now."""
        return self._demand.size(self._now(), self._bounds) if self._in_use else 0

    def _shrink_interval_s(self) -> float | None:
        return SHRINK_INTERVAL_S if len(self._pool) > self._bounds.least else None

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _spawn(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._report(ending))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _report(self, ending: Coroutine[Any, Any, None]) -> None:
        try:
            await ending
        except Exception:
            log.exception("sandbox_not_closed", runtime=self._interpreter.runtime)


async def _close_when_made(forking: asyncio.Task[Sandbox]) -> None:
    try:
        sandbox = await forking
    except SandboxError:
        return  # it never came, and nobody waits for it
    await sandbox.close()
