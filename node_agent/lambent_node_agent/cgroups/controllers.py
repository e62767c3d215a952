"""One class for each controller and version: what it limits and what it tells, in the units of the product.

Rules from the kernel's documentation: admin-guide/cgroup-v1/memory, scheduler/sched-bwc, admin-guide/cgroup-v2.
"""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING, Protocol

from . import files
from .errors import CgroupError

if TYPE_CHECKING:
    from pathlib import Path

CPU_PERIOD_US = 20_000
"""The CPU quota is dealt out in 20 ms periods: a handler that has used its share waits 20 ms at most, where the
kernel's default of 100 ms would stall a 128 MB function for 93 ms. Shorter periods would cut the smallest quota below 1
ms, which is the kernel's least."""
_MIN_QUOTA_US = 1_000
_SHARES_OF_ONE_CPU = 1_024
_MIN_SHARES, _MAX_SHARES = 2, 262_144
_DEFAULT_WEIGHT, _MAX_WEIGHT = 100, 10_000
_UNLIMITED = "-1"
_WORTH_EMPTYING_BYTES = 1 << 20
"""The kernel's own memory for processes that have ended, which it frees by itself, is less than that. To look for pages
to take back costs a tenth of making a sandbox; what is left counts for the next one, whose limit is 128 MiB or more."""


def quota_us(cpu_millis: int) -> int:
    """Return the CPU time per period for a share in thousandths of a CPU."""
    return max(cpu_millis * CPU_PERIOD_US // 1000, _MIN_QUOTA_US)


class MemoryController(Protocol):
    """Limits memory without swap, tells peak and out-of-memory kills."""

    reusable: bool
    """`reset` can start a new peak."""

    def limit(self, limit_bytes: int | None) -> None:
        """Set the limit, None for none; swap is off under a limit.

        Raises:
            CgroupError: More is in use and cannot be reclaimed.
        """

    def peak_bytes(self) -> int:
        """Return the most memory in use since the last reset."""

    def oom_kills(self) -> int:
        """Return how many processes the kernel has ever killed here for want of memory."""

    def used_bytes(self) -> int:
        """Return the memory in use now."""

    def reclaim(self, limit_bytes: int) -> None:
        """Take back pages that can be read again, about that many bytes, or what there is; blocks meanwhile."""

    def reset(self) -> int:
        """Drop what the last user has cached, lift the limit and start a new peak. The group must be empty.

        Returns:
            The bytes that are still charged to it.
        """

    def close(self) -> None:
        """Close the descriptors."""


class MemoryV1:
    """`memory` of version 1."""

    reusable = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._swap = (directory / "memory.memsw.limit_in_bytes").exists()  # absent when swap accounting is off
        self._sockets = directory / "memory.kmem.tcp.limit_in_bytes"
        self._peak = files.open_file(directory / "memory.max_usage_in_bytes", os.O_RDWR)
        self._oom = _open_beside(self._peak, directory / "memory.oom_control")

    def limit(self, limit_bytes: int | None) -> None:
        """Set memory, then memory and swap together to the same: the second may never be less than the first.

        Buffers of sockets, UDP's too, are charged to a counter of their own.
        """
        value = _UNLIMITED if limit_bytes is None else str(limit_bytes)
        names = ["memory.limit_in_bytes", *(["memory.memsw.limit_in_bytes"] if self._swap else [])]
        try:
            for name in names:
                files.write(self._directory / name, value)
        except CgroupError:
            # The order for raising: the wider limit first.
            for name in reversed(names):
                files.write(self._directory / name, value)
        if self._sockets.exists():
            files.write(self._sockets, value)

    def peak_bytes(self) -> int:
        """See MemoryController."""
        return int(files.read_at_start(self._peak))

    def oom_kills(self) -> int:
        """See MemoryController."""
        return files.keyed_value(files.read_at_start(self._oom), "oom_kill")

    def used_bytes(self) -> int:
        """See MemoryController."""
        return int((self._directory / "memory.usage_in_bytes").read_text())

    def reclaim(self, limit_bytes: int) -> None:  # noqa: ARG002 - version 1 knows no amount
        """See MemoryController."""
        files.write(self._directory / "memory.force_empty", "0")

    def reset(self) -> int:
        """See MemoryController."""
        used_bytes = self.used_bytes()
        if used_bytes > _WORTH_EMPTYING_BYTES:
            files.write(self._directory / "memory.force_empty", "0")
            used_bytes = self.used_bytes()
        self.limit(None)
        os.pwrite(self._peak, b"0", 0)
        return used_bytes

    def close(self) -> None:
        """See MemoryController."""
        os.close(self._peak)
        os.close(self._oom)


class MemoryV2:
    """`memory` of version 2. Out of memory ends all processes together, where version 1 ends the largest one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._swap = (directory / "memory.swap.max").exists()
        if (directory / "memory.oom.group").exists():  # Linux 4.19
            files.write(directory / "memory.oom.group", "1")
        self.reusable, self._peak = self._open_peak()
        self._oom = _open_beside(self._peak, directory / "memory.events")

    def _open_peak(self) -> tuple[bool, int]:
        """Open memory.peak (Linux 5.19), writable where a new peak can be started (6.12), else memory.current."""
        try:
            peak = files.open_file(self._directory / "memory.peak", os.O_RDWR)
        except CgroupError:
            name = "memory.peak" if (self._directory / "memory.peak").exists() else "memory.current"
            return False, files.open_file(self._directory / name, os.O_RDONLY)
        try:
            os.pwrite(peak, b"reset", 0)
        except OSError:
            return False, peak
        return True, peak

    def limit(self, limit_bytes: int | None) -> None:
        """See MemoryController."""
        if self._swap:
            files.write(self._directory / "memory.swap.max", "max" if limit_bytes is None else "0")
        files.write(self._directory / "memory.max", "max" if limit_bytes is None else str(limit_bytes))

    def peak_bytes(self) -> int:
        """See MemoryController."""
        return int(files.read_at_start(self._peak))

    def oom_kills(self) -> int:
        """See MemoryController."""
        return files.keyed_value(files.read_at_start(self._oom), "oom_kill")

    def used_bytes(self) -> int:
        """See MemoryController."""
        return int((self._directory / "memory.current").read_text())

    def reclaim(self, limit_bytes: int) -> None:
        """See MemoryController. The kernel can do so from Linux 5.19 on."""
        if (self._directory / "memory.reclaim").exists():
            with contextlib.suppress(CgroupError):  # EAGAIN: less could be reclaimed than asked for
                files.write(self._directory / "memory.reclaim", str(limit_bytes))

    def reset(self) -> int:
        """See MemoryController."""
        self.limit(None)
        used_bytes = self.used_bytes()
        if used_bytes > _WORTH_EMPTYING_BYTES:
            self.reclaim(used_bytes)
            used_bytes = self.used_bytes()
        os.pwrite(self._peak, b"reset", 0)
        return used_bytes

    def close(self) -> None:
        """See MemoryController."""
        os.close(self._peak)
        os.close(self._oom)


def _open_beside(fd: int, path: Path) -> int:
    """Open a file for reading; when that fails, the other descriptor is closed."""
    try:
        return files.open_file(path, os.O_RDONLY)
    except CgroupError:
        os.close(fd)
        raise


class CpuController(Protocol):
    """Limits CPU time and weighs the group against others."""

    def set_share(self, cpu_millis: int) -> None:
        """Weigh the group by its share, for when more is wanted than there is."""

    def limit(self, cpu_millis: int | None) -> None:
        """Set the quota, with a burst of as much again, or lift it."""


class CpuV1:
    """`cpu` of version 1."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._burst = (directory / "cpu.cfs_burst_us").exists()  # Linux 5.14
        files.write(directory / "cpu.cfs_period_us", str(CPU_PERIOD_US))

    def set_share(self, cpu_millis: int) -> None:
        """See CpuController."""
        shares = min(max(cpu_millis * _SHARES_OF_ONE_CPU // 1000, _MIN_SHARES), _MAX_SHARES)
        files.write(self._directory / "cpu.shares", str(shares))

    def limit(self, cpu_millis: int | None) -> None:
        """See CpuController.

        A quota above the one of a group around it is refused by version 1, where version 2 takes the lesser of the two:
        then the group has none of its own, and the other one holds.
        """
        quota = None if cpu_millis is None else quota_us(cpu_millis)
        try:
            self._write(quota)
        except CgroupError:
            if cpu_millis is None or cpu_millis <= self._outer_cpu_millis():
                raise
            self._write(None)

    def _write(self, quota: int | None) -> None:
        _write_quota(
            self._directory / "cpu.cfs_quota_us",
            _UNLIMITED if quota is None else str(quota),
            self._directory / "cpu.cfs_burst_us" if self._burst else None,
            quota,
        )

    def _outer_cpu_millis(self) -> float:
        """Return the least quota of the groups around this one, in thousandths of a CPU; infinity for none."""
        least = math.inf
        for directory in self._directory.parents:
            try:
                quota = int((directory / "cpu.cfs_quota_us").read_text())
                period = int((directory / "cpu.cfs_period_us").read_text())
            except OSError:
                break  # above the hierarchy's mount, or its root, which has no quota
            if quota > 0:
                least = min(least, quota * 1000 / period)
        return least


class CpuV2:
    """`cpu` of version 2."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._burst = (directory / "cpu.max.burst").exists()  # Linux 5.14

    def set_share(self, cpu_millis: int) -> None:
        """See CpuController."""
        weight = min(max(cpu_millis * _DEFAULT_WEIGHT // 1000, 1), _MAX_WEIGHT)
        files.write(self._directory / "cpu.weight", str(weight))

    def limit(self, cpu_millis: int | None) -> None:
        """See CpuController."""
        quota = None if cpu_millis is None else quota_us(cpu_millis)
        _write_quota(
            self._directory / "cpu.max",
            f"{'max' if quota is None else quota} {CPU_PERIOD_US}",
            self._directory / "cpu.max.burst" if self._burst else None,
            quota,
        )


def _write_quota(quota_file: Path, value: str, burst_file: Path | None, burst_us: int | None) -> None:
    """Set quota and burst; the kernel refuses a burst above the quota, so a former one may have to go first."""
    try:
        files.write(quota_file, value)
    except CgroupError:
        if burst_file is None:
            raise
        files.write(burst_file, "0")
        files.write(quota_file, value)
    if burst_file is not None:
        files.write(burst_file, str(burst_us or 0))
