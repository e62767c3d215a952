"""Partitions have one owner at a time, with an epoch that only grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.etcd_server import EtcdServer, etcd_server

from lambent.errors import StaleEpochError
from lambent.v1 import record_pb2
from lambent_common import keys
from lambent_common.etcd import EtcdClient
from lambent_scheduler.ownership import Ownership


@pytest.fixture
async def server() -> AsyncIterator[EtcdServer]:
    async with etcd_server() as server:
        yield server


@pytest.fixture
async def client(server: EtcdServer) -> AsyncIterator[EtcdClient]:
    async with await server.connect() as client:
        yield client


def _ownership(server: EtcdServer, client: EtcdClient, scheduler_id: str) -> Ownership:
    record = record_pb2.SchedulerRecord(scheduler_id=scheduler_id)
    return Ownership(client, server.endpoints, server.credentials, record)


async def test_the_first_scheduler_owns_every_partition(server: EtcdServer, client: EtcdClient) -> None:
    """Every function has an owner once a scheduler runs."""
    async with asyncio.timeout(20), _ownership(server, client, "a") as ownership:
        assert all(ownership.epoch(partition) > 0 for partition in range(keys.PARTITIONS))
        assert len((await client.range(keys.PARTITION_OWNERS)).items) == keys.PARTITIONS


async def test_a_standby_takes_over_with_a_higher_epoch(server: EtcdServer, client: EtcdClient) -> None:
    """Orders of the old owner are older than every order of the new one."""
    async with asyncio.timeout(30):
        first = _ownership(server, client, "a")
        await first.claim()
        epoch = first.epoch(0)
        second = _ownership(server, client, "b")
        claiming = asyncio.create_task(second.claim())
        done, _ = await asyncio.wait([claiming], timeout=0.5)
        assert not done
        await first.close()
        await claiming
        assert second.epoch(0) > epoch
        with pytest.raises(StaleEpochError):
            first.epoch(0)
        await second.close()


async def test_a_restarted_scheduler_takes_its_own_partitions_at_once(server: EtcdServer, client: EtcdClient) -> None:
    """A crash costs the time of a restart, not of a lease."""
    crashed = _ownership(server, client, "a")
    await crashed.claim()
    restarted = _ownership(server, client, "a")
    async with asyncio.timeout(4):
        await restarted.claim()
    assert restarted.epoch(17) > crashed.epoch(17)
    await restarted.close()
    await crashed.close()
