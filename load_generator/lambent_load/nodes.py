"""What the nodes hold while a load runs, as the cluster lists them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambent.errors import LambentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lambent.client import AsyncClient

_SAMPLE_S = 1.0
"""Between two looks: one listing of nodes a second is nothing beside the load."""


@dataclass(frozen=True, slots=True)
class NodeSample:
    """All nodes together at one moment.

    Attributes:
        time_s: Since the run began.
        nodes: Nodes alive.
        environments: Environments alive, of all functions.
        memory_reserved_mib: Reserved by environments, of `memory_mib`.
        cpu_reserved_millis: Reserved by environments, of `cpu_millis`.
    """

    time_s: float
    nodes: int
    environments: int
    memory_reserved_mib: int
    memory_mib: int
    cpu_reserved_millis: int
    cpu_millis: int


async def watch_nodes(client: AsyncClient, start: float, on_sample: Callable[[NodeSample], None]) -> None:
    """Sample the nodes every second until cancelled; a sample that fails is left out.

    Args:
        client: Of the cluster.
        start: When the run began, of `time.monotonic`.
        on_sample: Gets each sample.
    """
    while True:
        with contextlib.suppress(LambentError):  # The calls show that the cluster is away; the series has a gap.
            on_sample(await _sample(client, start))
        await asyncio.sleep(_SAMPLE_S)


async def _sample(client: AsyncClient, start: float) -> NodeSample:
    time_s = time.monotonic() - start
    nodes = [node async for node in client.nodes()]
    return NodeSample(
        time_s=time_s,
        nodes=len(nodes),
        environments=sum(node.environments for node in nodes),
        memory_reserved_mib=sum(node.reserved.get("memory_mib", 0) for node in nodes),
        memory_mib=sum(node.capacity.get("memory_mib", 0) for node in nodes),
        cpu_reserved_millis=sum(node.reserved.get("cpu_millis", 0) for node in nodes),
        cpu_millis=sum(node.capacity.get("cpu_millis", 0) for node in nodes),
    )
