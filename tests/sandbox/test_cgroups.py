"""Where the controllers are is read from procfs; groups are made, used again and swept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lambent_node_agent.cgroups import CgroupError, Group, Tree, parse_layout, read_layout
from lambent_node_agent.cgroups.controllers import CPU_PERIOD_US, MemoryV2, quota_us
from lambent_node_agent.cgroups.layout import FREEZER, Hierarchy

V1_MOUNTS = """\
27 1 254:0 / / rw - ext4 /dev/vda rw
30 27 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 27 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 27 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 27 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 27 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
V1_GROUPS = "4:memory:/a/b\n3:cpu,cpuacct:/c\n2:pids:/\n1:name=systemd:/x\n0::/y\n"


@pytest.fixture
def owner() -> Iterator[str]:
    """A mark of this test's own; what bears it is gone afterwards."""
    if os.geteuid() != 0:
        pytest.skip("control groups need root")
    mark = f"test-{os.getpid()}"
    yield mark
    Tree(read_layout(), mark).sweep()


def test_a_hybrid_host_is_used_through_version_1() -> None:
    """Systemd's hybrid mode mounts version 2 without controllers."""
    layout = parse_layout(V1_MOUNTS, V1_GROUPS, lambda _mount: {"hugetlb"})
    memory, cpu, pids = (layout.of(name) for name in ("memory", "cpu", "pids"))
    assert memory is not None
    assert memory.own == Path("/sys/fs/cgroup/memory/a/b")
    assert cpu is not None
    assert cpu.own == Path("/sys/fs/cgroup/cpu,cpuacct/c")
    assert pids is not None
    assert pids.own == pids.mount
    assert not any(hierarchy.unified for hierarchy in layout.hierarchies)


def test_a_unified_host_is_one_hierarchy() -> None:
    """All controllers are version 2's."""
    mounts = "30 27 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
    layout = parse_layout(mounts, "0::/system.slice/x\n", lambda _mount: {"cpu", "memory", "pids", "io"})
    [hierarchy] = layout.hierarchies
    assert hierarchy.unified
    assert hierarchy.controllers == {"cpu", "memory", "pids", "freezer"}
    assert hierarchy.switched == {"cpu", "memory", "pids"}
    assert hierarchy.own == Path("/sys/fs/cgroup/system.slice/x")


def test_a_host_divided_between_the_versions_uses_each_where_it_is() -> None:
    """A kernel started with `cgroup_no_v1=memory`."""
    mounts = V1_MOUNTS.replace("rw,memory", "rw,blkio")
    layout = parse_layout(mounts, V1_GROUPS, lambda _mount: {"memory"})
    memory, cpu = layout.of("memory"), layout.of("cpu")
    assert memory is not None
    assert memory.unified
    assert cpu is not None
    assert not cpu.unified


def test_the_freezer_is_version_1s_where_it_is_mounted() -> None:
    """A sandbox enters its group there at less cost; version 2's is taken where its controllers are in use."""
    with_freezer = V1_MOUNTS + "35 27 0:31 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
    for mounts, controllers, unified in (
        (with_freezer, {"memory"}, False),
        (V1_MOUNTS.replace("rw,memory", "rw,blkio"), {"memory"}, True),
        (V1_MOUNTS, set(), None),
    ):
        layout = parse_layout(mounts, V1_GROUPS, lambda _mount, controllers=controllers: controllers)  # type: ignore[misc] # mypy#15459
        found = layout.of("freezer")
        assert (None if found is None else found.unified) is unified
        assert Tree(layout, "x").can_freeze is (unified is not None)


def test_a_container_without_its_hosts_tree_starts_at_the_mount() -> None:
    """What procfs says of the process's place may lie outside of what is mounted."""
    mounts = "30 27 0:26 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    inside = parse_layout(mounts, "4:memory:/docker/1/sub\n", lambda _mount: set())
    outside = parse_layout(mounts, "4:memory:/docker/2\n", lambda _mount: set())
    assert [layout.hierarchies[0].own.name for layout in (inside, outside)] == ["sub", "memory"]


def test_a_missing_controller_is_named() -> None:
    """The operator is told which limits are not enforced."""
    layout = parse_layout(V1_MOUNTS.replace("rw,pids", "rw,freezer"), V1_GROUPS, lambda _mount: set())
    assert Tree(layout, "x").missing == ("pids",)
    layout = parse_layout(V1_MOUNTS, V1_GROUPS, lambda _mount: set())
    assert Tree(layout, "x").missing == ("freezer",)


@pytest.mark.parametrize(("cpu_millis", "share"), [(72, 0.072), (1000, 1.0), (5788, 5.788), (10, 0.05)])
def test_the_quota_is_the_share_of_a_period(cpu_millis: int, share: float) -> None:
    """Down to the kernel's least quota of one millisecond."""
    assert quota_us(cpu_millis) / CPU_PERIOD_US == pytest.approx(share, rel=0.01)


def open_tree(owner: str) -> Tree:
    tree = Tree(read_layout(), owner)
    tree.open()
    return tree


def test_a_group_holds_limits_and_is_as_new_after_a_reset(owner: str) -> None:
    """Groups are used again, for any size of function, unless no new peak can be started (v2 before Linux 6.12)."""
    tree = open_tree(owner)
    group = tree.make_group("0")
    for memory_mib in (128, 10_240, 256):
        group.limit_memory(memory_mib)
        group.limit_cpu(500)
        group.limit_cpu(72)
        group.share_cpu(72)
    group.limit_processes(10)
    if group.reusable:
        group.reset()
        assert (group.peak_memory_bytes(), group.oom_kills()) == (0, 0)
    group.remove()
    tree.close()


def test_a_process_enters_by_writing_zero(owner: str) -> None:
    """How a sandbox enters its groups itself, in every hierarchy."""
    tree = open_tree(owner)
    group = tree.make_group("0")
    entrances = group.open_entrances()
    code = "import os, sys\nfor fd in sys.argv[1:]: os.write(int(fd), b'0')\nprint(flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", code, *map(str, entrances)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=entrances) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for directory in group._directories.values():
            assert (directory / "cgroup.procs").read_text() == f"{process.pid}\n"
        process.kill()
        assert process.wait() == -9
    for fd in entrances:
        os.close(fd)
    tree.close()


def test_a_sweep_kills_and_removes_what_bears_the_mark(owner: str) -> None:
    """A dead agent's groups, with whatever still runs there, wherever its groups were."""
    tree = open_tree(owner)
    group = tree.make_group("7")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        for directory in group._directories.values():
            (directory / "cgroup.procs").write_text(str(process.pid))
        Tree(read_layout(), owner).sweep()
        assert process.wait() == -9
    assert not any(directory.exists() for directory in group._directories.values())


def test_the_control_plane_gets_a_group_of_its_own(owner: str) -> None:
    """A function that spins must not take the CPU of the agent's lease."""
    tree = open_tree(owner)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        tree.protect(process.pid)
        assert f"lambent-{owner}.control" in Path(f"/proc/{process.pid}/cgroup").read_text()
        tree.close()
        assert f"lambent-{owner}" not in Path(f"/proc/{process.pid}/cgroup").read_text()
        process.kill()


def test_a_refusal_names_file_and_value(owner: str) -> None:
    """Whoever reads the log knows what was tried."""
    tree = open_tree(owner)
    group = tree.make_group("0")
    with pytest.raises(CgroupError, match=r"'x+'.*pids\.max"):
        group.limit_processes("xx")  # type: ignore[arg-type] # what the kernel does not take
    with pytest.raises(CgroupError, match="File exists"):
        tree.make_group("0")
    tree.close()


def test_version_2_memory_without_a_new_peak_is_not_used_again(tmp_path: Path) -> None:
    """Before Linux 6.12 a peak stays: the group is removed instead. Control files are plain files here."""
    for name, text in {"memory.max": "", "memory.current": "4096\n", "memory.events": "oom 1\noom_kill 3\n"}.items():
        (tmp_path / name).write_text(text)
    memory = MemoryV2(tmp_path)
    assert not memory.reusable
    assert (memory.peak_bytes(), memory.oom_kills()) == (4096, 3)
    memory.limit(1 << 20)
    assert (tmp_path / "memory.max").read_text() == "1048576"
    memory.close()


def unified_group(directory: Path, *controllers: str) -> Group:
    """A group of version 2 whose control files are plain files, so that it is never empty and cannot be removed."""
    for name, text in {"memory.max": "", "memory.current": "4096\n", "memory.events": "oom_kill 0\n"}.items():
        (directory / name).write_text(text)
    hierarchy = Hierarchy(directory, directory, True, frozenset({"memory", *controllers}))
    with ThreadPoolExecutor(1) as freezing:
        return Group({hierarchy: directory}, freezing)


def test_a_group_that_cannot_be_opened_keeps_nothing_open(tmp_path: Path) -> None:
    """When descriptors run out, each attempt would take some of those that come free."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(CgroupError, match=r"cgroup\.freeze"):
        unified_group(tmp_path, FREEZER)
    assert os.listdir("/proc/self/fd") == before


def test_a_group_that_could_not_be_removed_is_not_used_again(tmp_path: Path) -> None:
    """It has closed what it needs for its limits."""
    group = unified_group(tmp_path)
    assert not group.reusable
    with pytest.raises(CgroupError, match="removal"):
        group.remove()
    assert not group.reusable


def test_memory_is_taken_back_while_the_group_is_removed(tmp_path: Path) -> None:
    """By another thread: the environment has just been stopped."""
    group = unified_group(tmp_path)
    current = tmp_path / "memory.current"
    current.unlink()
    os.mkfifo(current)
    with ThreadPoolExecutor(1) as threads:
        reclaiming = threads.submit(group.reclaim_memory, 1 << 20)
        with current.open("w") as read_by_the_thread:
            with pytest.raises(CgroupError):
                group.remove()
            (tmp_path / "later").write_text("1024\n")
            (tmp_path / "later").rename(current)
            read_by_the_thread.write("4096\n")
        assert reclaiming.result(10) == 3072
