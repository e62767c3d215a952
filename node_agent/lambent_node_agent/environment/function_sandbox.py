"""The sandbox of one execution environment, from the order to make it until nothing of it is left."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from lambent_node_agent.admission import cpu_millis_of
from lambent_node_agent.cgroups import CgroupError
from lambent_node_agent.environment.network_choice import network_choice
from lambent_node_agent.sandbox import Sandbox, SandboxError, SandboxHost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lambent.v1 import node_pb2
    from lambent_node_agent.code_cache import CodeCache
    from lambent_node_agent.sandbox import RuntimeProcess

log = structlog.get_logger(__name__)

# The sandbox gives up after 5 s; this is for one that hangs elsewhere.
_CLOSE_TIMEOUT_S: Final = 15.0


class FunctionSandbox:
    """A sandbox with its function's code and limits, and the hold on that code in the cache.

    Args:
        order: What the environment is made from.
        sandboxes: Makes sandboxes.
        code: Gives code.
        on_exit: Called when the sandbox's first process ends and nobody has asked for it, but not when a want of memory
            has ended all processes together: of that the runtime's exit status tells.

    Attributes:
        fetch_code_us: How long the code took to come into the cache, in microseconds; 0 when it was there.
    """

    def __init__(
        self, order: node_pb2.StartEnvironment, sandboxes: SandboxHost, code: CodeCache, on_exit: Callable[[], None]
    ) -> None:
        self._order = order
        self._sandboxes = sandboxes
        self._code = code
        self._on_exit = on_exit
        self.fetch_code_us = 0
        self._code_dir: Path | None = None
        self._sandbox: Sandbox | None = None

    @property
    def has_code(self) -> bool:
        """True once the code is in the node's cache."""
        return self._code_dir is not None

    async def make(self) -> None:
        """Fetch the code and make the sandbox.

        Raises:
            SandboxError: The kernel refused.
            LambentError, OSError: The code cannot be had.
        """
        cached, began = self._order.code_sha256 in self._code, time.monotonic()
        self._code_dir = await self._code.acquire(self._order.code_sha256)
        if not cached:
            self.fetch_code_us = round((time.monotonic() - began) * 1e6)
        await self._specialise(self._code_dir)

    async def replace(self) -> None:
        """Make another sandbox in the place of this one, with an empty /tmp.

        Raises:
            SandboxError: The kernel refused, or a process does not die.
        """
        assert self._code_dir is not None
        await self._end()
        await self._specialise(self._code_dir)
        log.info("sandbox_replaced", environment_id=self._order.environment_id)

    async def start_runtime(self, variables: Mapping[str, str]) -> RuntimeProcess:
        """Start a runtime process. Raises as `Sandbox.start_runtime`."""
        assert self._sandbox is not None
        return await self._sandbox.start_runtime(self._order.handler, variables)

    def end_start(self) -> None:
        """Say that init is over. See `Sandbox.end_start`."""
        if self._sandbox is not None:
            self._sandbox.end_start()

    async def kill_runtime(self) -> None:
        """Kill every process but the first. Raises as `Sandbox.kill_runtime`."""
        assert self._sandbox is not None
        await self._sandbox.kill_runtime()

    async def freeze(self) -> None:
        """Stop every process. Raises as `Sandbox.freeze`."""
        assert self._sandbox is not None
        await self._sandbox.freeze()

    async def thaw(self) -> None:
        """Let them run again. Raises as `Sandbox.thaw`."""
        assert self._sandbox is not None
        await self._sandbox.thaw()

    def reclaim_memory(self, limit_bytes: int) -> int:
        """Take back memory that can be read again; see `Sandbox.reclaim_memory`. 0 when there is no sandbox."""
        sandbox = self._sandbox
        if sandbox is None:
            return 0
        try:
            return sandbox.reclaim_memory(limit_bytes)
        except (CgroupError, OSError) as error:
            log.warning("memory_not_reclaimed", environment_id=self._order.environment_id, error=str(error))
            return 0

    def limit_cpu(self) -> None:
        """Put the CPU quota into force. Raises as `Sandbox.limit_cpu`."""
        assert self._sandbox is not None
        self._sandbox.limit_cpu()

    def peak_memory_mib(self) -> int:
        """Return the most memory that the sandbox has used at once; 0 when there is none."""
        if self._sandbox is None:
            return 0
        try:
            return self._sandbox.peak_memory_mib()
        except CgroupError as error:
            log.warning("peak_memory_unknown", environment_id=self._order.environment_id, error=str(error))
            return 0

    async def close(self) -> None:
        """End the sandbox and let go of the code.

        Raises:
            SandboxError: A process of it does not die; both are still held. `close_once_ended` is due.
        """
        await self._end()
        if self._code_dir is not None:
            self._code_dir = None
            self._code.release(self._order.code_sha256)

    async def close_once_ended(self) -> None:
        """Close the sandbox when the last of its processes has ended, however long that takes.

        Raises:
            SandboxError: What it had cannot be given back all the same.
        """
        try:
            await self.close()
        except SandboxError:
            assert self._sandbox is not None
            await asyncio.wait([self._sandbox.exited])
            await self.close()

    async def _specialise(self, code_dir: Path) -> None:
        order = self._order
        self._sandbox = await self._sandboxes.create(order.runtime)
        self._sandbox.exited.add_done_callback(self._exited)
        await self._sandbox.specialise(
            code_dir,
            order.memory_mib,
            cpu_millis_of(order.memory_mib),
            order.ephemeral_storage_mib,
            network_choice(order),
        )

    async def _end(self) -> None:
        if self._sandbox is None:
            return
        self._sandbox.exited.remove_done_callback(self._exited)
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._sandbox.close()
        except TimeoutError as error:
            raise SandboxError(f"the sandbox is not closed after {_CLOSE_TIMEOUT_S:g} s") from error
        self._sandbox = None

    def _exited(self, _exited: asyncio.Future[None]) -> None:
        assert self._sandbox is not None
        if not self._sandbox.out_of_memory:
            self._on_exit()
