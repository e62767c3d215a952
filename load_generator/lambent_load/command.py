"""`lambent load`: a group whose first argument may be a function's name."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import click

from lambent.cli.invoke import Payload
from lambent.cli.options import Duration, FunctionName, cluster_options, output_option
from lambent.cli.output import Output
from lambent.client import AsyncClient
from lambent_load.assertions import Assertion, AssertionFormError, parse
from lambent_load.generators import MOST_PROCESSES
from lambent_load.plan import MOST_RATE, SHAPES, ClosedLoop, OpenLoop, Plan
from lambent_load.run import run_load
from lambent_load.text import summary
from lambent_load.view import make_view

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lambent_load.result import Result
    from lambent_load.run import View

ASSERTION_FAILED = 4
INTERRUPTED = 130

_LONGEST_RUN_S = 7 * 86_400.0
"""A week; what takes longer is no test but use."""

_DEFAULT = "run"


class _Load(click.Group):
    """Takes what is no subcommand for the arguments of `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


class AssertionText(click.ParamType[Assertion]):
    """A bound such as p99<50ms."""

    name = "assertion"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Assertion:
        """Give the assertion."""
        if isinstance(value, Assertion):
            return value
        try:
            return parse(str(value))
        except AssertionFormError as error:
            self.fail(error.message, param, ctx)


class _Rate(click.FloatRange):
    """Calls per second."""

    def __init__(self) -> None:
        super().__init__(min=0.0, max=MOST_RATE)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Give the rate."""
        rate = super().convert(value, param, ctx)  # type: ignore[arg-type]  # it converts whatever was given
        if math.isnan(rate):
            self.fail(f"{value!r} is not a number of calls per second", param, ctx)
        return rate


class _Span(Duration):
    """A time span above 0 and up to a week."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = super().convert(value, param, ctx)
        if not 0 < seconds <= _LONGEST_RUN_S:
            self.fail(f"{value!r} is not above 0 and up to 7d", param, ctx)
        return seconds


@click.group(cls=_Load, context_settings={"help_option_names": ["-h", "--help"]})
def load() -> None:
    """Send calls by a schedule and tell how they fared: `lambent load FUNCTION --rate 200`.

    \b
    Examples:
      lambent load hello --rate 200 --duration 30s
      lambent load hello --rate 50 --shape ramp --to 500 --duration 2m --report out.html
      lambent load hello --rate 200 --assert 'p99<50ms' --assert 'errors<0.1%' --output json
      lambent load compare before.json after.json

    `lambent load FUNCTION` is short for `lambent load run FUNCTION`; see `lambent load run --help`, and docs/load.md
    for the rest. Exits with 4 when an assertion failed.
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines


@load.command(_DEFAULT)
@click.argument("function", type=FunctionName(), required=False)
@click.option("--rate", type=_Rate(), help="Calls per second; of a changing shape, at its beginning.")
@click.option("--duration", type=_Span(), default=10.0, show_default="10s", help="How long to send: 30s, 5m, 1h.")
@click.option("--shape", type=click.Choice(SHAPES), default="constant", show_default=True, help="The rate over time.")
@click.option("--to", "to_rate", type=_Rate(), help="Rate at the end of a ramp or step, in a burst, atop a sine.")
@click.option("--steps", type=click.IntRange(2, 1000), default=5, show_default=True, help="Levels of `step`.")
@click.option("--period", type=_Span(), default=10.0, show_default="10s", help="Of `burst` and `sine`.")
@click.option("--burst", type=_Span(), default=1.0, show_default="1s", help="Length of a burst, of each period.")
@click.option("--poisson", is_flag=True, help="Calls come independently of one another, in any shape.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the times of such calls.")
@click.option("--closed-loop", type=click.IntRange(1, 100_000), metavar="N", help="N callers, one call after another.")
@click.option(
    "--payload", type=Payload(), default=b"", metavar="JSON|@FILE|-", help="The event: JSON text, @ and a file, or -."
)
@click.option("--timeout", type=_Span(), default=30.0, show_default="30s", help="How long each call may take.")
@click.option(
    "--max-in-flight",
    type=click.IntRange(1, 1_000_000),
    default=10_000,
    show_default=True,
    help="Most calls in flight; what is due beyond that is not sent, and counted.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, MOST_PROCESSES),
    default=1,
    show_default=True,
    help="Processes that send, each a share of the calls.",
)
@click.option(
    "--target",
    type=click.Choice(["cluster", "null"]),
    default="cluster",
    show_default=True,
    help="null: answers at once, to measure the generator.",
)
@click.option(
    "--assert",
    "assertions",
    type=AssertionText(),
    multiple=True,
    metavar="BOUND",
    help="What must hold, such as 'p99<50ms' or 'errors<0.1%'; status 4 otherwise. May be given often.",
)
@click.option(
    "--progress",
    type=click.Choice(["auto", "live", "plain", "none"]),
    default="auto",
    show_default=True,
    help="What stderr shows meanwhile: auto is live on a terminal, and plain lines elsewhere.",
)
@cluster_options
@output_option
@click.pass_context
def run(
    ctx: click.Context,
    *,
    function: str | None,
    rate: float | None,
    duration: float,
    shape: str,
    to_rate: float | None,
    steps: int,
    period: float,
    burst: float,
    poisson: bool,
    seed: int,
    closed_loop: int | None,
    payload: bytes,
    timeout: float,
    max_in_flight: int,
    processes: int,
    target: str,
    assertions: Sequence[Assertion],
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
      lambent load --target null --rate 50000 --processes 2

    Exits with 4 when an assertion failed, with 130 when it was interrupted.
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    if target == "cluster" and not function:
        raise click.UsageError("name the FUNCTION to call, or give --target null", ctx)
    if closed_loop is None:
        open_loop = OpenLoop(
            shape=shape,
            rate=_required_rate(ctx, rate, shape, to_rate),
            to_rate=to_rate or 0.0,
            steps=steps,
            period_s=period,
            burst_s=burst,
            poisson_arrivals=poisson,
            seed=seed,
        )
        if shape == "burst" and burst > period:
            raise click.UsageError(f"--burst {burst:g}s is longer than --period {period:g}s", ctx)
    elif rate is not None:
        raise click.UsageError("--rate and --closed-loop exclude each other", ctx)
    elif closed_loop < processes:
        raise click.UsageError(f"--closed-loop {closed_loop} cannot be divided among --processes {processes}", ctx)
    if max_in_flight < processes:
        raise click.UsageError(f"--max-in-flight {max_in_flight} is less than --processes {processes}", ctx)
    plan = Plan(
        target=target,
        function=function or "",
        payload=payload,
        load=open_loop if closed_loop is None else ClosedLoop(closed_loop),
        duration_s=duration,
        timeout_s=timeout,
        max_in_flight=max_in_flight,
        endpoint=endpoint,
        data_dir=None if data_dir is None else str(data_dir),
    )
    result = asyncio.run(_run(plan, processes, make_view(progress), _settings(ctx)))
    out = Output(output_format)
    if out.as_json:
        verdicts = [
            {"assertion": one.text, "value": one.value(result), "holds": one.holds(result)} for one in assertions
        ]
        out.json(result.as_json() | {"assertions": verdicts})
    else:
        click.echo(summary(result, assertions))
    if result.interrupted:
        ctx.exit(INTERRUPTED)
    if not all(one.holds(result) for one in assertions):
        ctx.exit(ASSERTION_FAILED)


async def _run(plan: Plan, processes: int, view: View, settings: Mapping[str, object]) -> Result:
    if plan.target == "null":
        return await run_load(plan, processes, view, settings, None)
    async with AsyncClient(plan.endpoint, data_dir=plan.data_dir) as client:
        name, _, qualifier = plan.function.partition(":")
        await client.functions.get(name, qualifier=qualifier)  # A name that is wrong is said before the load, once.
        return await run_load(plan, processes, view, settings, client)


def _required_rate(ctx: click.Context, rate: float | None, shape: str, to_rate: float | None) -> float:
    if rate is None:
        raise click.UsageError("give --rate (calls per second), or --closed-loop N", ctx)
    changing = shape in {"ramp", "step", "burst", "sine"}
    if changing != (to_rate is not None):
        raise click.UsageError(f"--shape {shape} {'needs' if changing else 'has no'} --to RATE", ctx)
    if not rate + (to_rate or 0.0):
        raise click.UsageError("a rate of 0 sends nothing", ctx)
    return rate


_NOT_KEPT = {"payload", "endpoint", "data_dir", "output_format", "assertions", "progress"}
"""Options that a result does not keep: what may be secret or long, and what says nothing about the load."""


def _settings(ctx: click.Context) -> dict[str, object]:
    """Give the options as they were given, or by default, for the result."""
    return {name: value for name, value in ctx.params.items() if name not in _NOT_KEPT and value is not None}
