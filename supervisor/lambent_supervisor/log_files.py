"""Keep the children's log files short: a cluster that runs for a year does not fill the disk with its own words."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

# Children write to their log files themselves; the supervisor moves what they hold aside when they are this large.
LIMIT_BYTES = 64 << 20
INTERVAL_S = 60.0


async def keep_logs_short(
    logs: Iterable[Path],
    notice: Callable[[str], None],
    *,
    limit_bytes: int = LIMIT_BYTES,
    interval_s: float = INTERVAL_S,
) -> None:
    """Shorten each log now and then; runs until it is cancelled. What goes wrong is said, and tried again."""
    watched = tuple(logs)
    while True:
        await asyncio.sleep(interval_s)
        for log in watched:
            try:
                shorten_log(log, limit_bytes)
            except OSError as error:
                notice(f"{log} was cut without a copy: {error.strerror}")


def shorten_log(log: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """Copy the end of a log, up to the limit, into one file that is overwritten, and empty it when it is larger.

    The child appends to the same file all the while; what it writes between copy and cut is lost. When the copy cannot
    be made, as on a full disk, everything is: the log may well be what fills it.

    Raises:
        OSError: The copy could not be made.
    """
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return
    if size <= limit_bytes:
        return
    aside = log.with_name(log.name + ".1")
    try:
        with log.open("rb") as source, aside.open("wb") as copy:
            source.seek(size - limit_bytes)
            shutil.copyfileobj(source, copy)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    finally:
        os.truncate(log, 0)
