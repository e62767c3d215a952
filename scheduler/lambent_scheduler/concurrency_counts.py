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
    from collections.abc import Callable, Iterable, Mapping

    from lambent_common.etcd import EtcdClient
    from lambent_scheduler.core.concurrency import FunctionCounts
    from lambent_scheduler.core.dispatch import Dispatcher

log = structlog.get_logger()

_PERIOD_S = 1.0
"""The write budget of the design: one put per active partition and second, so that etcd carries 100,000 functions."""


async def write_counts(etcd: EtcdClient, dispatcher: Dispatcher) -> None:
    """Write the dispatcher's figures until cancelled."""
    await follow_counts(etcd, dispatcher.function_counts)


async def follow_counts(
    etcd: EtcdClient, function_counts: Callable[[], Iterable[FunctionCounts]], *, period_s: float = _PERIOD_S
) -> None:
    """Write `function_counts()` every `period_s` seconds where it changed, until cancelled.

    What an earlier owner wrote about functions that this one has not seen is deleted.
    """
    written: dict[str, bytes] | None = None
    is_behind = False
    while True:
        try:
            if written is None:
                written = {item.key: item.value for item in (await etcd.range(keys.CONCURRENCY)).items}
            await _write(etcd, written, values_of(function_counts()))
            is_behind = False
        except UnavailableError as error:
            # etcd is away: what it misses is counted again when it is back. Said once.
            if not is_behind:
                log.warning("counts_not_written", error=error.message)
            is_behind = True
        await asyncio.sleep(period_s)


def values_of(counts: Iterable[FunctionCounts]) -> dict[str, bytes]:
    """Give the value of each partition's key; functions with nothing to count are left out. Pure."""
    records: defaultdict[int, record_pb2.PartitionConcurrencyRecord] = defaultdict(
        record_pb2.PartitionConcurrencyRecord
    )
    for function in sorted(counts, key=lambda function: (function.account, function.function_name)):
        if function.in_flight or function.environments or function.throttles:
            records[function.partition].functions.add(
                account=function.account,
                function_name=function.function_name,
                in_flight=function.in_flight,
                environments=function.environments,
                throttles=function.throttles,
            )
    return {keys.concurrency(partition): encode(record) for partition, record in records.items()}


async def _write(etcd: EtcdClient, written: dict[str, bytes], values: Mapping[str, bytes]) -> None:
    """Bring etcd from `written` to `values`; `written` follows write by write."""
    for key in [key for key in written if key not in values]:
        await etcd.delete(key)
        del written[key]
    for key, value in values.items():
        if written.get(key) != value:
            await etcd.put(key, value)
            written[key] = value
