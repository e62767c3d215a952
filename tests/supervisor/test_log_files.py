"""Logs stay short, on a full disk too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest

from lambent_supervisor.log_files import keep_logs_short, shorten_log

TIMEOUT_S = 20


def test_a_long_log_is_moved_aside_under_its_writer(tmp_path: Path) -> None:
    """Up to the limit, so that the two files together have a bound; the writer goes on in the first."""
    log = tmp_path / "etcd.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100 + b"y" * 99)
        shorten_log(log, limit_bytes=99)
        writer.write(b"later\n")
    assert log.read_bytes() == b"later\n"
    assert (tmp_path / "etcd.log.1").read_bytes() == b"y" * 99


def test_a_log_within_the_limit_is_left_alone(tmp_path: Path) -> None:
    """And one that nobody has written yet."""
    log = tmp_path / "etcd.log"
    shorten_log(log, limit_bytes=99)
    log.write_bytes(b"x" * 99)
    shorten_log(log, limit_bytes=99)
    assert log.read_bytes() == b"x" * 99
    assert not (tmp_path / "etcd.log.1").exists()


def test_on_a_full_disk_a_log_is_cut_without_a_copy(tmp_path: Path) -> None:
    """It may be the very file that fills the disk; half a copy is not left either."""
    log, aside = tmp_path / "etcd.log", tmp_path / "etcd.log.1"
    log.write_bytes(b"x" * 100)
    aside.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        shorten_log(log, limit_bytes=99)
    assert log.read_bytes() == b""
    assert not aside.is_symlink()


@contextlib.asynccontextmanager
async def kept_short(logs: Iterable[Path], notice: Callable[[str], None]) -> AsyncIterator[None]:
    async with asyncio.timeout(TIMEOUT_S):
        keeper = asyncio.create_task(keep_logs_short(logs, notice, limit_bytes=9, interval_s=0))
        try:
            yield
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper


async def test_a_log_that_cannot_be_copied_ends_nothing(tmp_path: Path) -> None:
    """The keeper of the logs runs beside the keepers of the children: what ended it would end the cluster."""
    logs = [tmp_path / "etcd.log", tmp_path / "node-1.log"]
    notices: asyncio.Queue[str] = asyncio.Queue()
    async with kept_short(logs, notices.put_nowait):
        for log in (*logs, *logs):
            log.with_name(log.name + ".1").symlink_to("/dev/full")
            log.write_bytes(b"x" * 100)
            assert f"{log} was cut without a copy: No space left" in await notices.get()
