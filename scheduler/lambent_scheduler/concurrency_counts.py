"""Writes the concurrency of each partition's functions to etcd: at most once a second, and only when it changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import structlog

from lambent.errors import StaleEpochError, UnavailableError
from lambent.v1 import record_pb2
from lambent_common import keys
from lambent_common.etcd import delete_op, mod_revision_is, put_op
from lambent_common.records import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lambent_common.etcd import EtcdClient
    from lambent_common.etcd.transaction import Operation
    from lambent_scheduler.core.concurrency import FunctionCounts
    from lambent_scheduler.core.dispatch import Dispatcher

log = structlog.get_logger()

_PERIOD_S = 1.0
"""The write budget of the design: one put per active partition and second, so that etcd carries 100,000 functions."""

_WRITES_PER_TXN = 64
"""Half of what etcd takes in one transaction (--max-txn-ops): each partition has a comparison and a write."""

_FUNCTIONS_AT_ONCE = 500
"""Functions looked at before calls have their turn: some 0.5 ms."""


class Figures(NamedTuple):
    """What is written of one partition.

    Attributes:
        epoch: Of the owner who counted; 0 when it is not known what etcd holds.
        functions: Account, name, calls in flight, environments and throttles of each function, in order.
    """

    epoch: int
    functions: list[tuple[str, str, int, int, int]]


async def write_counts(etcd: EtcdClient, dispatcher: Dispatcher, epoch: Callable[[int], int]) -> None:
    """Write the dispatcher's figures until cancelled, as the owner that `epoch` says."""
    await follow_counts(etcd, dispatcher.function_counts, epoch)


async def follow_counts(
    etcd: EtcdClient,
    function_counts: Callable[[], Iterable[FunctionCounts]],
    epoch: Callable[[int], int],
    *,
    period_s: float = _PERIOD_S,
) -> None:
    """Write `function_counts()` every `period_s` seconds where it changed, until cancelled.

    What an earlier owner wrote about functions that this one has not seen is deleted. Nothing is written of a partition
    that etcd says is owned under another epoch: its owner's figures stand.

    Args:
        etcd: Where to.
        function_counts: Gives the figures of now, and goes on giving them while functions come and go.
        epoch: Gives the epoch of a partition; raises StaleEpochError for one that this scheduler does not own.
        period_s: See above.
    """
    written: dict[int, Figures] | None = None
    is_behind = False
    while True:
        try:
            if written is None:
                items = (await etcd.range(keys.CONCURRENCY)).items
                written = {int(keys.last_part(item.key)): Figures(0, []) for item in items}
            await _write(etcd, written, await figures_of(function_counts(), epoch), epoch)
            is_behind = False
        except UnavailableError as error:
            # etcd is away, or the partitions are another's. What etcd holds is asked again then. Said once.
            if not is_behind:
                log.warning("counts_not_written", error=error.message)
            is_behind = True
            written = None
        await asyncio.sleep(period_s)


async def figures_of(counts: Iterable[FunctionCounts], epoch: Callable[[int], int]) -> dict[int, Figures]:
    """Give the figures of each partition; functions with nothing to count are left out.

    Raises:
        StaleEpochError: A partition is not owned.
    """
    figures: dict[int, Figures] = {}
    for number, function in enumerate(counts, start=1):
        if function.in_flight or function.environments or function.throttles:
            partition = function.partition
            if partition not in figures:
                figures[partition] = Figures(epoch(partition), [])
            shown = (function.in_flight, function.environments, function.throttles)
            figures[partition].functions.append((function.account, function.function_name, *shown))
        if number % _FUNCTIONS_AT_ONCE == 0:
            await asyncio.sleep(0)
    for partition_figures in figures.values():
        partition_figures.functions.sort()
    return figures


async def _write(
    etcd: EtcdClient, written: dict[int, Figures], figures: Mapping[int, Figures], epoch: Callable[[int], int]
) -> None:
    """Bring etcd from `written` to `figures`; `written` follows write by write.

    Raises:
        StaleEpochError: A partition has another owner, or none.
    """
    known = sorted(written.keys() | figures.keys())
    changed = [partition for partition in known if written.get(partition) != figures.get(partition)]
    for first in range(0, len(changed), _WRITES_PER_TXN):
        partitions = changed[first : first + _WRITES_PER_TXN]
        await _write_fenced(etcd, partitions, figures, epoch)
        for partition in partitions:
            if partition in figures:
                written[partition] = figures[partition]
            else:
                del written[partition]


async def _write_fenced(
    etcd: EtcdClient, partitions: Sequence[int], figures: Mapping[int, Figures], epoch: Callable[[int], int]
) -> None:
    operations: list[Operation] = [
        put_op(keys.concurrency(partition), _value(figures[partition]))
        if partition in figures
        else delete_op(keys.concurrency(partition))
        for partition in partitions
    ]
    result = await etcd.txn(
        compare=[mod_revision_is(keys.partition_owner(partition), epoch(partition)) for partition in partitions],
        success=operations,
    )
    if not result.succeeded:
        raise StaleEpochError(f"one of the partitions {sorted(partitions)} has another owner")


def _value(figures: Figures) -> bytes:
    record = record_pb2.PartitionConcurrencyRecord(owner_epoch=figures.epoch)
    for account, function_name, in_flight, environments, throttles in figures.functions:
        record.functions.add(
            account=account,
            function_name=function_name,
            in_flight=in_flight,
            environments=environments,
            throttles=throttles,
        )
    return encode(record)
