"""When an environment's start is over, as the pool of its runtime sees it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest
from tests.sandbox_harness import OWN_RUNTIME, TIMEOUT_S, Lab

from lambent.v1 import node_pb2
from lambent_node_agent.admission import Admission, Resources
from lambent_node_agent.attachment import Attachment
from lambent_node_agent.code_cache import CodeCache
from lambent_node_agent.environment.model import Lifetime
from lambent_node_agent.logs.budget import IngestBudget
from lambent_node_agent.logs.environment_log import Batch
from lambent_node_agent.node import Node

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Code:
    """A cache that has the one package."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __contains__(self, sha256: str) -> bool:
        return True

    async def acquire(self, sha256: str) -> Path:
        return self.directory

    def release(self, sha256: str) -> None:
        """It stays."""


class Logs:
    """Takes every batch."""

    def offer(self, batch: Batch) -> bool:
        return True


def node_with(world: Lab, code: str, tasks: asyncio.TaskGroup) -> Node:
    """A node whose functions all have this code."""
    return Node(
        node_id="n",
        sandboxes=world.host,
        code=cast("CodeCache", Code(world.write(code))),
        admission=Admission(Resources(1024, 2000, 2048)),
        log_sink=Logs(),
        budget=IngestBudget(),
        lifetime=Lifetime(),
        tasks=tasks,
    )


@pytest.mark.parametrize("code", ["def handler(event, context): return event", "syntax error"])
async def test_a_start_is_over_before_the_first_call(world: Lab, code: str) -> None:
    """Init has ended, well or not, and no call may ever come: what waits for starts must not wait for that."""
    ready = asyncio.Event()

    async def write(events: list[node_pb2.NodeEvent]) -> None:
        if any(event.HasField("environment_ready") for event in events):
            ready.set()

    order = node_pb2.StartEnvironment(
        environment_id="e",
        account="000000000000",
        function_name="f",
        version="1",
        runtime=OWN_RUNTIME,
        handler="handler.handler",
        memory_mib=128,
        ephemeral_storage_mib=512,
        timeout_us=3_000_000,
    )
    supply = world.host._supplies[OWN_RUNTIME]
    before = supply._starts
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        attachment = Attachment("s", write)
        writing = tasks.create_task(attachment.writer.run())
        node = node_with(world, code, tasks)
        node.attach(attachment)
        node.start_environment(order, attachment)
        await ready.wait()
        assert supply._starts == before
        await node.shut_down(5)
        writing.cancel()
