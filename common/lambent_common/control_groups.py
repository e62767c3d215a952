"""Removing control groups with whatever runs in them, of version 1 and 2."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_POLL_INTERVAL_S = 0.001


def remove_group(group: Path, deadline: float) -> None:
    """Kill what runs in a group and below it, and remove them; blocks until they are gone. None is there: nothing.

    A group that this process is in itself stays as it is.

    Args:
        group: Its directory.
        deadline: Of `time.monotonic`.

    Raises:
        OSError: It could not be removed by the deadline: a process in it would not die, or is of another PID
            namespace, or the kernel refused.
    """
    with contextlib.suppress(FileNotFoundError):
        for child in [path for path in group.iterdir() if path.is_dir()]:
            remove_group(child, deadline)
        while os.getpid() not in (pids := _members(group)):
            _kill(group, pids)
            try:
                group.rmdir()
            except OSError:
                if time.monotonic() > deadline or not group.exists():
                    raise
                time.sleep(_POLL_INTERVAL_S)  # the killed are still dying; version 1 has no event for an empty group
            else:
                return


def _members(group: Path) -> list[int]:
    return [int(line) for line in (group / "cgroup.procs").read_text().split()]


def _kill(group: Path, pids: list[int]) -> None:
    with contextlib.suppress(OSError):  # version 1, and version 2 before Linux 5.14
        (group / "cgroup.kill").write_text("1")
        return
    for pid in pids:
        if pid:  # 0 stands for a process of another PID namespace, and for kill(2) for our own process group
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        (group / "freezer.state").write_text("THAWED")  # a frozen task of version 1 takes a SIGKILL when it thaws
