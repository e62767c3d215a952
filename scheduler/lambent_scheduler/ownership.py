"""Which partitions of the function space this scheduler owns, and under which epoch.

A partition's owner is a key under the owner's lease; the revision that wrote it is the epoch. Every order to a node
carries the epoch, and nodes refuse a lower one than they have seen, so that an owner that lost its lease without
noticing cannot give orders beside its successor.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

import structlog

from lambent.errors import InternalError, StaleEpochError, UnavailableError
from lambent.v1 import record_pb2
from lambent_common import keys
from lambent_common.etcd import (
    Changes,
    Delete,
    EtcdUnavailableError,
    LeaseKeeper,
    LeaseLostError,
    Snapshot,
    mod_revision_is,
    put_op,
)
from lambent_common.records import decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lambent_common.credentials import Credentials
    from lambent_common.etcd import EtcdClient, KeyValue
    from lambent_common.etcd.model import WatchBatch

log = structlog.get_logger()

_LEASE_TTL_S = 5
"""How long the cluster waits for a scheduler that is silent: nodes use the same."""

_CLAIMS_PER_TXN = 128
"""etcd's limit of comparisons, and of writes, in one transaction (--max-txn-ops)."""


class Ownership:
    """Owns every partition, from `claim` to `close`.

    With one scheduler at a time all 256 partitions have one owner; another instance waits as a standby. `lost` is set
    when etcd says that the lease is gone or that another instance holds a partition: the scheduler must stop. While
    etcd is away nothing is lost, since nobody else can take over either.
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
        self._guard: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.claim()
        except BaseException:
            await self.close()
            raise
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
        """Take a lease and every partition; waits as a standby while another instance's lease lives.

        What an instance of the same id holds is taken at once: it is an earlier life of this one.

        Raises:
            LeaseLostError: The own lease lapsed meanwhile.
            EtcdUnavailableError: etcd does not answer.
        """
        self._lease_id = await self._etcd.grant_lease(_LEASE_TTL_S)
        loop = asyncio.get_running_loop()

        def lost() -> None:
            # The loop may be closed by the time that the thread comes to this.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._lose, "etcd has ended the lease")

        self._keeper = LeaseKeeper(
            self._endpoints, self._credentials, self._lease_id, _LEASE_TTL_S, on_lost=lost
        ).start()
        await self._etcd.put(keys.scheduler(self._record.scheduler_id), encode(self._record), lease_id=self._lease_id)
        for first in range(0, keys.PARTITIONS, _CLAIMS_PER_TXN):
            await self._claim_some(range(first, min(first + _CLAIMS_PER_TXN, keys.PARTITIONS)))
        self._guard = asyncio.create_task(self._watch_own(), name="ownership")
        self._guard.add_done_callback(self._guard_ended)
        log.info("partitions_claimed", scheduler_id=self._record.scheduler_id, epoch=max(self._epochs))

    async def announce(self, grpc_address: str) -> None:
        """Say where this scheduler serves: host:port.

        Raises:
            EtcdUnavailableError: etcd does not answer.
        """
        self._record.grpc_address = grpc_address
        await self._etcd.put(keys.scheduler(self._record.scheduler_id), encode(self._record), lease_id=self._lease_id)

    async def close(self) -> None:
        """Give everything up at once, so that a standby need not wait for the lease to lapse."""
        if self._guard is not None:
            self._guard.cancel()
            await asyncio.gather(self._guard, return_exceptions=True)
        if self._keeper is not None:
            await asyncio.to_thread(self._keeper.close)
        self._epochs = [0] * keys.PARTITIONS
        if self._lease_id and not self.lost.is_set():
            try:
                await self._etcd.revoke_lease(self._lease_id)
            except EtcdUnavailableError as error:
                log.warning("lease_not_revoked", lease_id=self._lease_id, error=error.message)

    async def _claim_some(self, partitions: range) -> None:
        value = encode(record_pb2.PartitionRecord(scheduler_id=self._record.scheduler_id))
        while True:
            snapshot = await self._etcd.range(keys.PARTITION_OWNERS)
            owners = {item.key: item for item in snapshot.items}
            held = {key: owners.get(key) for key in map(keys.partition_owner, partitions)}
            foreign = [item for item in held.values() if item is not None and not self._is_mine(item)]
            if foreign:
                await self._wait_for_release(foreign[0], snapshot.revision)
                continue
            result = await self._etcd.txn(
                compare=[mod_revision_is(key, item.mod_revision if item else 0) for key, item in held.items()],
                success=[put_op(key, value, lease_id=self._lease_id) for key in held],
            )
            if result.succeeded:
                for partition in partitions:
                    self._epochs[partition] = result.revision
                return

    def _is_mine(self, item: KeyValue) -> bool:
        try:
            record = decode(item.value, record_pb2.PartitionRecord, key=item.key)
        except InternalError:
            return False
        return record.scheduler_id == self._record.scheduler_id

    async def _wait_for_release(self, item: KeyValue, revision: int) -> None:
        """Wait until somebody else's partition is let go, or the own lease lapses."""
        log.info("standby", key=item.key, owner=item.value.decode(errors="replace"), revision=revision)
        waits = [asyncio.create_task(self._released(item.key)), asyncio.create_task(self.lost.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            outcomes = await asyncio.gather(*waits, return_exceptions=True)
        if self.lost.is_set():
            raise LeaseLostError(f"the lease of scheduler {self._record.scheduler_id} lapsed while it was a standby")
        if isinstance(outcomes[0], UnavailableError | InternalError):
            raise outcomes[0]

    async def _released(self, key: str) -> None:
        async for batch in self._etcd.watch(key):
            if isinstance(batch, Changes):
                if any(isinstance(event, Delete) and event.key == key for event in batch.events):
                    return
            elif all(item.key != key for item in batch.items):
                return

    async def _watch_own(self) -> None:
        """Lose the ownership when a partition is no longer held under the own lease."""
        async for batch in self._etcd.watch(keys.PARTITION_OWNERS):
            taken = taken_partition(batch, self._lease_id)
            if taken is not None:
                self._lose(f"{taken} is held by another instance")
                return

    def _guard_ended(self, guard: asyncio.Task[None]) -> None:
        """Without the watch nobody would tell that a partition is taken."""
        if not guard.cancelled() and (error := guard.exception()) is not None:
            self._lose(f"the watch of the partitions failed: {error}")

    def _lose(self, reason: str) -> None:
        if not self.lost.is_set():
            log.error("ownership_lost", scheduler_id=self._record.scheduler_id, reason=reason)
        self._epochs = [0] * keys.PARTITIONS
        self.lost.set()


def taken_partition(batch: WatchBatch, lease_id: int) -> str | None:
    """Give the key of a partition that is not, or no longer, held under the lease; None when all are. Pure."""
    if isinstance(batch, Snapshot):
        mine = {item.key for item in batch.items if item.lease_id == lease_id}
        return next((key for key in map(keys.partition_owner, range(keys.PARTITIONS)) if key not in mine), None)
    for event in batch.events:
        if isinstance(event, Delete):
            return event.key
        if event.item.lease_id != lease_id:
            return event.item.key
    return None
