"""Remove what a supervisor that was killed has left: processes and control groups. Only what bears its mark.

There are no mounts to remove: agents mount in namespaces of their own, which end with their last process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lambent_common.control_groups import remove_group

from .data_directory import write_atomically
from .processes import ProcessId, kill_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .data_directory import DataDirectory

KILL_TIMEOUT_S = 10.0
_GROUP_TIMEOUT_S = 5.0

# mountinfo writes space, tab, newline and backslash in octal; proc(5).
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Swept:
    """How much was left: children and control groups."""

    processes: int = 0
    groups: int = 0

    def __bool__(self) -> bool:
        return bool(self.processes or self.groups)

    def __str__(self) -> str:
        return f"{self.processes} processes, {self.groups} control groups"


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
        with contextlib.suppress(OSError):  # a process that would not die is in the way of nothing here
            remove_group(group, time.monotonic() + _GROUP_TIMEOUT_S)
    directory.processes.unlink(missing_ok=True)
    return Swept(len(running), len(groups))


def marked_groups(mark: str) -> Iterator[Path]:
    """Control groups of this mark's agents, wherever in the hierarchies; not what is below them."""
    for root in _control_group_mounts():
        for parent, names, _ in os.walk(root):
            marked = [name for name in names if name.startswith(f"lambent-{mark}-")]
            yield from (Path(parent, name) for name in marked)
            names[:] = [name for name in names if name not in marked]


def _recorded(path: Path) -> list[ProcessId]:
    try:
        lines = list(json.loads(path.read_text()).values())
    except (FileNotFoundError, ValueError, AttributeError):
        return []
    decoded = [ProcessId.decode(line.encode()) for line in lines if isinstance(line, str)]
    return [process for process in decoded if process is not None]


def _control_group_mounts() -> list[Path]:
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] in {"cgroup", "cgroup2"}:
            points.append(Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), fields.split()[4])))
    return points
