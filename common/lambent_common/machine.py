"""What this process may use: memory and CPUs of the machine, or of its cgroup where less, disk and descriptors."""

from __future__ import annotations

import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MEBIBYTE = 1 << 20

# What functions get when nothing is said; the rest is for etcd, nats-server, scheduler, agents and the machine's owner.
DEFAULT_MEMORY_SHARE = 0.8

# What functions' /tmp leaves of a disk: the bounds of etcd (4 GiB), of the logs (1 GiB) and of a node's code (5 GiB).
KEPT_DISK_MIB = 10_240
# A function's /tmp: AWS Lambda quotas.
MINIMUM_DISK_MIB = 512


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory in MiB and CPUs that this process may use: the machine's, or its cgroup's where that is less."""

    memory_mib: int
    cpus: float


def read_machine(root: Path = Path("/")) -> Machine:
    """Read memory and CPUs from the kernel; `root` holds proc and sys."""
    limits = [_memory_figure(root, "MemTotal"), *_cgroup_memory_limits(root)]
    cpus = [float(len(os.sched_getaffinity(0))), *_cgroup_cpu_limits(root)]
    return Machine(memory_mib=min(limits) // MEBIBYTE, cpus=min(cpus))


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that can be had without taking away what is in use: the machine's, or its cgroup's where less.

    `root` holds proc and sys.
    """
    return min([_memory_figure(root, "MemAvailable"), *_cgroup_memory_left(root)])


def free_disk_mib(directory: Path) -> int:
    """Room on the disk of a directory, which may not exist yet."""
    there = next(parent for parent in (directory, *directory.parents) if parent.exists())
    return shutil.disk_usage(there).free // MEBIBYTE


def default_disk_mib(free_mib: int) -> int:
    """What functions' /tmp may hold on a disk with so much free, when nobody says; `MINIMUM_DISK_MIB` at least.

    All but `KEPT_DISK_MIB`, or half of a small disk. An eighth of that, and a little, is for the file system itself.
    """
    return max(max(free_mib - KEPT_DISK_MIB, free_mib // 2) * 7 // 8 - 256, MINIMUM_DISK_MIB)


def raise_open_files_limit() -> None:
    """Raise this process's soft limit of descriptors to its hard one; children inherit it.

    The soft limit is 1,024 by custom, for programs that use select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _memory_figure(root: Path, wanted: str) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == wanted:
            return int(value.split()[0]) * 1024
    raise ValueError(f"/proc/meminfo has no {wanted}")


def _own_cgroups(root: Path, controller: str) -> list[Path]:
    """Directories of this process's cgroup and all above it that may hold limits of a controller, v1 and v2."""
    directories: list[Path] = []
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"] if not controllers else [f"sys/fs/cgroup/{controllers}"]
        if controllers and controller not in controllers.split(","):
            continue
        for mount in mounts:
            here = root / mount / path.lstrip("/")
            directories += [here, *(parent for parent in here.parents if parent.is_relative_to(root / mount))]
    return directories


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cgroup_memory_limits(root: Path) -> list[int]:
    """Limits in bytes; v1 says "none" with a number beyond any memory, which min() sorts out."""
    texts = [
        _read(directory / name)
        for directory in _own_cgroups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    return [int(text) for text in texts if text is not None and text.isdigit()]


def _cgroup_memory_left(root: Path) -> Iterator[int]:
    """What each limit leaves, files in memory included, which the kernel takes back by itself."""
    for directory in _own_cgroups(root, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _read(directory / limit_name), _read(directory / used_name)
            if limit is not None and used is not None and limit.isdigit():
                yield int(limit) - int(used) + _cached_bytes(_read(directory / "memory.stat") or "")


def _cached_bytes(stat: str) -> int:
    """Files in memory, of a group and those below it: version 1 counts these together under another name."""
    figures = dict(line.split() for line in stat.splitlines())
    return sum(int(figures.get(f"total_{name}", figures.get(name, 0))) for name in ("active_file", "inactive_file"))


def _cgroup_cpu_limits(root: Path) -> list[float]:
    """Quotas in CPUs: v2 `cpu.max` is "quota period" or "max period", v1 has a file for each and -1 for none."""
    limits = []
    for directory in _own_cgroups(root, "cpu"):
        quota, _, period = (_read(directory / "cpu.max") or "").partition(" ")
        if not quota:
            quota = _read(directory / "cpu.cfs_quota_us") or ""
            period = _read(directory / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            limits.append(int(quota) / int(period))
    return limits
