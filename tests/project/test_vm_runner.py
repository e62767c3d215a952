"""`tools/test_vm.py` with a program in virtme-ng's place: what it hands on, what it says, that it leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

SOURCE = Path(__file__).parents[2] / "tools" / "test_vm.py"
TIMEOUT_S = 30
# As a machine that never ends: virtme-ng with qemu below it.
ENDLESS = "sleep 1000 & echo up; wait"

Machine = Callable[[str], Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Make a checkout whose virtme-ng is this script; gives its runner."""
    if os.geteuid() != 0:
        pytest.skip("needs a PID namespace")

    def make(script: str) -> Path:
        for name, text in {"kernel/boot/vmlinuz-1": "", "bin/virtme-run": f"#!/bin/sh\n{script}\n"}.items():
            (path := tmp_path / ".venv" / name).parent.mkdir(parents=True)
            path.write_text(text)
            path.chmod(0o755)
        (tmp_path / "tools").mkdir()
        (tmp_path / "here.py").touch()
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        return Path(shutil.copy(SOURCE, tmp_path / "tools"))

    return make


def run(runner: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, runner, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended meanwhile
        return []


def consoles(runner: Path) -> list[Path]:
    return list(runner.parents[1].glob("lambent-vm-*.log"))


@pytest.mark.parametrize("status", [0, 1])
def test_status_and_output_are_those_of_pytest(machine: Machine, status: int) -> None:
    """Machine after machine, so that one failure does not hide another."""
    runner = machine(f"echo 3 passed; echo booted >&2; exit {100 + status}")
    done = run(runner)
    assert done.returncode == status
    assert done.stdout.count("3 passed\n") == 2
    assert done.stdout.count(f"pytest's exit status {status}\n") == 2
    assert (done.stderr, consoles(runner)) == ("", [])


def test_machine_that_ends_before_pytest_is_shown(machine: Machine) -> None:
    """A kernel that panics is no test that failed; whoever looks finds the console."""
    runner = machine("echo Kernel panic >&2; exit 1")
    done = run(runner)
    assert done.returncode == 70
    assert "Kernel panic\ntest-vm: v2: it ended without pytest; its console: " in done.stderr
    assert [console.read_text() for console in consoles(runner)] == ["Kernel panic\n"] * 2


def test_flags_are_added_to_the_tests_and_named_tests_replace_them(machine: Machine) -> None:
    """As PYTEST_FLAGS of `make test`."""
    runner = machine('for word; do echo "$word"; done; exit 100')
    added = run(runner, "-k", "peak").stdout
    assert "tests/sandbox " in added
    assert "tests/supervisor/test_doctor.py -k peak\n" in added
    named = run(runner, "here.py::test_peak", "-k", "not this").stdout
    assert "here.py::test_peak -k 'not this'" in named
    assert "tests/sandbox" not in named


def test_the_short_run_boots_version_2_alone(machine: Machine) -> None:
    """As `.ci/run` does, which takes the same flags."""
    runner = machine('for word; do echo "$word"; done; exit 100')
    short = run(runner, "--short", "-v").stdout
    assert "vm_guest v2 " in short
    assert short.count("pytest's exit status 0\n") == 1
    assert "tests/sandbox/test_unified_limits.py" in short
    assert "--short" not in short
    assert " -v\n" in short


def test_machines_that_hang_are_killed_at_the_deadline(machine: Machine) -> None:
    """A run of all tests ends, and says why."""
    runner = machine(ENDLESS)
    runner.write_text(runner.read_text().replace("\nDEADLINE_S = 1200.0", "\nDEADLINE_S = 0.5"))
    done = run(runner)
    assert done.returncode == 75
    assert "v2: it was killed after " in done.stderr
    assert [
        process
        for process in psutil.process_iter()
        if str(runner.with_name("vm_guest")) in " ".join(_command_of(process))
    ] == []


@pytest.fixture
def endless(machine: Machine) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A runner whose machine is up, and the processes below it."""
    with subprocess.Popen([sys.executable, machine(ENDLESS)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process, psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_machine_whose_runner_was_stopped(
    endless: tuple[subprocess.Popen[str], list[psutil.Process]], number: signal.Signals
) -> None:
    """A forgotten qemu takes two cores for ever."""
    process, below = endless
    assert len(below) == 3
    process.send_signal(number)
    assert process.wait(TIMEOUT_S) in (130, -number)
    assert psutil.wait_procs(below, TIMEOUT_S)[1] == []
