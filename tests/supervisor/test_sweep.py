"""What a killed supervisor left is removed, and nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambent_supervisor.data_directory import DataDirectory, LockedDataDirectory
from lambent_supervisor.processes import ProcessId
from lambent_supervisor.sweep import ProcessTable, marked_groups, sweep

TIMEOUT_S = 20


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DataDirectory]:
    with LockedDataDirectory(DataDirectory(tmp_path / "data")) as locked:
        yield locked.directory


@pytest.fixture
def process() -> Iterator[ProcessId]:
    """A process that waits for a signal."""
    command = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        identity = ProcessId.of(popen.pid)
        assert identity is not None
        yield identity
        popen.kill()


def test_a_recorded_process_is_killed(directory: DataDirectory, process: ProcessId) -> None:
    """It holds the files and ports that the next one needs."""
    ProcessTable(directory.processes).record("etcd", process)
    assert sweep(directory).processes == 1
    assert process.wait_until_ended(TIMEOUT_S)
    assert not directory.processes.exists()


def test_a_stranger_with_a_recorded_pid_is_left_alone(directory: DataDirectory, process: ProcessId) -> None:
    """Pids are used again; start times tell."""
    table = ProcessTable(directory.processes)
    table.record("etcd", ProcessId(process.pid, process.start_ticks - 1))
    assert sweep(directory).processes == 0
    assert process.is_running()


def test_a_record_of_an_earlier_boot_is_ignored(directory: DataDirectory, process: ProcessId) -> None:
    """Start times count from the boot, so after a reboot they may be met again."""
    line = f"{process.pid} {process.start_ticks} 00000000-0000-0000-0000-000000000000"
    directory.processes.write_text(json.dumps({"etcd": line}))
    assert sweep(directory).processes == 0
    assert process.is_running()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"etcd": 4}', '{"etcd": "1"}', '{"etcd": "x y z"}'])
def test_a_damaged_record_is_no_obstacle(directory: DataDirectory, content: str) -> None:
    """The machine may have lost power while it was written."""
    directory.processes.write_text(content)
    assert sweep(directory).processes == 0


def test_marked_control_groups_go_with_their_processes(directory: DataDirectory, process: ProcessId) -> None:
    """Environments outlive an agent that is killed; nested and frozen ones too."""
    mark = directory.mark()
    assert mark is not None
    root = next(
        path for path in map(Path, ("/sys/fs/cgroup/pids", "/sys/fs/cgroup")) if (path / "cgroup.procs").exists()
    )
    group, stranger = root / f"lambent-{mark}-1", root / f"lambent-test-{mark}-1"
    inner = group / "environment"
    inner.mkdir(parents=True)
    stranger.mkdir()
    try:
        (inner / "cgroup.procs").write_text(str(process.pid))
        assert group in set(marked_groups(mark))
        assert sweep(directory).groups >= 1
        assert process.wait_until_ended(TIMEOUT_S)
        assert not group.exists()
        assert stranger.exists()
    finally:
        stranger.rmdir()


def test_a_mount_in_the_data_directory_stays(directory: DataDirectory) -> None:
    """It is the operator's: a store may have a disk of its own."""
    subprocess.run(["mount", "-t", "tmpfs", "lambent-test", directory.etcd], check=True)
    try:
        sweep(directory)
        assert directory.etcd.is_mount()
    finally:
        subprocess.run(["umount", directory.etcd], check=True)


def test_a_signal_meets_the_process_or_nobody(process: ProcessId) -> None:
    """Between reading a pid and killing it, it may become another's; a pidfd may not."""
    assert not ProcessId(process.pid, process.start_ticks + 1).send(signal.SIGKILL)
    assert process.is_running()
    assert process.send(signal.SIGKILL)
