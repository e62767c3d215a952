"""Counts in etcd: one put per partition that changed, and none otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import pytest
from tests.etcd_fixtures import next_events
from tests.etcd_server import EtcdServer

from lambent.errors import StaleEpochError
from lambent_common import keys
from lambent_common.etcd import Changes, Delete, EtcdClient, Put, Snapshot
from lambent_scheduler.concurrency_counts import Figures, figures_of, follow_counts
from lambent_scheduler.core.concurrency import FunctionCounts

_PERIOD_S = 0.01


def _epoch(partition: int) -> int:
    return _EPOCHS[partition]


_EPOCHS: dict[int, int] = {}


@pytest.fixture
async def owned(client: EtcdClient) -> None:
    """Own every partition, each under the revision of its key."""
    for partition in (3, 4, 7, 9):
        _EPOCHS[partition] = await client.put(keys.partition_owner(partition), b"{}")


def _counts(name: str, *, partition: int = 3, in_flight: int = 0, environments: int = 0) -> FunctionCounts:
    return FunctionCounts("0", name, partition, in_flight, 0, environments, 0, 0, 0)


class _Source:
    """Figures that a test changes; counts how often it was asked."""

    def __init__(self, *figures: FunctionCounts) -> None:
        self.figures = list(figures)
        self._asked = 0
        self._turn = asyncio.Condition()

    def __call__(self) -> Iterable[FunctionCounts]:
        self._asked += 1
        self._told = asyncio.ensure_future(self._tell())
        return list(self.figures)

    async def asked_again(self, times: int) -> None:
        goal = self._asked + times
        async with self._turn:
            await self._turn.wait_for(lambda: self._asked >= goal)

    async def _tell(self) -> None:
        async with self._turn:
            self._turn.notify_all()


@pytest.mark.usefixtures("owned")
async def test_what_does_not_change_is_written_once(client: EtcdClient) -> None:
    """An idle cluster costs etcd nothing."""
    source = _Source(_counts("f", in_flight=2, environments=5), _counts("g", partition=9, environments=1))
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        following = group.create_task(follow_counts(client, source, _epoch, period_s=_PERIOD_S))
        await source.asked_again(2)
        revision = (await client.range(keys.CONCURRENCY)).revision
        await source.asked_again(10)
        snapshot = await client.range(keys.CONCURRENCY)
        assert snapshot.revision == revision
        assert {keys.last_part(item.key): json.loads(item.value) for item in snapshot.items} == {
            "3": {
                "functions": [{"account": "0", "functionName": "f", "inFlight": 2, "environments": 5}],
                "ownerEpoch": str(_epoch(3)),
            },
            "9": {
                "functions": [{"account": "0", "functionName": "g", "environments": 1}],
                "ownerEpoch": str(_epoch(9)),
            },
        }
        source.figures[0] = _counts("f", in_flight=3, environments=5)
        await source.asked_again(3)
        changed = await client.range(keys.CONCURRENCY)
        assert changed.revision == revision + 1
        following.cancel()


@pytest.mark.usefixtures("owned")
async def test_what_an_earlier_owner_left_goes(client: EtcdClient) -> None:
    """After a crash nobody is shown calls that ended with it."""
    await client.put(keys.concurrency(7), b"{}")
    source = _Source(_counts("f", in_flight=1))
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        batches = client.watch(keys.CONCURRENCY)
        assert isinstance(await anext(batches), Snapshot)
        following = group.create_task(follow_counts(client, source, _epoch, period_s=_PERIOD_S))
        seen = await next_events(batches, 2)
        source.figures.clear()
        seen += await next_events(batches, 1)
        following.cancel()
    assert [(type(event), keys.last_part(_key(event))) for event in seen] == [
        (Put, "3"),
        (Delete, "7"),
        (Delete, "3"),
    ]


@pytest.mark.usefixtures("owned")
async def test_counts_go_on_after_etcd_was_away(server: EtcdServer, client: EtcdClient) -> None:
    """The scheduler outlives an etcd that is restarted."""
    source = _Source(_counts("f", in_flight=1))
    async with asyncio.timeout(40), asyncio.TaskGroup() as group:
        following = group.create_task(follow_counts(client, source, _epoch, period_s=_PERIOD_S))
        await source.asked_again(2)
        await server.kill()
        source.figures[0] = _counts("f", in_flight=2)
        await source.asked_again(1)
        await server.start()
        batches = client.watch(keys.concurrency(3))
        while b'"inFlight": 2' not in _newest(await anext(batches)):
            pass
        following.cancel()


@pytest.mark.usefixtures("owned")
async def test_who_is_no_longer_the_owner_writes_nothing(client: EtcdClient) -> None:
    """An owner that does not know yet that it lost a partition leaves its successor's figures alone."""
    source = _Source(_counts("f", in_flight=1))
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        batches = client.watch(keys.concurrency(3))
        assert isinstance(await anext(batches), Snapshot)
        following = group.create_task(follow_counts(client, source, _epoch, period_s=_PERIOD_S))
        await next_events(batches, 1)
        await client.put(keys.partition_owner(3), b"another")
        await client.put(keys.concurrency(3), b'{"functions": [], "ownerEpoch": "99"}')
        source.figures[0] = _counts("f", in_flight=2)
        await source.asked_again(5)
        found = await client.get(keys.concurrency(3))
        assert found is not None
        assert json.loads(found.value)["ownerEpoch"] == "99"
        following.cancel()


async def test_what_is_not_owned_is_not_counted(client: EtcdClient) -> None:
    """Between the loss of the lease and the end of the process nothing is written."""

    def nothing(partition: int) -> int:
        raise StaleEpochError(f"{partition} is another's")

    source = _Source(_counts("f", in_flight=1))
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        following = group.create_task(follow_counts(client, source, nothing, period_s=_PERIOD_S))
        await source.asked_again(3)
        assert (await client.range(keys.CONCURRENCY)).items == []
        following.cancel()


async def test_functions_with_nothing_to_count_are_left_out() -> None:
    """The size of a record follows what runs, not what was ever called; the order of the functions does not matter."""
    busy, idle = _counts("b", in_flight=1), _counts("a")
    other = _counts("a", environments=1)

    def one(partition: int) -> int:
        return partition + 100

    assert await figures_of([idle], one) == {}
    assert await figures_of([busy, idle], one) == {3: Figures(103, [("0", "b", 1, 0, 0)])}
    assert await figures_of([busy, other], one) == await figures_of([other, busy], one)
    assert list(await figures_of([busy, _counts("c", partition=4, environments=1)], one)) == [3, 4]


def _newest(batch: Snapshot | Changes) -> bytes:
    items = batch.items if isinstance(batch, Snapshot) else [e.item for e in batch.events if isinstance(e, Put)]
    return items[-1].value if items else b""


def _key(event: Put | Delete) -> str:
    return event.item.key if isinstance(event, Put) else event.key
