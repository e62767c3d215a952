"""Percentiles, timed loops and floors of the benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.floors import FloorMissingError, bwrap_command, echo, idle_python_mib, run_ms
from benchmarks.measure import percentile, rate_per_s, sequential_ms
from benchmarks.processes import arguments, children, descendants, name, pss_mib
from benchmarks.sandbox_overhead import sandbox_overhead
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("count", "percent", "expected"),
    [(100, 99, 99), (100, 50, 50), (100, 100, 100), (101, 50, 51), (300, 99, 297), (3, 1, 1), (1, 99, 1), (2, 50, 1)],
)
def test_percentile_is_the_nearest_rank(count: int, percent: int, expected: int) -> None:
    """Of a hundred values the 99th in order is p99, not the largest."""
    assert percentile([float(value) for value in range(count, 0, -1)], percent) == expected


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0]), min_size=1), st.integers(1, 100))
def test_percentile_has_its_share_at_or_below_it(values: list[float], percent: int) -> None:
    """And it is the smallest such value."""
    found = percentile(values, percent)
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_of_nothing_is_refused(values: list[float], percent: int) -> None:
    """A figure that was not measured must not become a number."""
    with pytest.raises(ValueError, match=f"percentile {percent}"):
        percentile(values, percent)


async def test_loops_call_as_often_as_they_say() -> None:
    """Sequential calls are counted, a rate is what ended over the time it took."""
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1

    assert len(await sequential_ms(call, 7)) == calls == 7
    assert await rate_per_s(call, in_flight=3, seconds=0.01) > 0
    assert calls >= 7 + 3


async def test_echo_has_a_rate_and_its_cpu() -> None:
    """The floor of the CPU row is what client and server use."""
    async with echo() as floor:
        assert await floor.call(b"payload") == b"payload"
        rate, cpu_s = await floor.throughput(b"x" * 100, in_flight=50, seconds=0.2)
        assert rate > 0
        assert cpu_s > 0


def test_missing_bubblewrap_is_said(tmp_path: Path) -> None:
    """The row that needs it repeats the reason."""
    with pytest.raises(FloorMissingError, match="bubblewrap is not installed"):
        bwrap_command(sys.executable, search_path=str(tmp_path))


def test_bubblewrap_that_cannot_make_a_sandbox_is_said(tmp_path: Path) -> None:
    """Some machines have it and forbid namespaces."""
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(FloorMissingError, match="bwrap does not run here: No permissions to create new namespace"):
        bwrap_command(sys.executable, search_path=str(tmp_path))


def test_floor_of_a_cold_start_runs_the_interpreter(tmp_path: Path) -> None:
    """In a sandbox, without its site packages."""
    program = tmp_path / "bwrap"
    program.write_text('#!/bin/sh\necho "$@" >"$0.arguments"\n')
    program.chmod(0o755)
    command = bwrap_command(sys.executable, search_path=str(tmp_path))
    assert run_ms(command) > 0
    assert command[-5:] == [sys.executable, "-I", "-S", "-c", "pass"]
    assert "--unshare-all" in (tmp_path / "bwrap.arguments").read_text()


def test_an_idle_interpreter_has_memory_of_its_own() -> None:
    """Its heap alone is more than a MiB."""
    assert 1 < idle_python_mib(sys.executable) < 30


async def test_the_sandbox_is_measured_with_its_protections_and_without() -> None:
    """Each is looked at from outside before it is called; what a filter costs is microseconds."""
    full_ms, bare_ms = await sandbox_overhead()
    assert 0 < bare_ms < 100 * full_ms


def test_an_ended_process_has_nothing() -> None:
    """Environments come and go while they are looked at."""
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert (children(child), descendants(child), arguments(child), pss_mib(child)) == ([], [child], [], 0.0)
    assert name(child) == ""


def test_descendants_are_found_through_every_generation() -> None:
    """A grandchild is below its grandparent."""
    parent = subprocess.Popen(["/bin/sh", "-c", "cat; :"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(b"there\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == b"there\n"  # by the cat, which waits for more
        (below,) = children(parent.pid)
        assert {os.getpid(), parent.pid, below} <= set(descendants(os.getpid()))
        assert pss_mib(below) > 0
    finally:
        parent.communicate()
