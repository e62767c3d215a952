"""Give etcd's free pages back to the disk, before they fill the quota; etcd does not do so by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .probes import PROBE_TIMEOUT_S, ask_etcd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INTERVAL_S = 600.0

# etcd answers nothing while it copies its file: some hundred MiB a second, so a few seconds at the quota.
DEFRAGMENT_TIMEOUT_S = 60.0

# Less is not worth a pause.
_MINIMUM_FREE_BYTES = 64 << 20


def is_worth_it(size_bytes: int, in_use_bytes: int) -> bool:
    """Whether a file of this size, with so much of it in use, should be copied."""
    free = size_bytes - in_use_bytes
    return free >= _MINIMUM_FREE_BYTES and free >= size_bytes // 2


async def keep_defragmented(port: int, credentials: Path, notice: Callable[[str], None]) -> None:
    """Look at etcd's file now and then; runs until it is cancelled. An etcd that is away is looked at the next time."""
    while True:
        try:
            await _defragment(port, credentials, notice)
        except OSError as error:
            notice(f"etcd's file could not be looked at: {error.strerror}")
        await asyncio.sleep(INTERVAL_S)


async def _defragment(port: int, credentials: Path, notice: Callable[[str], None]) -> None:
    status = await ask_etcd(port, credentials, "POST", "/v3/maintenance/status", timeout_s=PROBE_TIMEOUT_S)
    size, in_use = _number(status, "dbSize"), _number(status, "dbSizeInUse")
    if size and is_worth_it(size, in_use):
        path = "/v3/maintenance/defragment"
        done = await ask_etcd(port, credentials, "POST", path, timeout_s=DEFRAGMENT_TIMEOUT_S)
        outcome = "done" if done is not None else "failed"
        notice(f"defragmentation of etcd {outcome}: {in_use >> 20} of {size >> 20} MiB were in use")


def _number(status: dict[str, object] | None, name: str) -> int:
    """A 64-bit number, which the gateway writes as text; 0 when it is missing."""
    value = (status or {}).get(name, "0")
    return int(value) if isinstance(value, str) and value.isdigit() else 0
