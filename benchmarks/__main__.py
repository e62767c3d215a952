"""`make bench`: every figure beside its floor, interleaved and repeated in one run, as a table and as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.cluster import cluster
from benchmarks.floors import Echo, bwrap_command, echo, run_ms
from benchmarks.invocations import EVENT, FULL_MIB, Suite
from benchmarks.measure import percentile, rate_per_s, sequential_ms
from lambent import AsyncClient

_MEMORY_MIB = 262_144
"""Declared, not present: 100 environments of 1,769 MB are to fit, and none of them touches its memory."""


@dataclass(frozen=True)
class Row:
    """One line of the table. `must` and `aim` bound the ratio; a throughput's from below, all others from above."""

    figure: str
    value: float
    unit: str
    floor: float | None = None
    must: float | None = None
    aim: float | None = None
    larger_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """Value over floor."""
        return None if not self.floor else self.value / self.floor

    @property
    def reached(self) -> bool:
        """True when nothing must be reached, or it is."""
        measured = self.value if self.floor is None else self.ratio
        if self.must is None or measured is None:
            return True
        return measured >= self.must if self.larger_is_better else measured <= self.must


@click.command()
@click.option("--rounds", type=click.IntRange(1, 50), default=3, show_default=True, help="Repetitions, interleaved.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here too."
)
@click.option("--scaling/--no-scaling", default=True, show_default=True, help="Also measure cost as work grows.")
def main(rounds: int, json_path: Path | None, *, scaling: bool) -> None:
    """Measure Lambent against floors taken in the same run; status 1 when a bound is missed."""
    rows = asyncio.run(_measure(rounds, scaling=scaling))
    _show(rows)
    if json_path is not None:
        figures = [asdict(row) | {"ratio": row.ratio, "reached": row.reached} for row in rows]
        json_path.write_text(json.dumps({"cores": os.cpu_count(), "rows": figures}, indent=2) + "\n")
    sys.exit(0 if all(row.reached for row in rows) else 1)


async def _measure(rounds: int, *, scaling: bool) -> list[Row]:
    samples: defaultdict[str, list[float]] = defaultdict(list)
    async with echo() as floor, cluster(_MEMORY_MIB) as running, AsyncClient(data_dir=running.data_dir) as client:
        suite = Suite(running, client)
        await suite.prepare()
        for number in range(rounds):
            click.echo(f"round {number + 1} of {rounds} ...", err=True)
            await _round(suite, floor, samples)
        memory = suite.memory_mib()
        rows = _rows(samples, memory)
        if scaling:
            click.echo("cost as work grows ...", err=True)
            rows += await _scaling(suite)
    return rows


async def _round(suite: Suite, floor: Echo, samples: defaultdict[str, list[float]]) -> None:
    """Take one sample of everything, floors and figures in turn."""

    async def echo_call() -> bytes:
        return await floor.call(EVENT)

    for _ in range(5):
        samples["echo"].append(percentile(await sequential_ms(echo_call, 300), 0.5))
        samples["warm"].append(percentile(await suite.warm_ms("empty", 300), 0.5))
        samples["warm 128"].append(percentile(await suite.warm_ms("empty-128", 100), 0.5))
    samples["warm p99"].append(percentile(await suite.warm_ms("empty", 1_000), 0.99))
    async with suite.large_payloads():
        samples["warm p99 beside"].append(percentile(await suite.warm_ms("empty", 1_000), 0.99))
    samples["echo rate"].append(await rate_per_s(echo_call, in_flight=50, seconds=3))
    rate, cpu_s = await suite.throughput("empty", 3)
    samples["rate"].append(rate)
    samples["cpu"].append(cpu_s)
    command = bwrap_command(suite.python, suite.python_prefix)
    for _ in range(10):
        if command is not None:
            await asyncio.sleep(0.2)
            samples["bwrap"].append(await asyncio.to_thread(run_ms, command))
        samples["cold"] += await suite.cold_ms(1, FULL_MIB)
    samples["cold 128"] += await suite.cold_ms(5, 128)


def _rows(samples: defaultdict[str, list[float]], memory: dict[str, float]) -> list[Row]:
    def middle(name: str) -> float:
        return statistics.median(samples[name]) if samples[name] else 0.0

    return [
        Row("warm sequential p50, 1,769 MB", middle("warm"), "ms", middle("echo"), 2.0, 1.4),
        Row("warm sequential p50, 128 MB", middle("warm 128"), "ms", middle("echo")),
        Row("warm p99 beside two clients of 6 MB", middle("warm p99 beside"), "ms", middle("warm p99"), 5.0, 2.0),
        Row("cold start p50, 1,769 MB, 200 ms apart", middle("cold"), "ms", middle("bwrap"), 1.2, 0.3),
        Row("cold start p50, 128 MB, 200 ms apart", middle("cold 128"), "ms", middle("bwrap")),
        Row("throughput, 64 in flight", middle("rate"), "/s", middle("echo rate"), 1.5, 3.0, larger_is_better=True),
        Row("CPU per 1,000 invocations, all processes", middle("cpu"), "s"),
        Row("memory of the scheduler, idle (PSS)", memory["scheduler"], "MiB", must=120, aim=80),
        Row("memory of the agent, idle (PSS)", memory["agent"], "MiB", must=120, aim=80),
        Row("memory of one warm environment (PSS)", memory["environment"], "MiB", must=4, aim=2),
    ]


async def _scaling(suite: Suite) -> list[Row]:
    rows = []
    for count in (1, 10, 100):
        await suite.fill_environments(count)
        warm = percentile(await suite.warm_ms("empty", 300), 0.5)
        rows.append(Row(f"warm p50 with {count} environments alive", warm, "ms"))
    for count in (1, 100, 1_000):
        await suite.fill_functions(count)
        warm = percentile(await suite.warm_ms("empty", 300), 0.5)
        rows.append(Row(f"warm p50 with {count} more functions deployed", warm, "ms"))
    return rows


def _show(rows: list[Row]) -> None:
    table = Table(title=f"Lambent on {os.cpu_count()} cores")
    for name in ("figure", "value", "floor", "ratio", "must", "aim", ""):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for row in rows:
        table.add_row(
            row.figure,
            f"{row.value:,.2f} {row.unit}" if row.value < 1_000 else f"{row.value:,.0f} {row.unit}",
            "" if row.floor is None else f"{row.floor:,.2f}",
            "" if row.ratio is None else f"{row.ratio:.2f} x",
            "" if row.must is None else f"{row.must:g}",
            "" if row.aim is None else f"{row.aim:g}",
            "" if row.must is None else ("[green]reached[/]" if row.reached else "[red]missed[/]"),
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
