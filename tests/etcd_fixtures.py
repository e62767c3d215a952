"""A real etcd and a client for each test, and what its watches tell."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lambent_common.etcd import Changes, Delete, EtcdClient, Put, Snapshot
from tests.etcd_server import EtcdServer, etcd_server


@pytest.fixture
async def server() -> AsyncIterator[EtcdServer]:
    async with etcd_server() as server:
        yield server


@pytest.fixture
async def client(server: EtcdServer) -> AsyncIterator[EtcdClient]:
    async with await server.connect() as client:
        yield client


async def next_events(batches: AsyncIterator[Snapshot | Changes], count: int) -> list[Put | Delete]:
    """Read from a watch until so many changes have come, or more."""
    seen: list[Put | Delete] = []
    while len(seen) < count:
        batch = await anext(batches)
        assert isinstance(batch, Changes)
        seen.extend(batch.events)
    return seen
