"""Writes the concurrency of each partition's functions to etcd: at most once a second, and only when it changed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

import structlog

from lambent.errors import UnavailableError
from lambent.v1 import record_pb2
from lambent_common import keys
from lambent_common.records import encode

if TYPE_CHECKING:
    from lambent_common.etcd import EtcdClient
    from lambent_scheduler.core.dispatch import Dispatcher

log = structlog.get_logger()

_PERIOD_S = 1.0
"""The write budget of the design: one put per active partition and second, so that etcd carries 100,000 functions."""


async def write_counts(etcd: EtcdClient, dispatcher: Dispatcher) -> None:
    """Write until cancelled."""
    written: dict[int, bytes] = {}
    while True:
        await asyncio.sleep(_PERIOD_S)
        for partition, record in _records(dispatcher).items():
            value = encode(record)
            if written.get(partition) == value:
                continue
            try:
                await etcd.put(keys.concurrency(partition), value)
            except UnavailableError as error:
                log.warning("counts_not_written", partition=partition, error=str(error))
                break  # etcd is away: the counts of this second are lost, the next ones count again.
            written[partition] = value


def _records(dispatcher: Dispatcher) -> dict[int, record_pb2.PartitionConcurrencyRecord]:
    records: defaultdict[int, record_pb2.PartitionConcurrencyRecord] = defaultdict(
        record_pb2.PartitionConcurrencyRecord
    )
    for counts in dispatcher.function_counts():
        records[counts.partition].functions.add(
            account=counts.account,
            function_name=counts.function_name,
            in_flight=counts.in_flight,
            environments=counts.environments,
            throttles=counts.throttles,
        )
    return records
