"""A cluster of one node for a measurement, started as a user starts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import command_line, descendants

_UP_TIMEOUT_S = 60
_DOWN_TIMEOUT_S = 30


@dataclass(frozen=True)
class BenchmarkCluster:
    """A running cluster.

    Attributes:
        data_dir: Its data directory.
        supervisor_pid: The process above all of its parts.
    """

    data_dir: Path
    supervisor_pid: int

    def processes(self) -> dict[int, str]:
        """Give the command line of each of its processes."""
        return {pid: command_line(pid) for pid in descendants(self.supervisor_pid)}


@contextlib.asynccontextmanager
async def cluster(memory_mib: int) -> AsyncIterator[BenchmarkCluster]:
    """Run a cluster of one node inside the block."""
    with tempfile.TemporaryDirectory(prefix="lambent-bench-") as directory:
        data_dir = Path(directory) / "data"
        command = [sys.executable, "-m", "lambent"]
        ports = ["--grpc-port", "0", "--http-port", "0", "--nodes", "1", "--memory", str(memory_mib)]
        up = [*command, "up", "--data-dir", str(data_dir), *ports, "--detach", "--output", "json"]
        json.loads(await _run(up, _UP_TIMEOUT_S))
        try:
            yield BenchmarkCluster(data_dir, _supervisor_pid(data_dir))
        finally:
            await _run([*command, "down", "--data-dir", str(data_dir)], _DOWN_TIMEOUT_S)


async def _run(command: list[str], timeout_s: float) -> bytes:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(timeout_s):
        output, _ = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return output


def _supervisor_pid(data_dir: Path) -> int:
    """Find the process that was started for this data directory and is nobody's child here."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = command_line(int(entry.name))
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if str(data_dir) in words and " up " in f" {words} " and str(data_dir) not in command_line(parent):
                return int(entry.name)
    raise SystemExit(f"no supervisor runs for {data_dir}")
