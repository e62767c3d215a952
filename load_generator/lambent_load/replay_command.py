"""`lambent load replay`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lambent.cli.options import cluster_options, output_option
from lambent.cli.output import Output
from lambent.client import AsyncClient
from lambent_common.traces import Arrivals, read_trace
from lambent_load.finish import finish, settings_of
from lambent_load.options import Commands, Factor, Prefix, Span, run_options
from lambent_load.plan import Plan
from lambent_load.replay import WORK, StandIns
from lambent_load.run import run_load
from lambent_load.traced import Replay
from lambent_load.view import make_view

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lambent_load.assertions import Assertion
    from lambent_load.result import Result
    from lambent_load.run import View


@click.command()
@click.option(
    "--trace",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder in the Azure schema: invocations.csv, durations.csv, memory.csv.",
)
@click.option("--first-minute", type=click.IntRange(0), default=0, show_default=True, help="Of the trace, from 0.")
@click.option("--minutes", type=click.IntRange(1), help="Length of the window.  [default: to the trace's end]")
@click.option("--speed", type=Factor(), default=1.0, show_default=True, help="Minutes of the trace in a minute.")
@click.option("--scale", type=Factor(), default=1.0, show_default=True, help="Share of the calls that is sent.")
@click.option(
    "--arrivals",
    "assumption",
    type=click.Choice([one.value for one in Arrivals]),
    default=Arrivals.POISSON.value,
    show_default=True,
    help="Where in its minute a call comes, which traces do not say.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of times and run times.")
@click.option(
    "--work", type=click.Choice(WORK), default="sleep", show_default=True, help="What a function does as it runs."
)
@click.option("--longest-run", "longest_run_s", type=Span(), default=30.0, show_default="30s", help="Cut longer runs.")
@click.option("--memory-mib", type=click.IntRange(128, 10_240), help="Of each function.  [default: the trace's]")
@click.option("--prefix", type=Prefix(), default="replay", show_default=True, help="Of the functions' names.")
@run_options
@cluster_options
@output_option
@click.pass_context
def replay(
    ctx: click.Context,
    *,
    trace: Path,
    first_minute: int,
    minutes: int | None,
    speed: float,
    scale: float,
    assumption: str,
    seed: int,
    work: str,
    longest_run_s: float,
    memory_mib: int | None,
    prefix: str,
    timeout_s: float,
    max_in_flight: int,
    generators: Commands,
    assertions: Sequence[Assertion],
    report: Path | None,
    progress: str,
    endpoint: str,
    data_dir: Path | None,
    output_format: str,
) -> None:
    """Replay a recorded load: one function for each traced one, which runs as long as that did.

    The functions are deployed before and removed after it, also after Ctrl-C. Run times stay as recorded at any speed,
    so that --speed 10 --scale 0.1 has as many calls at once as the trace.

    \b
    Examples:
      lambent load replay --trace ./azure2019-500-24h --minutes 60 --speed 10
      lambent load replay --trace ./azure2019-500-8h --minutes 30 --speed 10 --scale 0.1 --report replay.html
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    whole = read_trace(trace)
    if first_minute >= whole.minutes:
        raise click.UsageError(f"--first-minute {first_minute}: the trace has {whole.minutes} minutes", ctx)
    window = Replay(
        trace=str(trace),
        first_minute=first_minute,
        minutes=min(minutes or whole.minutes, whole.minutes - first_minute),
        speed=speed,
        scale=scale,
        assumption=assumption,
        seed=seed,
        prefix=prefix,
        longest_run_s=longest_run_s,
    )
    plan = Plan(
        target="cluster",
        function="",
        payload=b"",
        load=window,
        duration_s=window.duration_s,
        timeout_s=timeout_s,
        max_in_flight=max_in_flight,
        endpoint=endpoint,
        data_dir=None if data_dir is None else str(data_dir),
    )
    settings = settings_of(ctx) | {"trace": trace.name}
    functions = StandIns(window, work, memory_mib)
    result = asyncio.run(_replay(plan, generators, functions, make_view(progress), settings))
    finish(ctx, Output(output_format), result, assertions, report)


async def _replay(
    plan: Plan, generators: Commands, functions: StandIns, view: View, settings: Mapping[str, object]
) -> Result:
    async with AsyncClient(plan.endpoint, data_dir=plan.data_dir) as client, functions.deployed(client):
        return await run_load(plan, generators, view, settings, client)
