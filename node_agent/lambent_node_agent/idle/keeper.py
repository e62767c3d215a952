"""Freezes environments that stay idle, and has the kernel take memory back from them when the node is short of it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from lambent_common.machine import MEBIBYTE, available_memory, read_machine
from lambent_node_agent.environment.model import Phase
from lambent_node_agent.idle.choice import is_short, to_freeze, to_reclaim_from
from lambent_node_agent.idle.pressure import memory_pressure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lambent_node_agent.environment.model import Environment
    from lambent_node_agent.node import Node

log = structlog.get_logger(__name__)

# How late an environment may be frozen. A look at 1,000 environments takes 0.2 ms.
_SWEEP_S: Final = 0.5
# What is asked for at a time: enough to be worth a system call, and done within some 10 ms.
_STEP_BYTES: Final = 64 * MEBIBYTE


class IdleKeeper:
    """Looks after a node's idle environments. What is used is none of its business, and pays nothing for it.

    Args:
        node: Whose environments.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._exhausted: dict[str, float] = {}

    async def run(self) -> None:
        """Do so until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._node.sandboxes.can_freeze:
                tasks.create_task(self._freeze())
                tasks.create_task(self._relieve())

    async def _freeze(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            for environment_id in to_freeze(self._states(), time.monotonic()):
                self._node.environments[environment_id].rest()

    async def _relieve(self) -> None:
        total_bytes = read_machine().memory_mib * MEBIBYTE
        with memory_pressure() as pressure:
            while True:
                await pressure.wait()
                before = self._node.reclaimed_bytes
                for environment_id in to_reclaim_from(self._states(), self._exhausted):
                    while is_short(available_memory(), total_bytes) and await self._reclaim(environment_id):
                        continue
                if (reclaimed_bytes := self._node.reclaimed_bytes - before) > 0:
                    available_mib = available_memory() // MEBIBYTE
                    log.info("memory_reclaimed", reclaimed_bytes=reclaimed_bytes, available_mib=available_mib)
                known = self._node.environments
                self._exhausted = {key: since for key, since in self._exhausted.items() if key in known}

    async def _reclaim(self, environment_id: str) -> bool:
        """Take a step's worth from a frozen environment; tell whether it may have more.

        A call may come for it meanwhile: it is thawed all the same, and reads again what it needs.
        """
        environment = self._node.environments.get(environment_id)
        if environment is None or environment.state.phase is not Phase.FROZEN:
            return False
        idle_since = environment.state.idle_since
        took_bytes = await asyncio.to_thread(environment.reclaim_memory, _STEP_BYTES)
        self._node.reclaimed_bytes += took_bytes
        if took_bytes >= _STEP_BYTES // 2:
            return True
        self._exhausted[environment_id] = idle_since
        return False

    def _states(self) -> Iterator[tuple[str, Environment]]:
        return ((environment_id, shell.state) for environment_id, shell in self._node.environments.items())
