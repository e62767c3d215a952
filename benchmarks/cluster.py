"""A cluster of one node for a measurement, started as a user starts it, and its processes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import arguments, children, descendants, name
from lambent_supervisor.data_directory import DataDirectory

_UP_TIMEOUT_S = 60
_DOWN_TIMEOUT_S = 30


@dataclass(frozen=True)
class BenchmarkCluster:
    """A running cluster.

    Attributes:
        data_dir: Its data directory.
    """

    data_dir: Path

    @property
    def supervisor(self) -> int:
        """The process above all of its parts."""
        holder = DataDirectory(self.data_dir).holder()
        assert holder is not None, f"no supervisor runs for {self.data_dir}"
        return holder.pid

    def parts(self, word: str) -> list[int]:
        """Give the supervisor's children of a name: the scheduler, or the agents."""
        return [pid for pid in children(self.supervisor) if word in arguments(pid)]

    def zygotes(self) -> list[int]:
        """Give the fork servers of all agents, one for each interpreter."""
        return [pid for agent in self.parts("agent") for pid in children(agent) if name(pid) == "lambent-zygote"]

    def environments(self) -> dict[int, list[list[int]]]:
        """Give the environments of functions below each zygote that has some.

        Returns:
            By zygote, the processes of each: its reaper, the runtime and what that started. The agent also keeps blank
            sandboxes, with a runtime that waits; those have no code yet and are left out.
        """
        found = {
            zygote: [descendants(reaper) for reaper in children(zygote) if _has_code(reaper)]
            for zygote in self.zygotes()
        }
        return {zygote: environments for zygote, environments in found.items() if environments}

    def sandboxes(self) -> int:
        """Count the sandboxes of all agents, blank or not; quick."""
        return sum(len(children(zygote)) for zygote in self.zygotes())


def _has_code(reaper: int) -> bool:
    try:
        return any(Path(f"/proc/{reaper}/root/var/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended


@contextlib.asynccontextmanager
async def cluster(memory_mib: int, *flags: str) -> AsyncIterator[BenchmarkCluster]:
    """Run a cluster of one node inside the block; `flags` are further ones of `lambent up`."""
    with tempfile.TemporaryDirectory(prefix="lambent-bench-") as directory:
        data_dir = Path(directory) / "data"
        command = [sys.executable, "-m", "lambent"]
        ports = ["--grpc-port", "0", "--http-port", "0", "--nodes", "1", "--memory", str(memory_mib)]
        up = [*command, "up", "--data-dir", str(data_dir), *ports, *flags, "--detach", "--output", "json"]
        await _run(up, _UP_TIMEOUT_S)
        try:
            yield BenchmarkCluster(data_dir)
        finally:
            await _run([*command, "down", "--data-dir", str(data_dir)], _DOWN_TIMEOUT_S)


async def _run(command: list[str], timeout_s: float) -> bytes:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(timeout_s):
        output, _ = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return output
