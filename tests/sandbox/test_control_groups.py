"""A control group goes with whatever runs in it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambent_common.control_groups import remove_group

ROOTS = [Path("/sys/fs/cgroup", name) for name in ("pids", "freezer", "unified", "")]
TREE = (
    "import os, sys, time\nopen(sys.argv[1], 'w').write('0')\nos.fork()\nos.fork()\nprint(flush=True)\ntime.sleep(1000)"
)


# sys/ptrace.h
PTRACE_TRACEME = 0
PTRACE_CONT = 7
PTRACE_SETOPTIONS = 0x4200
PTRACE_O_TRACEEXIT = 0x40


@pytest.fixture(params=ROOTS, ids=lambda root: root.name)
def group(request: pytest.FixtureRequest) -> Iterator[Path]:
    if os.geteuid() != 0 or not (request.param / "cgroup.procs").exists():
        pytest.skip("needs root and this hierarchy")
    directory: Path = request.param / f"lambent-test-{os.getpid()}"
    directory.mkdir()
    yield directory
    remove_group(directory, time.monotonic() + 5)


def test_processes_of_nested_groups_are_killed(group: Path) -> None:
    """Versions 1 and 2, and processes that were stopped for good."""
    (group / "a" / "b").mkdir(parents=True)
    procs = group / "a" / "b" / "cgroup.procs"
    command = [sys.executable, "-c", TREE, str(procs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        assert len(procs.read_text().split()) == 4
        if (group / "freezer.state").exists():
            (procs.parent / "freezer.state").write_text("FROZEN")
        remove_group(group, time.monotonic() + 10)
        assert process.wait() == -9
    assert not group.exists()
    remove_group(group, time.monotonic())


def test_a_group_that_cannot_go_is_an_error(group: Path) -> None:
    """Nobody may take it for empty."""
    process = os.fork()
    if process == 0:
        _ptrace(PTRACE_TRACEME, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(process, 0)
    _ptrace(PTRACE_SETOPTIONS, process, PTRACE_O_TRACEEXIT)  # even killed, it stays until its tracer lets it go
    (group / "cgroup.procs").write_text(str(process))
    try:
        with pytest.raises(OSError, match="busy"):
            remove_group(group, time.monotonic() - 1)
        _, status = os.waitpid(process, 0)
        assert os.WIFSTOPPED(status)
    finally:
        _ptrace(PTRACE_CONT, process, 0)
        os.waitpid(process, 0)


def _ptrace(request: int, process: int, data: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(ctypes.c_long(request), process, None, ctypes.c_void_p(data)) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def test_nobody_removes_the_group_that_he_is_in(group: Path) -> None:
    """It would kill whoever sweeps."""
    code = "import sys, time, pathlib\nfrom lambent_common.control_groups import remove_group\n"
    code += "g = pathlib.Path(sys.argv[1])\n(g / 'cgroup.procs').write_text('0')\nremove_group(g, time.monotonic())\n"
    subprocess.run([sys.executable, "-c", code, str(group)], check=True)
    assert group.exists()
