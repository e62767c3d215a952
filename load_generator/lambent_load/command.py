"""`lambent load`: a group whose first argument may be a function's name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lambent.cli.invoke import Payload
from lambent.cli.options import FunctionName, cluster_options, output_option
from lambent.cli.output import Output
from lambent.client import AsyncClient
from lambent_load.compare import differences
from lambent_load.finish import finish, settings_of
from lambent_load.options import Commands, Span, TargetName, load_options, run_options
from lambent_load.plan import ClosedLoop, Plan
from lambent_load.replay_command import replay
from lambent_load.result import read_result
from lambent_load.run import run_load
from lambent_load.view import make_view
from lambent_load.worker import serve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lambent_load.assertions import Assertion
    from lambent_load.compare import Difference
    from lambent_load.plan import OpenLoop
    from lambent_load.result import Result
    from lambent_load.run import View

_DEFAULT = "run"


class _Load(click.Group):
    """Takes what is no subcommand for the arguments of `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Load, context_settings={"help_option_names": ["-h", "--help"]})
def load() -> None:
    """Send calls by a schedule and tell how they fared: `lambent load FUNCTION --rate 200`.

    \b
    Examples:
      lambent load hello --rate 200 --duration 30s
      lambent load hello --rate 50 --shape ramp --to 500 --duration 2m --report out.html
      lambent load hello --rate 200 --assert 'p99<50ms' --assert 'errors<0.1%' --output json
      lambent load compare before.json after.json
      lambent load replay --trace ./azure2019-500-24h --minutes 60 --speed 10

    `lambent load FUNCTION` is short for `lambent load run FUNCTION`; see `lambent load run --help`, and docs/load.md
    for the rest. Exits with 4 when an assertion failed.
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines


@load.command(_DEFAULT)
@click.argument("function", type=FunctionName(), required=False)
@click.option("--duration", "duration_s", type=Span(), default=10.0, show_default="10s", help="How long to send.")
@click.option(
    "--payload", type=Payload(), default=b"", metavar="JSON|@FILE|-", help="The event: JSON text, @ and a file, or -."
)
@click.option(
    "--target",
    type=TargetName(),
    default="cluster",
    show_default=True,
    metavar="cluster|null|URL",
    help="URL: an AWS Lambda endpoint. null: answers at once, to measure the generator.",
)
@load_options
@run_options
@cluster_options
@output_option
@click.pass_context
def run(
    ctx: click.Context,
    *,
    load: OpenLoop | ClosedLoop,
    function: str | None,
    duration_s: float,
    payload: bytes,
    target: str,
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
    """Call FUNCTION by a schedule and tell how the calls fared.

    Calls leave at times fixed beforehand, whether the ones before have ended or not, and latency counts from those
    times. Nothing is sent again: a throttle is counted, not retried.

    \b
    Examples:
      lambent load hello --rate 200 --duration 30s --payload '{"name": "you"}'
      lambent load hello --rate 20 --shape burst --to 500 --period 10s --burst 1s
      lambent load hello --rate 10 --shape sine --to 100 --period 1m --duration 5m --poisson
      lambent load hello --closed-loop 64
      lambent load hello --rate 20 --target http://127.0.0.1:3001
      lambent load --target null --rate 50000 --processes 2

    Exits with 4 when an assertion failed, with 130 when it was interrupted.
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    if target != "null" and not function:
        raise click.UsageError("name the FUNCTION to call, or give --target null", ctx)
    if isinstance(load, ClosedLoop) and load.callers < len(generators):
        raise click.UsageError(f"--closed-loop {load.callers} cannot be divided among {len(generators)} processes", ctx)
    plan = Plan(
        target=target,
        function=function or "",
        payload=payload,
        load=load,
        duration_s=duration_s,
        timeout_s=timeout_s,
        max_in_flight=max_in_flight,
        endpoint=endpoint,
        data_dir=None if data_dir is None else str(data_dir),
    )
    result = asyncio.run(_run(plan, generators, make_view(progress), settings_of(ctx)))
    finish(ctx, Output(output_format), result, assertions, report)


@load.command()
@click.argument("before", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("after", type=click.Path(path_type=Path, dir_okay=False))
@output_option
def compare(before: Path, after: Path, output_format: str) -> None:
    """Show what has changed from the result BEFORE to the result AFTER, both JSON files of `--report` or `-o json`.

    \b
    Example:
      lambent load hello --rate 200 --report before.html
      lambent load compare before.json after.json
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    found = list(differences(read_result(before), read_result(after)))
    out = Output(output_format)
    if out.as_json:
        out.json([{"name": one.name, "before": one.before, "after": one.after, "change": one.change} for one in found])
        return
    out.table(("FIGURE", before.stem, after.stem, "CHANGE", ""), (_cells(one) for one in found))


@load.command()
def worker() -> None:
    """Be a generator process of a run elsewhere, on standard input and output.

    \b
    Example, for a machine that has LAMBENT_TOKEN in its environment:
      lambent load hello --rate 50000 --endpoint 10.0.0.1:9400 --worker 'ssh generator-2 lambent load worker'
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    serve()


async def _run(plan: Plan, generators: Commands, view: View, settings: Mapping[str, object]) -> Result:
    if plan.target != "cluster":
        return await run_load(plan, generators, view, settings, None)
    async with AsyncClient(plan.endpoint, data_dir=plan.data_dir) as client:
        await client.functions.get(plan.function)  # A name that is wrong is said before the load, once.
        return await run_load(plan, generators, view, settings, client)


def _cells(one: Difference) -> tuple[str, ...]:
    change = "" if one.change is None else f"{one.change:+.1%}"
    return (one.name, _number(one.before), _number(one.after), change, one.verdict)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"


load.add_command(replay)
