"""One agent for each module of end-to-end tests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.agent.harness import Scheduler, World, world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    if os.geteuid() != 0:
        pytest.skip("the agent needs root")
    directory = tmp_path_factory.mktemp("agent")
    directory.chmod(0o755)
    async with world(directory) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def scheduler(agent: World) -> AsyncIterator[Scheduler]:
    async with agent.scheduler() as attached:
        yield attached
