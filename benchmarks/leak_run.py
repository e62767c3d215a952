"""Makes and ends thousands of environments, and compares what there is before and after; see `--help`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.floors import bwrap_command, run_ms
from benchmarks.leaks import INTERFACES, RULES, count, count_of_machine, resident_kib
from benchmarks.measure import percentile

WARM_UP = 100
"""Environments before the first count: threads, slots and caches are made once and kept."""
FLAT = 1.5
"""Any thousand may take this many times as long as the first, by the median: the machine is shared."""
_PYTHON = os.path.realpath(sys.executable)
_TURNS = 10
_FLOORS_OF_A_TURN = 2
_SETTLE_S = 0.1
_LOOKS = 20
_LINE_BYTES = 1 << 20
_ORDER_TIMEOUT_S = 600.0
_END_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Worker:
    """The process that makes the environments."""

    process: asyncio.subprocess.Process
    state: Path
    owner: str

    async def order(self, verb: str, number: int) -> list[float]:
        """Have it carry out an order of `benchmarks.leak_worker`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{verb} {number}\n".encode())
        durations: list[float] = json.loads(await self.answer())
        return durations

    async def answer(self) -> bytes:
        """Wait for its next line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(_ORDER_TIMEOUT_S):
            line = await self.process.stdout.readline()
        assert line, "the worker has ended"
        return line

    async def count(self) -> dict[str, int]:
        """Count what it has of the machine, once that stays the same: a blank sandbox is ready before all of it is."""
        before: dict[str, int] = {}
        for _ in range(_LOOKS):
            counted = count(self.process.pid, self.state, self.owner)
            if counted == before:
                break
            before = counted
            await asyncio.sleep(_SETTLE_S)
        return before


@contextlib.asynccontextmanager
async def worker() -> AsyncIterator[Worker]:
    """Run a worker inside the block; it ends by itself, as an agent does."""
    with tempfile.TemporaryDirectory(prefix="lambent-leak-") as directory:
        owner = f"leak-{os.getpid()}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.leak_worker",
            directory,
            owner,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
        )
        running = Worker(process, Path(directory) / "state", owner)
        try:
            await running.answer()
            yield running
        finally:
            assert process.stdin is not None
            process.stdin.close()
            async with asyncio.timeout(_END_TIMEOUT_S):
                status = await process.wait()
        assert status == 0, f"the worker ended with {status}"
        left = [str(path) for path in running.state.rglob("*")]
        assert not left, f"left after its end: {left}"


@dataclass
class Batch:
    """Times of some environments, and of the floor in between, in milliseconds."""

    ready_ms: list[float]
    floor_ms: list[float]
    ended: bool = True
    """Each before the next one was made: the others follow so close that they empty the pool, and do not compare."""

    @property
    def ratio(self) -> float:
        """Median over median."""
        return percentile(self.ready_ms, 50) / percentile(self.floor_ms, 50)


@dataclass
class Result:
    """What a leak run saw.

    Attributes:
        counts: What the agent had before the run and after it; then after many had been alive at once, and once more,
            since an agent keeps for as many sandboxes as it had at once what it uses again.
        machine: What the whole machine had at these moments.
        resident: Anonymous memory in KiB at these moments.
        batches: What making took, by the name of the batch.
    """

    counts: list[dict[str, int]]
    machine: list[dict[str, int]]
    resident: list[dict[str, int]]
    batches: dict[str, Batch]

    @property
    def leaked(self) -> dict[str, int]:
        """What there is more of at the end than at the beginning."""
        return _more(self.counts)

    @property
    def leaked_on_machine(self) -> dict[str, int]:
        """The same of what an agent makes outside of its namespaces; where others do so as well it is theirs, too."""
        return _more([{what: look[what] for what in (INTERFACES, RULES)} for look in self.machine])

    @property
    def growth(self) -> float:
        """How many times as long the slowest batch took as the first, by medians beside the floor of the same time."""
        first, *others = (batch.ratio for batch in self.batches.values() if batch.ended)
        return max(others) / first


def _more(looks: list[dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for before, after in zip(looks[::2], looks[1::2], strict=True):
        found |= {what: after[what] - before[what] for what in before if after[what] > before[what]}
    return found


class LeakRun:
    """One run.

    Args:
        running: Makes the environments.
        floor: A command whose time tells how busy the machine is at a moment.
    """

    def __init__(self, running: Worker, floor: list[str]) -> None:
        self._running = running
        self._floor = floor
        self.result = Result([], [], [], {})

    async def warm_up(self, count: int) -> None:
        """Have the agent make what it makes once and keeps."""
        await self._running.order("hold", count)
        await self._running.order("release", count)
        await self._look()

    async def make_and_end(self, environments: int, batch: int) -> None:
        """Make and end environments, one after the other."""
        for made in range(0, environments, batch):
            await self._batch("live", f"{made + 1:,} to {made + batch:,}", batch)
        await self._look()

    async def keep_alive(self, alive: int, batch: int, time: str) -> None:
        """Make many that live at once, call each, and make others beside them; then end all."""
        await self._batch("hold", f"1 to {alive:,}, kept alive, the {time} time", alive)
        await self._running.order("call", alive)
        await self._batch("live", f"{batch:,} beside them, the {time} time", batch)
        await self._running.order("release", alive)
        await self._look()

    async def _batch(self, verb: str, title: str, count: int) -> None:
        click.echo(f"{title} ...", err=True)
        found = Batch([], [], ended=verb == "live")
        for turn in range(_TURNS):
            found.floor_ms += [await asyncio.to_thread(run_ms, self._floor) for _ in range(_FLOORS_OF_A_TURN)]
            share = count * (turn + 1) // _TURNS - count * turn // _TURNS
            found.ready_ms += await self._running.order(verb, share)
        self.result.batches[title] = found

    async def _look(self) -> None:
        self.result.counts.append(await self._running.count())
        self.result.machine.append(count_of_machine())
        self.result.resident.append(resident_kib(self._running.process.pid))


async def leak_run(environments: int, batch: int, alive: int, warm_up: int) -> Result:
    """Make and end so many environments, a batch at a time; then twice have `alive` of them at once."""
    async with worker() as running:
        run = LeakRun(running, bwrap_command(_PYTHON))
        await run.warm_up(warm_up)
        await run.make_and_end(environments, batch)
        for time in ("first", "second") if alive else ():
            await run.keep_alive(alive, batch, time)
    return run.result


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[object, ...]]) -> Table:
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(f"{value:,.2f}" if isinstance(value, float) else f"{value}" for value in row))
    return table


@click.command()
@click.option("--environments", type=click.IntRange(min=1), default=5_000, show_default=True, help="Made and ended.")
@click.option("--batch", type=click.IntRange(min=1), default=1_000, show_default=True, help="As many are a line.")
@click.option("--alive", type=click.IntRange(min=0), default=1_000, show_default=True, help="At once, after that.")
def main(environments: int, batch: int, alive: int) -> None:
    """Make and end environments, and look for what they leave; status 1 when something leaks or gets slower.

    Needs root. What is counted of the whole machine is others' as well: run it where nothing else makes sandboxes.
    """
    result = asyncio.run(leak_run(environments, batch, alive, WARM_UP))
    console = Console(width=None if sys.stdout.isatty() else 140)
    moments = ["before", "after", f"after {alive:,} at once", "and once more"][: len(result.counts)]
    for title, looks in (
        ("the agent's", result.counts),
        ("the whole machine's", result.machine),
        ("anonymous memory, KiB", result.resident),
    ):
        console.print(_table(title, [title, *moments], [(what, *(look[what] for look in looks)) for what in looks[0]]))
    rows = [
        (name, percentile(made.ready_ms, 50), percentile(made.ready_ms, 99), percentile(made.floor_ms, 50), made.ratio)
        for name, made in result.batches.items()
    ]
    console.print(_table("until ready, ms", ["environments", "p50", "p99", "bwrap p50", "ratio"], rows))
    leaked = result.leaked | result.leaked_on_machine
    if leaked or result.growth > FLAT:
        console.print(f"leaked: {leaked}; the slowest batch took {result.growth:.2f} times as long as the first")
        sys.exit(1)


if __name__ == "__main__":
    main()
