"""All control groups of one owner: made under a directory that bears its mark, swept when the owner has died."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from lambent_common.control_groups import remove_group

from . import files
from .errors import CgroupError
from .group import Group
from .layout import CONTROLLERS, FREEZER, LEAF, Hierarchy, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PREFIX = "lambent-"
_CONTROL_SUFFIX = ".control"
_MOVE_ROUNDS = 100
"""Each round moves what there is; only a fork bomb outlasts this many."""
_CONTROL_CPU_MILLIS = 10_000
"""The control plane against all sandboxes of its node together, which weigh as one CPU: ten to one, when both want to
run."""
_SWEEP_TIMEOUT_S = 5.0
_MAX_SWEEP_DEPTH = 6
"""How far below a hierarchy's root an owner's directory is looked for: services and containers are nested this deep."""


class Tree:
    """The groups of one owner.

    Args:
        layout: The machine's hierarchies.
        owner: Mark in the directories' names, unique on this machine; letters, digits, `-` and `_`.
    """

    def __init__(self, layout: Layout, owner: str) -> None:
        self._layout = layout
        self._name = _PREFIX + owner
        self._roots: dict[Hierarchy, Path] = {}
        # One thread, so that a group is frozen and thawed in the order in which that was asked for. The kernel may have
        # the writer wait, on version 2 for a process that enters another group: the event loop must not.
        self._freezing = ThreadPoolExecutor(1, thread_name_prefix="freezing")

    @property
    def missing(self) -> tuple[str, ...]:
        """Controllers that this machine lacks: their limits are not enforced, or nothing can be frozen."""
        return tuple(name for name in CONTROLLERS if self._layout.of(name) is None)

    @property
    def can_freeze(self) -> bool:
        """Whether groups can be frozen."""
        return FREEZER not in self.missing

    @property
    def limits_swap(self) -> bool:
        """Whether memory comes without swap for functions; ask after `open`."""
        hierarchy = self._layout.of("memory")
        if hierarchy is None:
            return False
        name = "memory.swap.max" if hierarchy.unified else "memory.memsw.limit_in_bytes"
        return (self._roots[hierarchy] / name).exists()

    def open(self) -> None:
        """Sweep what a dead owner of the same name has left, then make the directories.

        Raises:
            CgroupError: A hierarchy is not writable.
        """
        self.sweep()
        for hierarchy in self._layout.hierarchies:
            base = hierarchy.mount if hierarchy.unified else hierarchy.own
            if hierarchy.unified:
                _enable_controllers(base, hierarchy)
            root = base / self._name
            _make_directory(root)
            if hierarchy.unified:
                _enable_controllers(root, hierarchy)
            self._roots[hierarchy] = root

    def make_group(self, name: str) -> Group:
        """Make the groups of one sandbox.

        Raises:
            CgroupError: The kernel refused, or the name is taken.
        """
        directories = {hierarchy: root / name for hierarchy, root in self._roots.items()}
        made: list[Path] = []
        try:
            for directory in directories.values():
                _make_directory(directory)
                made.append(directory)
            return Group(directories, self._freezing)
        except CgroupError:
            for directory in made:
                directory.rmdir()
            raise

    def protect(self, pid: int) -> None:
        """Put a process of the control plane into a group whose CPU share functions cannot take away.

        Raises:
            CgroupError: The kernel refused.
        """
        hierarchy = self._layout.of("cpu")
        if hierarchy is None:
            return
        root = self._roots[hierarchy]
        control = root.with_name(root.name + _CONTROL_SUFFIX)
        if not control.exists():
            _make_directory(control)
            weight = (
                ("cpu.weight", "1000") if hierarchy.unified else ("cpu.shares", str(_CONTROL_CPU_MILLIS * 1024 // 1000))
            )
            files.write(control / weight[0], weight[1])
        files.write(control / "cgroup.procs", str(pid))

    def close(self) -> None:
        """Remove everything; members of the control plane's group go back to where they came from.

        Raises:
            CgroupError: A process in a sandbox's group would not die, or one of the control plane cannot go back. What
                can be removed has been.
        """
        self._freezing.shutdown()
        roots, self._roots = self._roots, {}
        try:
            for hierarchy, root in roots.items():
                control = root.with_name(root.name + _CONTROL_SUFFIX)
                if control.exists():
                    _move_processes(control, _home_of(hierarchy, root))
        finally:
            self.sweep()
        for hierarchy, root in roots.items():
            if hierarchy.unified:
                _fold_leaf(root.parent, hierarchy)

    def sweep(self) -> None:
        """Kill and remove what bears the owner's mark, wherever in the hierarchies a former process made it.

        Raises:
            CgroupError: A process in it would not die within some seconds.
        """
        deadline = time.monotonic() + _SWEEP_TIMEOUT_S
        # Through the freezer first: what was killed while it was frozen leaves the other groups when it thaws.
        for hierarchy in sorted(self._layout.hierarchies, key=lambda found: FREEZER not in found.controllers):
            names = {self._name, self._name + _CONTROL_SUFFIX}
            for directory in list(_find(hierarchy.mount, names, _MAX_SWEEP_DEPTH)):
                if directory.name == self._name:
                    _remove(directory, deadline)
                elif not (directory / "cgroup.procs").read_text():
                    directory.rmdir()  # with members it is in use: those are the control plane, not sandboxes


def _home_of(hierarchy: Hierarchy, root: Path) -> Path:
    home = hierarchy.own if hierarchy.own.exists() else root.parent
    return leaf if (leaf := home / LEAF).exists() else home


def _make_directory(path: Path) -> None:
    try:
        path.mkdir()
    except OSError as error:
        raise CgroupError(f"making of {path}: {error.strerror}") from error


def _enable_controllers(directory: Path, hierarchy: Hierarchy) -> None:
    """Let groups below `directory` have the controllers (version 2)."""
    control = directory / "cgroup.subtree_control"
    wanted = hierarchy.switched - set(control.read_text().split())
    if not wanted:
        return
    value = " ".join(f"+{name}" for name in sorted(wanted))
    try:
        files.write(control, value)
    except CgroupError as error:
        if _errno_of(error) != errno.EBUSY:
            raise
        # Only the machine's real root may have both processes and controllers; in a container they move to a leaf.
        leaf = directory / LEAF
        leaf.mkdir(exist_ok=True)
        _move_processes(directory, leaf)
        files.write(control, value)


def _fold_leaf(directory: Path, hierarchy: Hierarchy) -> None:
    """Undo the move to a leaf, unless another agent's groups still need the controllers."""
    leaf = directory / LEAF
    if not leaf.exists():
        return
    try:
        files.write(directory / "cgroup.subtree_control", " ".join(f"-{name}" for name in sorted(hierarchy.switched)))
    except CgroupError as error:
        if _errno_of(error) == errno.EBUSY:
            return
        raise
    _move_processes(leaf, directory)
    leaf.rmdir()


def _move_processes(source: Path, target: Path) -> None:
    """Move all processes of a group, also those that fork while they are being moved.

    Raises:
        CgroupError: The kernel refused, or new ones came faster than they could be moved.
    """
    for _ in range(_MOVE_ROUNDS):
        pids = (source / "cgroup.procs").read_text().split()
        if not pids:
            return
        for pid in pids:
            try:
                files.write(target / "cgroup.procs", pid)
            except CgroupError as error:
                if _errno_of(error) != errno.ESRCH:  # it has ended meanwhile
                    raise
    raise CgroupError(f"{source} has new processes after {_MOVE_ROUNDS} rounds of moving them to {target}")


def _errno_of(error: CgroupError) -> int | None:
    return error.__cause__.errno if isinstance(error.__cause__, OSError) else None


def _find(directory: Path, names: set[str], depth: int) -> Iterator[Path]:
    with os.scandir(directory) as entries:
        children = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in children:
        if name in names:
            yield directory / name
        elif depth > 1:
            try:
                yield from _find(directory / name, names, depth - 1)
            except FileNotFoundError:
                continue  # removed by its owner meanwhile


def _remove(directory: Path, deadline: float) -> None:
    try:
        remove_group(directory, deadline)
    except OSError as error:
        raise CgroupError(f"removal of {directory}: {error}") from error
