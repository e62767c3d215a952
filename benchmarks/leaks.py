"""What a process that makes sandboxes has of the machine, counted from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import children, descendants, name

INTERFACES, RULES = "network interfaces", "lines of nftables rules"
_SLABS = ("mnt_cache", "net_namespace", "pid_namespace")
"""Objects of the kernel that no process may be seen to hold any more: proc_slabinfo(5). Rounded up by the kernel."""
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_CGROUPS = Path("/sys/fs/cgroup")


def count(agent: int, state: Path, owner: str) -> dict[str, int]:
    """Count everything that an agent could leave behind.

    Args:
        agent: The process.
        state: Its state directory.
        owner: Its mark in the names of control groups.
    """
    zygotes = [child for child in children(agent) if name(child) == "lambent-zygote"]
    below = descendants(agent)
    return {
        "processes": len(below),
        "threads of the agent": len(list(Path(f"/proc/{agent}/task").iterdir())),
        "mounts of the agent": _mounts(agent),
        "mounts of the zygotes": sum(map(_mounts, zygotes)),
        "control groups": sum(owner in name for _, names, _ in os.walk(_CGROUPS) for name in names)
        + sum(len(names) for path, names, _ in os.walk(_CGROUPS) if owner in path),
        "namespaces": len(set(_namespaces(below))),
        "descriptors of the agent": _descriptors(agent),
        "descriptors of the zygotes": sum(map(_descriptors, zygotes)),
        "files and directories": sum(1 for _ in state.rglob("*")),
    }


def count_of_machine() -> dict[str, int]:
    """Count what bears nobody's mark: of everybody on the machine together."""
    groups = [line.split() for line in _read("/proc/cgroups") if not line.startswith("#")]
    slabs = {words[0]: int(words[1]) for line in _read("/proc/slabinfo") if (words := line.split())[0] in _SLABS}
    return {
        INTERFACES: sum(":" in line for line in _read("/proc/net/dev")),
        RULES: _rules(),
        "control groups, lingering ones too": sum(int(words[2]) for words in groups),
    } | slabs


def resident_kib(agent: int) -> dict[str, int]:
    """Give the memory that is the agent's and its zygotes' own: resident and anonymous, in KiB."""
    zygotes = [child for child in children(agent) if name(child) == "lambent-zygote"]
    return {"agent": _anonymous_kib(agent), "zygotes": sum(map(_anonymous_kib, zygotes))}


def _mounts(pid: int) -> int:
    return len(_read(f"/proc/{pid}/mountinfo"))


def _namespaces(pids: list[int]) -> Iterator[str]:
    for pid in pids:
        for kind in _NAMESPACES:
            try:
                yield os.readlink(f"/proc/{pid}/ns/{kind}")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended, or the kernel has no such namespaces


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _rules() -> int:
    if (nft := shutil.which("nft")) is None:
        return 0
    return len(subprocess.run([nft, "list", "ruleset"], check=True, capture_output=True).stdout.splitlines())


def _anonymous_kib(pid: int) -> int:
    return next(int(line.split()[1]) for line in _read(f"/proc/{pid}/status") if line.startswith("RssAnon:"))


def _read(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
