"""A server and a client for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.etcd_server import EtcdServer, etcd_server

from lambent_common.etcd import EtcdClient


@pytest.fixture
async def server() -> AsyncIterator[EtcdServer]:
    async with etcd_server() as server:
        yield server


@pytest.fixture
async def client(server: EtcdServer) -> AsyncIterator[EtcdClient]:
    async with await server.connect() as client:
        yield client
