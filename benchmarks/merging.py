"""The kernel's merging of equal pages (KSM), on for the time of a measurement or a test; admin-guide/mm/ksm."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

KSM = Path("/sys/kernel/mm/ksm")
_FAST = {"advisor_mode": "none", "sleep_millisecs": "20", "pages_to_scan": "20000", "run": "1"}
"""About as fast as one CPU goes. The first is not there before Linux 6.8; the advisor would set how many pages itself,
so it goes first."""
_STOPPED, _UNMERGE = "0", "2"
_ITEM_BYTES = 64
"""What the kernel keeps for each page that it looks at, on machines of 64 bits."""
_ENOUGH = 1.01
_POLL_S = 0.2


def can_merge() -> bool:
    """Tell whether this kernel has KSM, and lets us set it."""
    try:
        (KSM / "run").write_text((KSM / "run").read_text())
    except OSError:
        return False
    return True


@contextlib.contextmanager
def merging_kernel() -> Iterator[None]:
    """Have the kernel merge inside the block, and be afterwards as it was before."""
    before = {name: _setting(name) for name in _FAST if (KSM / name).exists()}
    try:
        for name in before:
            (KSM / name).write_text(_FAST[name])
        yield
    finally:
        if before["run"] == _STOPPED:
            (KSM / "run").write_text(_UNMERGE)
        for name in reversed(before):  # the number of pages before the advisor, with which it cannot be set
            (KSM / name).write_text(before[name])


def _setting(name: str) -> str:
    """Read a setting; of words to choose from the one in brackets is chosen."""
    text = (KSM / name).read_text().strip()
    return text.partition("[")[2].partition("]")[0] or text


def count(name: str) -> int:
    """Read a counter."""
    return int((KSM / name).read_text())


async def wait_until_merged(timeout_s: float) -> None:
    """Wait until a whole scan merges next to nothing more.

    Raises:
        TimeoutError: It still merges.
    """
    async with asyncio.timeout(timeout_s):
        await _scan_ends()
        merged, enough = 0, 0.0
        while merged == 0 or merged > enough:
            enough = merged * _ENOUGH
            await _scan_ends()
            merged = count("pages_sharing")


async def _scan_ends() -> None:
    seen = count("full_scans")
    while count("full_scans") == seen:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(_POLL_S)


def bookkeeping_bytes(pid: int) -> int:
    """Give what the kernel keeps of its own for the pages of a process that it may merge: no part of its PSS."""
    words = Path(f"/proc/{pid}/ksm_stat").read_text().split()
    return int(words[words.index("ksm_rmap_items") + 1]) * _ITEM_BYTES
