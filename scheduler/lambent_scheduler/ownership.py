"""Which partitions of the function space this scheduler owns, and under which epoch.

A partition's owner is a key under the owner's lease; the revision that wrote it is the epoch. Every order to a node
carries the epoch, and nodes refuse a lower one than they have seen, so that an owner that lost its lease without
noticing cannot give orders beside its successor.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

import structlog

from lambent.errors import StaleEpochError
from lambent.v1 import record_pb2
from lambent_common import keys
from lambent_common.etcd import Changes, Delete, LeaseKeeper, mod_revision_is, put_op
from lambent_common.records import decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lambent_common.credentials import Credentials
    from lambent_common.etcd import EtcdClient, KeyValue

log = structlog.get_logger()

_LEASE_TTL_S = 5
"""How long the cluster waits for a scheduler that is silent: nodes use the same."""

_CLAIMS_PER_TXN = 60
"""Keeps a transaction well under etcd's limit of 128 operations."""


class Ownership:
    """Owns every partition, from `claim` to `close`. `lost` is set when the lease has lapsed: the scheduler must stop.

    With one scheduler at a time all 256 partitions have one owner; another instance waits as a standby.
    """

    def __init__(
        self, etcd: EtcdClient, endpoints: Sequence[str], credentials: Credentials, record: record_pb2.SchedulerRecord
    ) -> None:
        self.lost = asyncio.Event()
        self._etcd = etcd
        self._endpoints = endpoints
        self._credentials = credentials
        self._record = record
        self._epochs: list[int] = [0] * keys.PARTITIONS
        self._lease_id = 0
        self._keeper: LeaseKeeper | None = None

    async def __aenter__(self) -> Self:
        await self.claim()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def epoch(self, partition: int) -> int:
        """Give the epoch of a partition.

        Raises:
            StaleEpochError: This scheduler does not own it.
        """
        epoch = self._epochs[partition]
        if not epoch:
            raise StaleEpochError(f"partition {partition} has another owner than {self._record.scheduler_id}")
        return epoch

    async def claim(self) -> None:
        """Take a lease and every partition; waits as a standby while another instance's lease lives."""
        self._lease_id = await self._etcd.grant_lease(_LEASE_TTL_S)
        loop = asyncio.get_running_loop()

        def lost() -> None:
            loop.call_soon_threadsafe(self._lose)

        self._keeper = LeaseKeeper(
            self._endpoints,
            self._credentials,
            self._lease_id,
            _LEASE_TTL_S,
            on_lost=lost,
        ).start()
        await self._etcd.put(keys.scheduler(self._record.scheduler_id), encode(self._record), lease_id=self._lease_id)
        for first in range(0, keys.PARTITIONS, _CLAIMS_PER_TXN):
            await self._claim_some(range(first, min(first + _CLAIMS_PER_TXN, keys.PARTITIONS)))
        log.info("partitions_claimed", scheduler_id=self._record.scheduler_id, epoch=max(self._epochs))

    async def close(self) -> None:
        """Give everything up at once, so that a standby need not wait for the lease to lapse."""
        if self._keeper is not None:
            await asyncio.to_thread(self._keeper.close)
        if self._lease_id and not self.lost.is_set():
            await self._etcd.revoke_lease(self._lease_id)
        self._epochs = [0] * keys.PARTITIONS

    async def _claim_some(self, partitions: range) -> None:
        value = encode(record_pb2.PartitionRecord(scheduler_id=self._record.scheduler_id))
        while True:
            snapshot = await self._etcd.range(keys.PARTITION_OWNERS)
            owners = {keys.last_part(item.key): item for item in snapshot.items}
            held = {partition: owners.get(str(partition)) for partition in partitions}
            foreign = [item for item in held.values() if item is not None and not self._is_mine(item)]
            if foreign:
                await self._wait_for_release(foreign[0])
                continue
            result = await self._etcd.txn(
                compare=[
                    mod_revision_is(keys.partition_owner(partition), item.mod_revision if item else 0)
                    for partition, item in held.items()
                ],
                success=[
                    put_op(keys.partition_owner(partition), value, lease_id=self._lease_id) for partition in partitions
                ],
            )
            if result.succeeded:
                for partition in partitions:
                    self._epochs[partition] = result.revision
                return

    def _is_mine(self, item: KeyValue) -> bool:
        # An earlier life of this instance: it is gone, or a node will refuse its lower epoch.
        record = decode(item.value, record_pb2.PartitionRecord, key=item.key)
        return record.scheduler_id == self._record.scheduler_id

    async def _wait_for_release(self, item: KeyValue) -> None:
        log.info("standby", key=item.key, waiting_for=item.value.decode(errors="replace"))
        async for batch in self._etcd.watch(item.key):
            if isinstance(batch, Changes):
                if any(isinstance(event, Delete) for event in batch.events):
                    return
            elif not batch.items:
                return

    def _lose(self) -> None:
        self._epochs = [0] * keys.PARTITIONS
        self.lost.set()
