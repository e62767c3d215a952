"""Partitions have one owner at a time, with an epoch that only grows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import pytest
import structlog
from tests.etcd_server import EtcdServer

from lambent.errors import StaleEpochError
from lambent.v1 import record_pb2
from lambent_common import keys
from lambent_common.etcd import Changes, Delete, EtcdClient, KeyValue, LeaseLostError, Put, Snapshot, TxnResult
from lambent_common.etcd.transaction import Compare, Operation
from lambent_scheduler.ownership import Ownership, taken_partition


@pytest.fixture
async def standbys() -> AsyncIterator[asyncio.Queue[str]]:
    """One entry each time that somebody begins to wait as a standby."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def forward(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if event["event"] == "standby":
            loop.call_soon_threadsafe(queue.put_nowait, event["key"])
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[forward], cache_logger_on_first_use=False)
    yield queue
    structlog.configure(**before)


def _ownership(server: EtcdServer, client: EtcdClient, scheduler_id: str) -> Ownership:
    record = record_pb2.SchedulerRecord(scheduler_id=scheduler_id, grpc_address="127.0.0.1:9400")
    return Ownership(client, server.endpoints, server.credentials, record)


async def test_the_first_scheduler_owns_every_partition(server: EtcdServer, client: EtcdClient) -> None:
    """Every function has an owner once a scheduler runs; the epoch is what etcd says, and a person can read it all."""
    async with asyncio.timeout(20), _ownership(server, client, "a") as ownership:
        owners = {item.key: item for item in (await client.range(keys.PARTITION_OWNERS)).items}
        assert len(owners) == keys.PARTITIONS
        for partition in range(keys.PARTITIONS):
            assert ownership.epoch(partition) == owners[keys.partition_owner(partition)].mod_revision
        record = await client.get(keys.scheduler("a"))
        assert record is not None
        assert json.loads(record.value)["grpcAddress"] == "127.0.0.1:9400"
        assert record.lease_id == owners[keys.partition_owner(0)].lease_id != 0


async def test_a_scheduler_that_stops_leaves_nothing(server: EtcdServer, client: EtcdClient) -> None:
    """A standby need not wait for the lease of one that stopped in order."""
    async with asyncio.timeout(20):
        async with _ownership(server, client, "a") as ownership:
            pass
        assert not (await client.range(keys.PARTITION_OWNERS)).items
        assert not (await client.range(keys.SCHEDULERS)).items
        with pytest.raises(StaleEpochError):
            ownership.epoch(0)


async def test_a_standby_takes_over_with_a_higher_epoch(
    server: EtcdServer, client: EtcdClient, standbys: asyncio.Queue[str]
) -> None:
    """Orders of the old owner are older than every order of the new one."""
    async with asyncio.timeout(30):
        first = _ownership(server, client, "a")
        await first.claim()
        epoch = first.epoch(0)
        second = _ownership(server, client, "b")
        claiming = asyncio.create_task(second.claim())
        await standbys.get()
        assert not claiming.done()
        await first.close()
        await claiming
        assert second.epoch(0) > epoch
        with pytest.raises(StaleEpochError):
            first.epoch(0)
        await second.close()


async def test_a_standby_takes_over_when_the_owner_died(
    server: EtcdServer, client: EtcdClient, standbys: asyncio.Queue[str]
) -> None:
    """Nobody has to be awake at night: the dead owner's lease lapses."""
    async with asyncio.timeout(30):
        dead = await client.grant_lease(2)
        value = b'{"schedulerId":"a"}'
        await client.put(keys.partition_owner(200), value, lease_id=dead)
        async with _ownership(server, client, "b") as second:
            assert standbys.get_nowait() == keys.partition_owner(200)
            assert second.epoch(200) > 0


async def test_of_two_that_claim_in_the_same_moment_one_takes_everything(server: EtcdServer) -> None:
    """They do not end with half of the functions each, nor both with the same ones."""
    barrier = asyncio.Barrier(2)
    async with (
        asyncio.timeout(30),
        await _Together.connect(server.endpoints, server.credentials) as left,
        await _Together.connect(server.endpoints, server.credentials) as right,
    ):
        left.barrier = right.barrier = barrier
        waiting = {"b": _ownership(server, left, "b"), "c": _ownership(server, right, "c")}
        claims = {asyncio.create_task(one.claim(), name=name) for name, one in waiting.items()}
        done, pending = await asyncio.wait(claims, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(pending)) == (1, 1)
        winner = waiting.pop(done.pop().get_name())
        owners = {item.value for item in (await left.range(keys.PARTITION_OWNERS)).items}
        assert len(owners) == 1
        (loser,) = waiting.values()
        with pytest.raises(StaleEpochError):
            loser.epoch(0)
        await winner.close()
        await pending.pop()
        assert all(loser.epoch(partition) for partition in range(keys.PARTITIONS))
        await loser.close()


class _Together(EtcdClient):
    """A client whose first transaction waits until another client is about to send its own: both have read by then."""

    barrier: asyncio.Barrier | None = None

    async def txn(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> TxnResult:
        barrier, self.barrier = self.barrier, None
        if barrier is not None:
            await barrier.wait()
        return await super().txn(compare, success, failure)


async def test_a_restarted_scheduler_takes_its_own_partitions_at_once(server: EtcdServer, client: EtcdClient) -> None:
    """A crash costs the time of a restart, not of a lease; an earlier life that still runs learns that it is over."""
    async with asyncio.timeout(20):
        crashed = _ownership(server, client, "a")
        await crashed.claim()
        epoch = crashed.epoch(17)
        async with _ownership(server, client, "a") as restarted:
            assert restarted.epoch(17) > epoch
            await crashed.lost.wait()
            with pytest.raises(StaleEpochError):
                crashed.epoch(17)
            await crashed.close()
            assert not restarted.lost.is_set()
            assert len((await client.range(keys.PARTITION_OWNERS)).items) == keys.PARTITIONS


async def test_a_lost_lease_is_told(server: EtcdServer, client: EtcdClient) -> None:
    """A scheduler that others have given up stops giving orders."""
    async with asyncio.timeout(20), _ownership(server, client, "a") as ownership:
        record = await client.get(keys.scheduler("a"))
        assert record is not None
        await client.revoke_lease(record.lease_id)
        await ownership.lost.wait()
        with pytest.raises(StaleEpochError):
            ownership.epoch(0)


async def test_a_restart_of_etcd_costs_nobody_the_ownership(server: EtcdServer, client: EtcdClient) -> None:
    """Running functions keep serving while etcd is away, and after it."""
    async with asyncio.timeout(30), _ownership(server, client, "a") as ownership:
        epoch = ownership.epoch(3)
        await server.kill()
        await server.start()
        assert len((await client.range(keys.PARTITION_OWNERS)).items) == keys.PARTITIONS
        assert ownership.epoch(3) == epoch
        assert not ownership.lost.is_set()


async def test_a_standby_whose_own_lease_ends_stops_waiting(
    server: EtcdServer, client: EtcdClient, standbys: asyncio.Queue[str]
) -> None:
    """It could take nothing any more; the daemon ends and is started again."""
    async with asyncio.timeout(30), _ownership(server, client, "a"):
        second = _ownership(server, client, "b")
        claiming = asyncio.create_task(second.claim())
        await standbys.get()
        record = await client.get(keys.scheduler("b"))
        assert record is not None
        await client.revoke_lease(record.lease_id)
        with pytest.raises(LeaseLostError):
            await claiming
        await second.close()


def test_a_partition_under_another_lease_is_taken() -> None:
    """Each way of losing one: gone from a snapshot, overwritten, deleted."""
    items = [_owner(partition, lease_id=7) for partition in range(keys.PARTITIONS)]
    assert taken_partition(Snapshot(1, items), 7) is None
    assert taken_partition(Snapshot(1, items[1:]), 7) == keys.partition_owner(0)
    assert taken_partition(Snapshot(1, [*items[:-1], _owner(255, lease_id=8)]), 7) == keys.partition_owner(255)
    assert taken_partition(Changes(2, [Put(_owner(4, lease_id=7))]), 7) is None
    assert taken_partition(Changes(2, [Put(_owner(4, lease_id=8))]), 7) == keys.partition_owner(4)
    assert taken_partition(Changes(2, [Delete(keys.partition_owner(9), 2)]), 7) == keys.partition_owner(9)


def _owner(partition: int, *, lease_id: int) -> KeyValue:
    return KeyValue(keys.partition_owner(partition), b"{}", 1, 1, lease_id)
