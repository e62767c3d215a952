"""Process trees, their CPU time and their memory, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Give the children of a process; none once it has ended."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def descendants(pid: int) -> list[int]:
    """Give a process and everything below it, less what ends meanwhile."""
    return [pid, *(below for child in children(pid) for below in descendants(child))]


def cpu_seconds(pids: list[int]) -> float:
    """Sum the CPU time that the processes have used, with that of children waited for; ended ones have none."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(field) for field in fields[11:15])
    return total / _TICKS_PER_S


def pss_mib(pid: int) -> float:
    """Give the proportional set size of a process: shared pages are divided among their users. 0 once it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss line for process {pid}")


def name(pid: int) -> str:
    """Give what `ps -o comm` shows of a process; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def arguments(pid: int) -> list[str]:
    """Give the command of a process; empty once it has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return words.decode(errors="replace").rstrip("\0").split("\0")
