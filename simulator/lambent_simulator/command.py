"""`lambent sim`: a trace on a simulated cluster, from the command line."""

from __future__ import annotations

import dataclasses
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lambent.cli.options import Duration, output_option
from lambent.cli.output import Output
from lambent_common.traces import Arrivals, Durations, read_recorded, read_trace
from lambent_simulator.event_log import log_to, replay
from lambent_simulator.faults import Fault
from lambent_simulator.picture import picture as draw
from lambent_simulator.policies import EVICTIONS, PLACEMENTS, POLICIES
from lambent_simulator.scenario import CALL_MS, COLD_START_MS, Scenario, read_percentiles
from lambent_simulator.simulation import simulate
from lambent_simulator.sweep import Run, combinations, parse_sweep
from lambent_simulator.text import fields_of, functions_table, runs_table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from lambent_simulator.figures import Report
    from lambent_simulator.simulation import Load, Outcome, Progress


class _ColdStart(click.ParamType[Durations]):
    """Milliseconds, or a file of percentiles."""

    name = "ms|file"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Durations:
        if isinstance(value, Durations):
            return value
        text = str(value)
        try:
            time_ms = float(text)
        except ValueError:
            return read_percentiles(Path(text))
        if not 0 < time_ms < 1e7:
            self.fail(f"{text} is not a time in milliseconds", param, ctx)
        return Durations((0.0, 1.0), (time_ms, time_ms))


class _Fault(click.ParamType[Fault]):
    """KIND:NODES@START[+DURATION][xFACTOR]."""

    name = "fault"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Fault:
        if isinstance(value, Fault):
            return value
        try:
            return Fault.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    epilog="Examples: lambent sim --trace azure2019-500-8h --nodes 4 --memory 16384 | "
    "lambent sim --trace azure2019-500-8h --fault lost:1@1h+10m --output json | "
    "lambent sim --trace azure2019-500-8h --sweep keep-alive=1m,10m,1h nodes=4,100 --picture curves.svg"
)
@click.option(
    "--trace",
    "source",
    type=click.Path(path_type=Path),
    help="Folder in the schema of the Azure trace: invocations.csv, durations.csv, memory.csv; or a file of calls.",
)
@click.option(
    "--replay",
    "replayed",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Instead of a trace: run what --events has written again, as it was, and stop where it differs.",
)
@click.option("--nodes", type=click.IntRange(1, 100_000), default=10, show_default=True, help="Machines.")
@click.option(
    "--memory",
    type=click.IntRange(128),
    default=16_384,
    show_default=True,
    metavar="MIB",
    help="Of each, for functions.",
)
@click.option("--cores", type=click.IntRange(0), default=0, help="Of each.  [default: one for each 4,096 MiB]")
@click.option(
    "--policy", type=click.Choice(POLICIES), default="fixed", show_default=True, help="When environments live."
)
@click.option(
    "--placement", type=click.Choice(list(PLACEMENTS)), default="default", show_default=True, help="Where they live."
)
@click.option(
    "--eviction",
    type=click.Choice(EVICTIONS),
    default="least-recently-used",
    show_default=True,
    help="Which idle one makes room for another.",
)
@click.option(
    "--keep-alive",
    type=Duration(),
    metavar="TIME",
    help="How long an idle one is kept; with a policy that learns, until it knows better.  [default: 10m]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed gives the same run.")
@click.option(
    "--arrivals",
    type=click.Choice([one.value for one in Arrivals]),
    default=Arrivals.POISSON.value,
    show_default=True,
    help="Where in its minute a call comes, which traces do not say.",
)
@click.option("--from", "first_s", type=Duration(), default=0.0, metavar="TIME", help="Where in the trace to begin.")
@click.option("--for", "length_s", type=Duration(), metavar="TIME", help="How much of it to take.  [default: the rest]")
@click.option(
    "--cold-start-ms",
    type=_ColdStart(),
    default=str(COLD_START_MS),
    show_default=True,
    help="A time, or a file of lines PERCENTILE,MILLISECONDS; with the init of your functions.",
)
@click.option(
    "--call-ms",
    type=click.FloatRange(0, 60_000),
    default=CALL_MS,
    show_default=True,
    help="Of each call, beside its run.",
)
@click.option("--concurrency", type=click.IntRange(1), help="Calls at once before they are throttled.  [default: 1000]")
@click.option(
    "--fault",
    "faults",
    type=_Fault(),
    multiple=True,
    metavar="KIND:NODES@START[+TIME][xFACTOR]",
    help="KIND: lost, slow (by FACTOR) or partitioned. Can be repeated.",
)
@click.option(
    "--events",
    type=click.File("w", lazy=False),
    metavar="FILE",
    help="Write everything that happens, a line of JSON each.",
)
@click.option(
    "--sweep",
    is_flag=True,
    help="Run every combination of the settings NAME=VALUE,VALUE that follow: policy, placement, eviction, "
    "nodes, memory, keep-alive, concurrency, arrivals, seed.",
)
@click.option(
    "--picture",
    type=click.File("w", lazy=False),
    metavar="FILE",
    help="Draw the runs of a sweep as an SVG file: what memory kept idle buys.",
)
@click.argument("settings", nargs=-1, metavar="[NAME=VALUE,VALUE]...")
@click.option("--functions", "with_functions", is_flag=True, help="Report each function, too.")
@output_option
def sim(
    *,
    source: Path | None,
    replayed: Path | None,
    nodes: int,
    memory: int,
    cores: int,
    policy: str,
    placement: str,
    eviction: str,
    keep_alive: float | None,
    seed: int,
    arrivals: str,
    first_s: float,
    length_s: float | None,
    cold_start_ms: Durations,
    call_ms: float,
    concurrency: int | None,
    faults: tuple[Fault, ...],
    events: TextIO | None,
    sweep: bool,
    settings: tuple[str, ...],
    picture: TextIO | None,
    with_functions: bool,
    output_format: str,
) -> None:
    """Run a recorded load on a simulated cluster, with the scheduler's own decisions.

    Prints what papers report: cold starts, slowdown, memory wasted, queueing, fairness. See docs/simulator.md.
    """
    out = Output(output_format)
    if (source is None) == (replayed is None):
        raise click.UsageError("give --trace, or --replay alone")
    _check_sweep(settings, sweep=sweep, picture=picture, events=events)
    if replayed is not None:
        with _progress(f"again: {replayed}") as progress:
            _print(out, *replay(replayed, progress), with_functions=with_functions)
        return
    assert source is not None
    load: Load = read_recorded(source) if source.is_file() else read_trace(source)
    scenario = Scenario(
        nodes=nodes,
        memory_mib=memory,
        cores=cores,
        policy=policy,
        placement=placement,
        eviction=eviction,
        keep_alive_s=keep_alive,
        seed=seed,
        arrivals=Arrivals(arrivals),
        first_minute=round(first_s / 60),
        minutes=None if length_s is None else max(1, round(length_s / 60)),
        cold_start=cold_start_ms,
        call_ms=call_ms,
        account_concurrency=concurrency,
        faults=faults,
    )
    if load.minutes is not None and scenario.first_minute >= load.minutes:
        raise click.BadParameter(f"the trace has {load.minutes} minutes", param_hint="--from")
    if sweep:
        _sweep(out, load, scenario, settings, picture)
        return
    with _progress(f"{policy}, {nodes} nodes") as progress:
        outcome = simulate(load, scenario, progress, None if events is None else log_to(events, load, scenario))
    _print(out, load, scenario, outcome, with_functions=with_functions)


def _check_sweep(settings: tuple[str, ...], *, sweep: bool, picture: TextIO | None, events: TextIO | None) -> None:
    if settings and not sweep:
        raise click.UsageError(f"{settings[0]!r} is what --sweep varies, and --sweep is not given")
    if picture is not None and not sweep:
        raise click.UsageError("--picture draws the runs of a sweep; give --sweep keep-alive=1m,10m,1h")
    if events is not None and sweep:
        raise click.UsageError("--events is of one run, and --sweep makes many")


def _print(out: Output, load: Load, scenario: Scenario, outcome: Outcome, *, with_functions: bool) -> None:
    if out.as_json:
        described = _described(load, scenario, outcome.report)
        out.json(described | ({"functions": outcome.functions} if with_functions else {}))
        return
    out.fields(fields_of(load, scenario, outcome.report))
    if with_functions:
        click.echo()
        out.table(*functions_table(outcome.functions))


def _sweep(out: Output, load: Load, base: Scenario, settings: tuple[str, ...], picture: TextIO | None) -> None:
    # All are read before the first is run: an unknown name is not found after an hour.
    asked = list(combinations(base, parse_sweep(settings)))
    runs: list[Run] = []
    for varied, scenario in asked:
        title = ", ".join(f"{name} {value}" for name, value in varied.items())
        with _progress(f"{len(runs) + 1} of {len(asked)}: {title}") as progress:
            runs.append(Run(varied, scenario, simulate(load, scenario, progress)))
    if picture is not None:
        picture.write(draw(runs, f"{Path(load.source).name}, arrivals {base.arrivals.value}"))
    if out.as_json:
        out.json(
            {"runs": [_described(load, run.scenario, run.outcome.report) | {"varied": run.settings} for run in runs]}
        )
    else:
        out.table(*runs_table(runs))


def _described(load: Load, scenario: Scenario, report: Report) -> dict[str, object]:
    """Give a run as one flat object: what was simulated, and the figures."""
    asked: dict[str, Any] = {
        "trace": load.source,
        "nodes": scenario.nodes,
        "memory_mib": scenario.memory_mib,
        "policy": scenario.policy,
        "placement": scenario.placement,
        "eviction": scenario.eviction,
        "seed": scenario.seed,
        "arrivals": scenario.arrivals.value,
        "keep_alive_s": scenario.limits.keep_alive_s,
    }
    return asked | dataclasses.asdict(report)


@contextmanager
def _progress(title: str) -> Iterator[Progress | None]:
    """Show on a terminal how far the simulation is."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - only terminals pay for it
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415 - as above

    columns = (TextColumn(title), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    began = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, text="")

        def show(minute: int, minutes: int | None, calls: int) -> None:
            speed = 60 * minute / (time.perf_counter() - began)
            bar.update(task, completed=minute, total=minutes, text=f"{calls:,} calls, {speed:,.0f} x real time")

        yield show
