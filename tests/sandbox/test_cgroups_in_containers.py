"""Control groups inside a container: somebody else's limits are around ours, and our own group has processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambent_node_agent.cgroups import CgroupError, Layout, Tree
from lambent_node_agent.cgroups.layout import Hierarchy

CPU = Path("/sys/fs/cgroup/cpu")
# Version 2 beside version 1, or alone.
UNIFIED = next(filter(Path.is_dir, (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))))
# A controller that hybrid hosts leave to version 2, under the same rules as memory.
DOMAIN_CONTROLLER = "hugetlb"
NAME = f"test-{os.getpid()}"


@pytest.fixture
def narrow() -> Iterator[Layout]:
    """A version 1 container with a quota of one CPU."""
    if os.geteuid() != 0 or not (CPU / "cpu.cfs_quota_us").exists():
        pytest.skip("needs root and the cpu controller in version 1")
    container = CPU / f"lambent-container-{NAME}"
    container.mkdir()
    (container / "cpu.cfs_quota_us").write_text("100000")
    layout = Layout((Hierarchy(container, container, unified=False, controllers=frozenset({"cpu"})),))
    try:
        yield layout
    finally:
        container.rmdir()


def test_a_function_wider_than_its_container_has_the_containers_quota(narrow: Layout) -> None:
    """Version 1 refuses what version 2 takes as the lesser of the two; the function runs all the same."""
    tree = Tree(narrow, NAME)
    tree.open()
    group = tree.make_group("0")
    [directory] = group._directories.values()
    quota = directory / "cpu.cfs_quota_us"
    group.limit_cpu(500)
    assert quota.read_text() == "10000\n"
    group.limit_cpu(1_700)
    assert quota.read_text() == "-1\n"
    group.limit_cpu(1_000)
    assert quota.read_text() == "20000\n"
    tree.close()


def test_a_quota_that_is_refused_for_another_reason_is_an_error(narrow: Layout) -> None:
    """A function without any quota would not be noticed."""
    tree = Tree(narrow, NAME)
    tree.open()
    group = tree.make_group("0")
    [directory] = group._directories.values()
    (directory / "below").mkdir()
    (directory / "below" / "cpu.cfs_quota_us").write_text("100000")
    with pytest.raises(CgroupError, match="Invalid argument"):
        group.limit_cpu(500)
    tree.close()


@contextlib.contextmanager
def process_in(group: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (group / "cgroup.procs").write_text(str(process.pid))
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def container() -> Iterator[Path]:
    """A version 2 container with a group namespace of its own: what it sees as the root is not the machine's."""
    if os.geteuid() != 0 or DOMAIN_CONTROLLER not in _words(UNIFIED / "cgroup.controllers"):
        pytest.skip("needs root and a controller in version 2")
    was_enabled = DOMAIN_CONTROLLER in _words(UNIFIED / "cgroup.subtree_control")
    (UNIFIED / "cgroup.subtree_control").write_text(f"+{DOMAIN_CONTROLLER}")
    directory = UNIFIED / f"lambent-container-{NAME}"
    directory.mkdir()
    try:
        yield directory
    finally:
        for parent, _names, _files in os.walk(directory, topdown=False):
            os.rmdir(parent)
        if not was_enabled:
            (UNIFIED / "cgroup.subtree_control").write_text(f"-{DOMAIN_CONTROLLER}")


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def tree_in(container: Path, owner: str) -> Tree:
    hierarchy = Hierarchy(container, container, unified=True, controllers=frozenset({DOMAIN_CONTROLLER}))
    return Tree(Layout((hierarchy,)), owner)


def test_a_version_2_container_is_left_as_it_was(container: Path) -> None:
    """Its processes make room for the groups, and come back when the agent ends."""
    with process_in(container) as process:
        tree = tree_in(container, NAME)
        tree.open()
        assert _words(container / "lambent-leaf" / "cgroup.procs") == [str(process.pid)]
        assert DOMAIN_CONTROLLER in _words(container / f"lambent-{NAME}" / "cgroup.subtree_control")
        tree.make_group("0")
        control = container / f"lambent-{NAME}.control"
        control.mkdir()
        (control / "cgroup.procs").write_text(str(process.pid))
        tree.close()
        assert [path.name for path in container.iterdir() if path.is_dir()] == []
        assert _words(container / "cgroup.procs") == [str(process.pid)]


def test_the_last_agent_of_a_container_puts_its_processes_back(container: Path) -> None:
    """The others' groups need the controllers until then."""
    with process_in(container) as process:
        first, second = tree_in(container, f"{NAME}-1"), tree_in(container, f"{NAME}-2")
        first.open()
        second.open()
        first.close()
        assert _words(container / "lambent-leaf" / "cgroup.procs") == [str(process.pid)]
        second.make_group("0")
        second.close()
        assert _words(container / "cgroup.procs") == [str(process.pid)]
        assert not (container / "lambent-leaf").exists()


def test_groups_are_swept_though_the_control_plane_cannot_go_back(container: Path) -> None:
    """Functions do not outlive their agent, whatever else goes wrong at its end."""
    with process_in(container) as process:
        tree = tree_in(container, NAME)
        tree.open()
        control = container / f"lambent-{NAME}.control"
        control.mkdir()
        (control / "cgroup.procs").write_text(str(process.pid))
        (container / "lambent-leaf").rmdir()
        with pytest.raises(CgroupError, match="busy"):
            tree.close()
        assert not (container / f"lambent-{NAME}").exists()
