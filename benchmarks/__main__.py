"""`make bench`: every figure beside its floor, interleaved and repeated in one run, as a table and as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console

from benchmarks.bounds import (
    IDLE_ENVIRONMENTS,
    MIN_ENVIRONMENTS,
    idle_row,
    memory_rows,
    merged_rows,
    snap_start_row,
    timed_rows,
)
from benchmarks.cluster import cluster
from benchmarks.core import AZURE_8H, CORE_STEPS, core_rows
from benchmarks.floors import (
    Echo,
    FloorMissingError,
    bwrap_burst_ms,
    bwrap_command,
    bwrap_rate,
    echo,
    idle_python_mib,
    run_ms,
)
from benchmarks.invocations import BURST, EVENT, FULL_MIB, Suite
from benchmarks.load_generator import load_generator_row
from benchmarks.measure import percentile
from benchmarks.merging import can_merge, merging_kernel, wait_until_merged
from benchmarks.rows import Row, as_json, as_table
from benchmarks.sandbox_overhead import sandbox_overhead
from benchmarks.sandbox_rate import sandbox_rate
from benchmarks.snap_start import SnapStart, snap_start
from lambent import AsyncClient

_MEMORY_MIB = 262_144
"""Declared, not present: 100 environments of 1,769 MB are to fit, and none of them touches its memory."""

_ENVIRONMENT_COUNTS = (1, 10, 100)
_FUNCTION_COUNTS = (1, 100, 1_000)
_STEPS_OF_A_ROUND = 7

_FILLED_AT_ONCE = 40
"""Of the idle environments: a busy machine cannot start two hundred while all of them sleep."""

_MERGED_WITHIN_S = 300.0
"""The kernel reads two million pages some five times until it has found all that are equal."""

_SUSTAINED_S = 10.0
_VERSIONS = 8
"""Each takes two inits of a second: its own, and that of the environment that is prepared after its call."""


class Progress:
    """Says on standard error what is measured now, and how much there is."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._step = 0
        self._start = time.monotonic()

    def begin(self, step: str) -> None:
        """Say what comes next."""
        self._step += 1
        click.echo(f"{time.monotonic() - self._start:5.0f} s  {self._step:2}/{self._steps}  {step} ...", err=True)


@dataclass
class Measurement:
    """What was measured.

    Attributes:
        rows: The lines of the table.
        python: The interpreter of the zygote, which bubblewrap runs for the floor of a cold start.
        bwrap_ms: Median of that floor; None when it could not be taken.
        cold_phases_ms: Median of each phase of a cold start, by name.
    """

    rows: list[Row] = field(default_factory=list)
    python: str = ""
    bwrap_ms: float | None = None
    cold_phases_ms: dict[str, float] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """Say what the cold start is compared with, and where its time goes."""
        if not self.python:
            return ""
        took = "was not measured" if self.bwrap_ms is None else f"takes {self.bwrap_ms:.2f} ms (p50)"
        phases = ", ".join(f"{phase} {median_ms:.2f}" for phase, median_ms in self.cold_phases_ms.items())
        return (
            f"Floor of a cold start: bwrap --unshare-all {self.python} -I -S -c pass, which {took}.\n"
            f"Phases of a cold start, p50 of each in ms: {phases}; the rest is the call's own."
        )


@click.command()
@click.option("--rounds", type=click.IntRange(1, 50), default=3, show_default=True, help="Repetitions, interleaved.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here too."
)
@click.option("--scaling/--no-scaling", default=True, show_default=True, help="Also measure cost as work grows.")
@click.option(
    "--only",
    type=click.Choice(["cluster", "core"]),
    help="core: the scheduler's decisions and the simulator alone, without root and in half a minute.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, file_okay=False),
    default=AZURE_8H,
    help="The Azure sample of 8 h, for the simulator.  [default: ../shared/traces/azure2019-500-8h]",
)
def main(rounds: int, json_path: Path | None, only: str | None, trace: Path, *, scaling: bool) -> None:
    """Measure Lambent against floors taken in the same run; status 1 when a bound is missed."""
    found = Measurement() if only == "core" else asyncio.run(_measure(rounds, scaling=scaling))
    if only != "cluster":
        found.rows += core_rows(trace, Progress(CORE_STEPS).begin)
    Console(width=None if sys.stdout.isatty() else 140).print(as_table(found.rows, found.caption))
    if json_path is not None:
        python = {"path": found.python, "bwrap_ms": found.bwrap_ms}
        cold_start = {"phases_ms": found.cold_phases_ms}
        figures = {"cores": os.cpu_count(), "python": python, "cold_start": cold_start, "rows": as_json(found.rows)}
        json_path.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(0 if all(row.reached for row in found.rows) else 1)


async def _measure(rounds: int, *, scaling: bool) -> Measurement:
    steps = rounds * _STEPS_OF_A_ROUND + 5
    progress = Progress(steps + (len(_ENVIRONMENT_COUNTS + _FUNCTION_COUNTS) if scaling else 0))
    async with echo() as floor:
        found = await _bounds(floor, rounds, progress)
        found.rows.append(await _snap_start(progress))
        found.rows.append(await _idle_environments(progress))
        found.rows += await _merged_environments(progress)
        if scaling:
            found.rows += await _growing_environments(floor, progress)
            found.rows += await _growing_functions(floor, progress)
    return found


async def _suite(stack: AsyncExitStack, *flags: str) -> Suite:
    running = await stack.enter_async_context(cluster(_MEMORY_MIB, *flags))
    return Suite(running, await stack.enter_async_context(AsyncClient(data_dir=running.data_dir)))


async def _bounds(floor: Echo, rounds: int, progress: Progress) -> Measurement:
    """Take the figures that have bounds, on one cluster."""
    samples: defaultdict[str, list[float]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        suite = await _suite(stack)
        await suite.prepare()
        python = suite.python
        try:
            bwrap, missing = bwrap_command(python), ""
        except FloorMissingError as error:
            bwrap, missing = None, str(error)
        for number in range(1, rounds + 1):
            await _round(suite, floor, bwrap, samples, progress, f"round {number} of {rounds}")
        phases = suite.cold_phases_ms()
        progress.begin("load generator")
        generator = await load_generator_row(suite)
        progress.begin("memory at rest")
        await suite.fill_environments(MIN_ENVIRONMENTS)
        rows = [*timed_rows(samples, missing), generator, *memory_rows(suite.memory())]
    bwrap_ms = statistics.median(samples["bwrap"]) if samples["bwrap"] else None
    return Measurement(rows, python, bwrap_ms, phases)


async def _round(
    suite: Suite,
    floor: Echo,
    bwrap: list[str] | None,
    samples: defaultdict[str, list[float]],
    progress: Progress,
    title: str,
) -> None:
    """Take one sample of everything, floors and figures in turn."""
    progress.begin(f"{title}: warm calls")
    for _ in range(5):
        samples["echo"].append(percentile(await floor.sequential_ms(EVENT, 300), 50))
        samples["warm"].append(percentile(await suite.warm_ms("empty", 300), 50))
        samples["warm 128"].append(percentile(await suite.warm_ms("empty-128", 100), 50))
    progress.begin(f"{title}: warm calls beside large payloads")
    for _ in range(5):
        samples["p99"].append(percentile(await suite.warm_ms("empty", 600), 99))
        async with suite.large_payloads():
            samples["p99 beside"].append(percentile(await suite.warm_ms("empty", 600), 99))
    progress.begin(f"{title}: throughput")
    await suite.throughput("empty", 1)
    # In short turns: a shared machine is half as fast from one second to the next.
    for _ in range(6):
        for figure, (rate, cpu_s) in (
            ("echo", await floor.throughput(EVENT, in_flight=50, seconds=0.5)),
            ("invocations", await suite.throughput("empty", 0.5)),
        ):
            samples[f"{figure} rate"].append(rate)
            samples[f"{figure} cpu"].append(cpu_s)
    progress.begin(f"{title}: cold starts")
    for _ in range(10):
        if bwrap is not None:
            await asyncio.sleep(0.2)
            samples["bwrap"].append(await asyncio.to_thread(run_ms, bwrap))
        samples["cold"] += await suite.cold_ms(1, FULL_MIB)
    samples["cold 128"] += await suite.cold_ms(5, 128)
    progress.begin(f"{title}: cold starts with an empty pool")
    for _ in range(3):
        durations, after_ms = await suite.exhausted_ms()
        samples["burst"].append(max(durations))
        samples["exhausted"] += [] if after_ms is None else [after_ms]
        if bwrap is not None:
            samples["bwrap burst"].append(max(await bwrap_burst_ms(bwrap, BURST)))
    progress.begin(f"{title}: what the sandbox costs a warm call")
    full_ms, bare_ms = await sandbox_overhead()
    samples["sandbox"].append(full_ms)
    samples["bare sandbox"].append(bare_ms)
    progress.begin(f"{title}: sandboxes a second")
    if bwrap is not None:
        samples["bwrap rate"].append(await bwrap_rate())
    samples["sandbox rate"].append(await sandbox_rate(_SUSTAINED_S))


async def _snap_start(progress: Progress) -> Row:
    """Take first calls with SnapStart, on a fresh cluster: what is prepared gets only what nobody else holds."""
    progress.begin("SnapStart")
    async with AsyncExitStack() as stack:
        suite = await _suite(stack)
        await suite.prepare_empty()
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lambent-bench-")))
        try:
            return snap_start_row(await snap_start(suite.client, suite.python, directory, _VERSIONS))
        except FloorMissingError as error:
            return snap_start_row(SnapStart([], []), str(error))


async def _idle_environments(progress: Progress) -> Row:
    """Take the memory of many small environments, on a fresh cluster: larger ones would take the CPUs from them."""
    progress.begin(f"{IDLE_ENVIRONMENTS} idle environments")
    async with AsyncExitStack() as stack:
        suite = await _suite(stack)
        await _fill_idle(suite)
        return idle_row(suite.memory(), idle_python_mib(suite.python))


async def _merged_environments(progress: Progress) -> list[Row]:
    """Take the same where an operator has the kernel merge equal pages, once it has."""
    progress.begin(f"{IDLE_ENVIRONMENTS} idle environments, merged")
    if not can_merge():
        return merged_rows(None, None, None, "this kernel cannot merge pages, or not for us")
    async with AsyncExitStack() as stack:
        stack.enter_context(merging_kernel())
        suite = await _suite(stack, "--merge-memory")
        await _fill_idle(suite)
        try:
            await wait_until_merged(_MERGED_WITHIN_S)
        except TimeoutError:
            return merged_rows(None, None, None, f"still merging after {_MERGED_WITHIN_S:g} s")
        return merged_rows(suite.memory(), idle_python_mib(suite.python), suite.merging_mib())


async def _fill_idle(suite: Suite) -> None:
    for count in range(_FILLED_AT_ONCE, IDLE_ENVIRONMENTS + 1, _FILLED_AT_ONCE):
        await suite.fill_environments(count)


async def _growing_environments(floor: Echo, progress: Progress) -> list[Row]:
    """Take warm calls with more and more environments alive, from one on, on a fresh cluster."""
    rows = []
    async with AsyncExitStack() as stack:
        suite = await _suite(stack)
        await suite.prepare_empty()
        for count in _ENVIRONMENT_COUNTS:
            progress.begin(f"environments alive: {count:,}")
            alive = await suite.fill_environments(count)
            rows.append(await _warm_row(suite, floor, f"warm p50, environments alive: {alive:,}"))
    return rows


async def _growing_functions(floor: Echo, progress: Progress) -> list[Row]:
    """Take warm calls with more and more functions deployed, from one on, on a fresh cluster."""
    rows = []
    async with AsyncExitStack() as stack:
        suite = await _suite(stack)
        await suite.prepare_empty()
        for count in _FUNCTION_COUNTS:
            progress.begin(f"functions deployed: {count:,}")
            deployed = await suite.fill_functions(count)
            rows.append(await _warm_row(suite, floor, f"warm p50, functions deployed: {deployed:,}"))
    return rows


async def _warm_row(suite: Suite, floor: Echo, figure: str) -> Row:
    warm, echoed = [], []
    for _ in range(3):
        echoed.append(percentile(await floor.sequential_ms(EVENT, 300), 50))
        warm.append(percentile(await suite.warm_ms("empty", 300), 50))
    return Row(figure, statistics.median(warm), "ms", "echo p50", statistics.median(echoed))


if __name__ == "__main__":
    main()
