"""One world, and one agent's side in it, for each module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Network

import pytest
import pytest_asyncio
from tests.network.functions import OPERATORS_DENIED
from tests.network.world import World, make_world, served
from tests.sandbox_fixtures import _make_place, mount_namespace, place
from tests.sandbox_harness import Lab, lab

from lambent_node_agent.network import NetworkSettings

__all__ = ["mount_namespace", "place"]


@pytest.fixture(scope="module")
def namespaces(mount_namespace: None) -> Iterator[World]:
    """The namespaces, with this thread in the host's."""
    with make_world() as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(namespaces: World) -> AsyncIterator[World]:
    """The world with its servers."""
    async with served(namespaces) as world:
        yield world


@pytest.fixture
def world(servers: World) -> World:
    """The same, with nobody seen yet."""
    servers.seen.clear()
    return servers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(
    servers: World, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Lab]:
    """Sandboxes on the world's host."""
    settings = NetworkSettings(denied=(IPv4Network(OPERATORS_DENIED),))
    name = request.module.__name__.rpartition(".")[2].replace("_", "-")
    async with lab(_make_place(tmp_path_factory), name, network=settings) as made:
        yield made
