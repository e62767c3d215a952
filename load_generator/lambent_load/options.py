"""Options of `lambent load`, and the kinds of values they take."""

from __future__ import annotations

import functools
import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from lambent.cli.options import Duration
from lambent_load.assertions import Assertion, AssertionFormError, parse
from lambent_load.generators import MOST_PROCESSES, OWN
from lambent_load.plan import MOST_RATE, SHAPES, ClosedLoop, OpenLoop

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")

Commands = tuple[tuple[str, ...], ...]
"""Each starts one generator process."""

_LONGEST_RUN_S = 7 * 86_400.0
"""A week; what takes longer is no test but use."""

_CHANGING = ("ramp", "step", "burst", "sine")
"""Shapes with a second rate."""


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


class Rate(click.FloatRange):
    """Calls per second."""

    def __init__(self) -> None:
        super().__init__(min=0.0, max=MOST_RATE)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Give the rate."""
        rate = super().convert(value, param, ctx)  # type: ignore[arg-type]  # it converts whatever was given
        if math.isnan(rate):
            self.fail(f"{value!r} is not a number of calls per second", param, ctx)
        return rate


class Span(Duration):
    """A time span above 0 and up to a week."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Give seconds."""
        seconds = super().convert(value, param, ctx)
        if not 0 < seconds <= _LONGEST_RUN_S:
            self.fail(f"{value!r} is not above 0 and up to 7d", param, ctx)
        return seconds


class Factor(click.FloatRange):
    """A factor of a replay: three powers of ten either way."""

    def __init__(self) -> None:
        super().__init__(min=0.001, max=1000.0)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Give the factor."""
        factor = super().convert(value, param, ctx)  # type: ignore[arg-type]  # it converts whatever was given
        if math.isnan(factor):
            self.fail(f"{value!r} is not a number", param, ctx)
        return factor


class Prefix(click.ParamType[str]):
    """The beginning of functions' names: with number and hash they have at most 64 characters (AWS Lambda)."""

    name = "prefix"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give the prefix."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", str(value)):
            self.fail(f"{value!r} is not 1 to 40 characters of A-Z, a-z, 0-9, _ and -", param, ctx)
        return str(value)


class TargetName(click.ParamType[str]):
    """`cluster`, `null`, or the URL of an AWS Lambda endpoint."""

    name = "target"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give the target."""
        target = str(value)
        if target not in {"cluster", "null"}:
            try:
                parts = urlsplit(target)
                sound = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
            except ValueError:
                sound = False
            if not sound or parts.query or parts.fragment or parts.username is not None:
                self.fail(f"{target!r} is neither cluster, null, nor http(s)://HOST[:PORT]", param, ctx)
        return target


class CommandLine(click.ParamType[tuple[str, ...]]):
    """A command as a shell reads it, without a shell."""

    name = "command"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Give its words."""
        if isinstance(value, tuple):
            return value
        try:
            words = tuple(shlex.split(str(value)))
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        return words or self.fail("no command", param, ctx)


class ReportPath(click.ParamType[Path]):
    """Where a page can be written: said before the load, not after it."""

    name = "path"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Give the path."""
        path = Path(str(value))
        if path.suffix != ".html":
            self.fail(f"{path} does not end in .html", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"there is no folder {path.parent}", param, ctx)
        return path


_LOAD_OPTIONS = (
    click.option("--rate", type=Rate(), help="Calls per second; of a changing shape, at its beginning."),
    click.option("--shape", type=click.Choice(SHAPES), default="constant", show_default=True, help="Rate over time."),
    click.option("--to", "to_rate", type=Rate(), help="Rate at the end of a ramp or step, in a burst, atop a sine."),
    click.option("--steps", type=click.IntRange(2, 1000), default=5, show_default=True, help="Levels of `step`."),
    click.option("--period", "period_s", type=Span(), default=10.0, show_default="10s", help="Of `burst` and `sine`."),
    click.option(
        "--burst", "burst_s", type=Span(), default=1.0, show_default="1s", help="Length of the burst in each period."
    ),
    click.option("--poisson", "poisson_arrivals", is_flag=True, help="Calls come independently, in any shape."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the times of such calls."),
    click.option(
        "--closed-loop",
        "callers",
        type=click.IntRange(1, 100_000),
        metavar="N",
        help="N callers, call after call.",
    ),
)


def load_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options that say when calls are sent, and call it with `load` made of them."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> R:
        given = {name: kwargs.pop(name) for name in _LOAD_NAMES}
        return function(*args, load=_load(click.get_current_context(), given), **kwargs)

    for option in reversed(_LOAD_OPTIONS):
        command = option(command)
    return command


_LOAD_NAMES = ("rate", "shape", "to_rate", "steps", "period_s", "burst_s", "poisson_arrivals", "seed", "callers")


def _load(ctx: click.Context, given: dict[str, Any]) -> OpenLoop | ClosedLoop:
    callers, rate, shape, to_rate = given.pop("callers"), given["rate"], given["shape"], given["to_rate"]
    if callers is not None:
        if rate is not None:
            raise click.UsageError("--rate and --closed-loop exclude each other", ctx)
        return ClosedLoop(callers)
    if rate is None:
        raise click.UsageError("give --rate (calls per second), or --closed-loop N", ctx)
    if (shape in _CHANGING) != (to_rate is not None):
        raise click.UsageError(f"--shape {shape} {'needs' if shape in _CHANGING else 'has no'} --to RATE", ctx)
    if not rate + (to_rate or 0.0):
        raise click.UsageError("a rate of 0 sends nothing", ctx)
    if shape == "burst" and given["burst_s"] > given["period_s"]:
        raise click.UsageError(f"--burst {given['burst_s']:g}s is longer than --period {given['period_s']:g}s", ctx)
    return OpenLoop(**(given | {"to_rate": to_rate or 0.0}))


_RUN_OPTIONS = (
    click.option("--timeout", "timeout_s", type=Span(), default=30.0, show_default="30s", help="Of each call."),
    click.option(
        "--max-in-flight",
        type=click.IntRange(1, 1_000_000),
        default=10_000,
        show_default=True,
        help="Most calls in flight; what is due beyond that is not sent, and counted.",
    ),
    click.option(
        "--processes",
        type=click.IntRange(0, MOST_PROCESSES),
        default=1,
        show_default=True,
        help="Processes of this machine that send, each a share of the calls.",
    ),
    click.option(
        "--worker",
        "workers",
        type=CommandLine(),
        multiple=True,
        metavar="COMMAND",
        help="Starts one more, such as 'ssh HOST lambent load worker'. May be given often.",
    ),
    click.option(
        "--assert",
        "assertions",
        type=AssertionText(),
        multiple=True,
        metavar="BOUND",
        help="What must hold, such as 'p99<50ms' or 'errors<0.1%'; status 4 otherwise. May be given often.",
    ),
    click.option(
        "--report", type=ReportPath(), metavar="FILE.html", help="Write a page with plots; FILE.json and FILE.csv too."
    ),
    click.option(
        "--progress",
        type=click.Choice(["auto", "live", "plain", "none"]),
        default="auto",
        show_default=True,
        help="What stderr shows meanwhile: auto is live on a terminal, and plain lines elsewhere.",
    ),
)


def run_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options of every run: how it sends, what must hold, what it writes and shows.

    The command is called with `generators`, which starts the processes that send.
    """

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> R:
        generators: Commands = (*[OWN] * kwargs.pop("processes"), *kwargs.pop("workers"))
        ctx = click.get_current_context()
        if not generators:
            raise click.UsageError("--processes 0 needs a --worker", ctx)
        if kwargs["max_in_flight"] < len(generators):
            raise click.UsageError(
                f"--max-in-flight {kwargs['max_in_flight']} is less than the number of processes", ctx
            )
        return function(*args, generators=generators, **kwargs)

    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command
