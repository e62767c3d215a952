"""The control groups of one sandbox: one directory in each hierarchy, used as one thing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import files
from .controllers import CpuController, CpuV1, CpuV2, MemoryController, MemoryV1, MemoryV2
from .errors import CgroupError
from .freezers import Freezer, FreezerV1, FreezerV2
from .layout import FREEZER

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future
    from pathlib import Path

    from .layout import Hierarchy

_LEFT_BYTES = 8 << 20
"""What may still be charged to a group that is used again. Of the kernel's own memory it is less than 1 MiB; the limit
of the next user is 128 MiB or more."""


class Group:
    """One sandbox's groups.

    Limits of controllers that the machine lacks are not set; `Tree.missing` tells which those are.

    Args:
        directories: The group's directory in each hierarchy, already made.
        freezing: Runs what freezes and thaws, in the order of the requests.

    Attributes:
        reusable: Whether `reset` makes it as good as new; on older version 2 kernels a peak cannot be started again.

    Raises:
        CgroupError: A control file is not there, or cannot be opened.
    """

    def __init__(self, directories: dict[Hierarchy, Path], freezing: Executor) -> None:
        self._directories = directories
        self._memory: MemoryController | None = None
        self._cpu: CpuController | None = None
        self._pids: Path | None = None
        self._freezer: Freezer | None = None
        self._freezing = freezing
        self._oom_baseline = 0
        try:
            self._open()
        except CgroupError:
            self._close()
            raise
        self.reusable = self._memory is None or self._memory.reusable

    def _open(self) -> None:
        for hierarchy, directory in self._directories.items():
            if "memory" in hierarchy.controllers:
                self._memory = MemoryV2(directory) if hierarchy.unified else MemoryV1(directory)
            if "cpu" in hierarchy.controllers:
                self._cpu = CpuV2(directory) if hierarchy.unified else CpuV1(directory)
            if "pids" in hierarchy.controllers:
                self._pids = directory / "pids.max"
            if FREEZER in hierarchy.controllers:
                self._freezer = FreezerV2(directory) if hierarchy.unified else FreezerV1(directory)

    def _close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._freezer is not None:
            self._freezer.close()
            self._freezer = None

    def open_entrances(self) -> list[int]:
        """Open the file of each hierarchy through which a process of one thread enters by writing `0`; caller closes.

        On version 1 that is `tasks`: moving only the calling thread, it does not wait for an RCU grace period, which
        takes 10 ms on an idle machine. Version 2 has no such file for a group with controllers.
        """
        names = {True: "cgroup.procs", False: "tasks"}
        opened: list[int] = []
        try:
            for hierarchy, directory in self._directories.items():
                opened.append(files.open_file(directory / names[hierarchy.unified], os.O_WRONLY))
        except CgroupError:
            for fd in opened:
                os.close(fd)
            raise
        return opened

    def limit_memory(self, memory_mib: int | None) -> None:
        """Limit memory, without swap; None lifts the limit.

        Raises:
            CgroupError: More is in use and cannot be reclaimed.
        """
        if self._memory is not None:
            self._memory.limit(None if memory_mib is None else memory_mib << 20)

    def limit_processes(self, count: int) -> None:
        """Limit processes and threads together."""
        if self._pids is not None:
            files.write(self._pids, str(count))

    def share_cpu(self, cpu_millis: int) -> None:
        """Weigh it against other groups, in thousandths of a CPU."""
        if self._cpu is not None:
            self._cpu.set_share(cpu_millis)

    def limit_cpu(self, cpu_millis: int | None) -> None:
        """Set the CPU quota in thousandths of a CPU; None lifts it."""
        if self._cpu is not None:
            self._cpu.limit(cpu_millis)

    def peak_memory_bytes(self) -> int:
        """Return the most memory in use at once since `reset`; 0 when the machine cannot tell."""
        return self._memory.peak_bytes() if self._memory is not None else 0

    def oom_kills(self) -> int:
        """Return how many processes were killed for want of memory since `reset`."""
        return self._memory.oom_kills() - self._oom_baseline if self._memory is not None else 0

    def freeze(self) -> Future[None]:
        """Ask for every process in it, and those that enter it, to be stopped; done before the last one has stopped.

        The result is a CgroupError where the kernel refused.
        """
        assert self._freezer is not None
        return self._freezing.submit(self._freezer.freeze)

    def thaw(self) -> Future[None]:
        """Ask for them to run again, after what was asked for before. On version 1 the killed die only now."""
        assert self._freezer is not None
        return self._freezing.submit(self._freezer.thaw)

    def is_frozen(self) -> bool:
        """Tell whether every process in it has stopped."""
        return self._freezer is not None and self._freezer.is_frozen()

    def reclaim_memory(self, limit_bytes: int) -> int:
        """Have the kernel take back pages that can be read again, such as cached files; blocks meanwhile.

        Args:
            limit_bytes: About how much; version 1 takes whatever it can.

        Returns:
            By how many bytes less is in use; 0 when nothing can be taken.
        """
        memory = self._memory  # another thread may remove the group meanwhile
        if memory is None:
            return 0
        before = memory.used_bytes()
        memory.reclaim(limit_bytes)
        return max(0, before - memory.used_bytes())

    def reset(self) -> bool:
        """Make the empty group as new: no limits, no cached pages, a new peak.

        Takes milliseconds when much was cached.

        Returns:
            False when the next user would have less memory: what others hold as well, such as merged pages, stays
            charged to the group that had it first.
        """
        self.limit_cpu(None)
        if self._memory is None:
            return True
        left_bytes = self._memory.reset()
        self._oom_baseline = self._memory.oom_kills()
        return left_bytes <= _LEFT_BYTES

    def remove(self) -> None:
        """Remove the empty group; may be called again after it has failed.

        Raises:
            CgroupError: There are processes in it.
        """
        self._close()
        for directory in self._directories.values():
            try:
                directory.rmdir()
            except FileNotFoundError:
                continue  # it went before another one that would not
            except OSError as error:
                raise CgroupError(f"removal of {directory}: {error.strerror}") from error
