"""Where each controller of this machine is, and where in its hierarchy this process stands."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FREEZER = "freezer"
CONTROLLERS = ("memory", "cpu", "pids", FREEZER)
LEAF = "lambent-leaf"
"""Where processes of a version 2 group go that is to have groups with controllers; see `tree`."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted hierarchy.

    Attributes:
        mount: Where it is mounted.
        own: Directory of this process's group in it; `mount` itself when that lies outside of what is mounted.
        unified: It is version 2.
        controllers: Those of `CONTROLLERS` that are controlled through it. Version 2 freezes without a controller.
    """

    mount: Path
    own: Path
    unified: bool
    controllers: frozenset[str]

    @property
    def switched(self) -> frozenset[str]:
        """Those that version 2 gives to the groups below a group only when it is told to."""
        return self.controllers - {FREEZER}


@dataclass(frozen=True, slots=True)
class Layout:
    """All hierarchies that control something, each once; version 1 hosts have several, version 2 hosts one."""

    hierarchies: tuple[Hierarchy, ...]

    def of(self, controller: str) -> Hierarchy | None:
        """Return the hierarchy that has this controller; None when the machine lacks it."""
        return next((hierarchy for hierarchy in self.hierarchies if controller in hierarchy.controllers), None)

    def delegated(self, may_use: Callable[[Path], bool], unified_controllers: Callable[[Path], set[str]]) -> Layout:
        """Return what of it is for a process without root: the groups from its own on downwards, where they are its.

        Args:
            may_use: Tells of the directory of a group whether this process may make groups in it and move into them.
            unified_controllers: Called with the directory of a version 2 group; gives the controllers that it has.
        """
        given: list[Hierarchy] = []
        for hierarchy in self.hierarchies:
            own = hierarchy.own.parent if hierarchy.own.name == LEAF else hierarchy.own
            controllers = hierarchy.controllers
            if hierarchy.unified:
                controllers = controllers & {*unified_controllers(own), FREEZER}  # every group of version 2 has that
            if controllers and may_use(own):
                given.append(Hierarchy(own, own, hierarchy.unified, controllers))
        return Layout(tuple(given))


def read_layout(*, delegated: bool = False) -> Layout:
    """Read this machine's layout from procfs.

    Args:
        delegated: Leave out what this process may not use.
    """
    layout = parse_layout(
        Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text(), _unified_controllers
    )
    return layout.delegated(_may_use, _unified_controllers) if delegated else layout


def _may_use(group: Path) -> bool:
    return os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK)


def _unified_controllers(mount: Path) -> set[str]:
    try:
        return set((mount / "cgroup.controllers").read_text().split())
    except OSError:
        return set()


def parse_layout(mountinfo: str, own_groups: str, unified_controllers: Callable[[Path], set[str]]) -> Layout:
    """Work the layout out from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup` (proc(5), cgroups(7)).

    Args:
        mountinfo: Mounts of this process.
        own_groups: Its groups: `id:controllers:path` lines, id 0 for version 2.
        unified_controllers: Called with the mount point of version 2; gives the controllers bound to it.
    """
    paths = _own_paths(own_groups)
    hierarchies: list[Hierarchy] = []
    seen: set[str] = set()
    # Version 1 first: where there is its freezer, that is used, and version 2 has nothing to do on a hybrid.
    for kind, root, mount, options in sorted(_mounts(mountinfo), key=lambda found: found[0]):
        if kind == "cgroup2":
            available, key = set(unified_controllers(mount)), ""
            if available.intersection(CONTROLLERS):
                available.add(FREEZER)  # every group of version 2 has one
        else:
            available = set(options.split(","))
            key = next((name for name in sorted(available) if name in paths), "")
        controllers = frozenset(available.intersection(CONTROLLERS) - seen)
        if not controllers:
            continue
        seen |= controllers
        own = _own_directory(mount, root, paths.get(key, "/"))
        hierarchies.append(Hierarchy(mount, own, kind == "cgroup2", controllers))
    return Layout(tuple(hierarchies))


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, Path, str]]:
    """Give kind, root, mount point and options of each mounted hierarchy."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _source, options = [*right.split(" "), "", "", ""][:3]
        if kind in ("cgroup", "cgroup2"):
            fields = left.split(" ")
            yield kind, fields[3], Path(_unescape(fields[4])), options


def _own_paths(own_groups: str) -> dict[str, str]:
    """Map each controller's name, and the empty name for version 2, to this process's path in its hierarchy."""
    paths: dict[str, str] = {}
    for line in own_groups.splitlines():
        _number, names, path = line.split(":", 2)
        for name in names.split(","):
            paths[name] = path
    return paths


def _own_directory(mount: Path, root: str, path: str) -> Path:
    """Return the directory of the group `path` under a mount that shows the hierarchy from `root` on."""
    if root != "/":
        if path != root and not path.startswith(root + "/"):
            return mount  # a container that sees its host's path, which is not under what is mounted for it
        path = path[len(root) :]
    directory = mount / path.lstrip("/")
    return mount if ".." in directory.parts else directory


def _unescape(path: str) -> str:
    return path.replace(r"\040", " ").replace(r"\011", "\t").replace(r"\012", "\n").replace(r"\134", "\\")
