"""Remove what a supervisor that was killed has left: processes, control groups, mounts. Only what bears its mark."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .data_directory import write_atomically
from .processes import ProcessId, kill_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .data_directory import DataDirectory

KILL_TIMEOUT_S = 10.0
_GROUP_TIMEOUT_S = 5.0
_POLL_INTERVAL_S = 0.005

# umount2(2): leave the tree at once, free it when nobody uses it any more.
_MNT_DETACH = 2

# mountinfo writes space, tab, newline and backslash in octal; proc(5).
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Swept:
    """How much was left: children, control groups and mounts."""

    processes: int = 0
    groups: int = 0
    mounts: int = 0

    def __bool__(self) -> bool:
        return bool(self.processes or self.groups or self.mounts)

    def __str__(self) -> str:
        return f"{self.processes} processes, {self.groups} control groups, {self.mounts} mounts"


class ProcessTable:
    """The children's pids and start times, in a file that outlives the supervisor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_name: dict[str, ProcessId] = {}

    def record(self, name: str, identity: ProcessId) -> None:
        """Note that `name` now is this process."""
        self._by_name[name] = identity
        content = {name: process.encode().decode() for name, process in self._by_name.items()}
        write_atomically(self._path, json.dumps(content, indent=2).encode())

    def clear(self) -> None:
        """Forget them: they have ended."""
        self._by_name.clear()
        self._path.unlink(missing_ok=True)


def sweep(directory: DataDirectory) -> Swept:
    """Remove what an earlier supervisor of this data directory left. The caller holds the directory's lock.

    Children that are killed with their supervisor may still be dying: when this returns they are gone, so that their
    ports and files can be used again.
    """
    recorded = _recorded(directory.processes)
    running = [process for process in recorded if process.is_running()]
    kill_all(recorded, KILL_TIMEOUT_S)
    mark = directory.mark()
    groups = [] if mark is None else list(marked_groups(mark))
    for group in groups:
        _remove_group(group, time.monotonic() + _GROUP_TIMEOUT_S)
    mounts = mounts_below(directory.root)
    for mount in reversed(mounts):
        _unmount(mount)
    directory.processes.unlink(missing_ok=True)
    return Swept(len(running), len(groups), len(mounts))


def marked_groups(mark: str) -> Iterator[Path]:
    """Control groups of this mark's agents, wherever in the hierarchies; not what is below them."""
    for root in _mount_points({"cgroup", "cgroup2"}):
        for parent, names, _ in os.walk(root):
            marked = [name for name in names if name.startswith(f"lambent-{mark}-")]
            yield from (Path(parent, name) for name in marked)
            names[:] = [name for name in names if name not in marked]


def mounts_below(root: Path) -> list[Path]:
    """Mount points under a directory in this mount namespace, in the order in which they were made."""
    resolved = root.resolve()
    return [path for path in _mount_points(None) if path != resolved and path.is_relative_to(resolved)]


def _recorded(path: Path) -> list[ProcessId]:
    try:
        lines = list(json.loads(path.read_text()).values())
    except (FileNotFoundError, ValueError, AttributeError):
        return []
    decoded = [ProcessId.decode(line.encode()) for line in lines if isinstance(line, str)]
    return [process for process in decoded if process is not None]


def _mount_points(types: set[str] | None) -> list[Path]:
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if types is None or rest.split()[0] in types:
            points.append(Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), fields.split()[4])))
    return points


def _unmount(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.umount2(os.fsencode(path), _MNT_DETACH)  # what cannot be unmounted is in the way of nothing here


def _remove_group(group: Path, deadline: float) -> None:
    """Remove a control group and what is below it, killing what runs there; gives up at the deadline."""
    below = [path for path in group.iterdir() if path.is_dir()] if group.exists() else []
    for child in below:
        _remove_group(child, deadline)
    while True:
        _kill_members(group)
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                return
            # The killed are still dying; version 1 has no event for an empty group.
            time.sleep(_POLL_INTERVAL_S)
        else:
            return


def _kill_members(group: Path) -> None:
    with contextlib.suppress(OSError):  # version 1 has no cgroup.kill
        (group / "cgroup.kill").write_text("1")
        return
    try:
        pids = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return
    # 0 is a process outside this pid namespace.
    members = [ProcessId.of(pid) for pid in pids if pid not in {0, os.getpid()}]
    kill_all([member for member in members if member is not None], timeout_s=0)
    with contextlib.suppress(OSError):  # a frozen task takes a SIGKILL only when it thaws
        (group / "freezer.state").write_text("THAWED")
