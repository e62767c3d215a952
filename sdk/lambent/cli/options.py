"""Options that commands share, and the kinds of values they take."""

from __future__ import annotations

import asyncio
import functools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from lambent.blocking import Client
from lambent.cli.output import OUTPUT_KEY, Output
from lambent.client import AsyncClient
from lambent.errors import LambentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

P = ParamSpec("P")
R = TypeVar("R")

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_COMPLETION_S = 2.0
"""How long a person who has pressed TAB waits at most for a cluster that does not answer."""

_MOST_COMPLETIONS = 200
"""Names offered to the shell; a longer list helps nobody."""


class FunctionName(click.ParamType[str]):
    """A function's name; the shell completes it by asking the cluster."""

    name = "name"

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - click's signature
        incomplete: str,
    ) -> list[click.shell_completion.CompletionItem]:
        """Give the names that begin so; none when the cluster does not answer."""
        endpoint, data_dir = ctx.params.get("endpoint") or "", ctx.params.get("data_dir")
        try:
            names = asyncio.run(_function_names(endpoint, data_dir, incomplete))
        except (LambentError, TimeoutError):
            return []
        return [click.shell_completion.CompletionItem(name) for name in names]


async def _function_names(endpoint: str, data_dir: Path | None, incomplete: str) -> list[str]:
    names: list[str] = []
    async with asyncio.timeout(_COMPLETION_S), AsyncClient(endpoint, data_dir=data_dir) as client:
        async for function in client.functions.list():
            if function.function_name.startswith(incomplete):
                names.append(function.function_name)
            if len(names) >= _MOST_COMPLETIONS:
                break
    return names


class Seconds(click.FloatRange):
    """A number of seconds within a range, which "not a number" never is."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Give the number."""
        seconds = super().convert(value, param, ctx)  # type: ignore[arg-type]  # it converts whatever was given
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


class Duration(click.ParamType[float]):
    """A time span such as 30s, 5m, 2h or 1d; a bare number means seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Give seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if match is None:
            self.fail(f"{value!r} is not a time span such as 30s, 5m, 2h or 1d", param, ctx)
        return float(match[1]) * _SECONDS[match[2] or "s"]


class Assignment(click.ParamType[tuple[str, str]]):
    """NAME=VALUE."""

    name = "name=value"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Give name and value."""
        if isinstance(value, tuple):
            return value
        name, separator, assigned = str(value).partition("=")
        if not separator or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, assigned


class Share(Assignment):
    """VERSION=SHARE."""

    name = "version=share"

    def convert(  # type: ignore[override]  # the share is a number here
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Give version and share."""
        version, share = super().convert(value, param, ctx)
        try:
            return version, float(share)
        except ValueError:
            self.fail(f"{share!r} is not a number", param, ctx)


class Exclusive(click.Option):
    """An option that cannot be given together with the one named by `excludes`."""

    def __init__(self, *args: Any, excludes: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._excludes = excludes

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Refuse both at once."""
        if self.name in opts and self._excludes in opts:
            raise click.UsageError(f"{self.opts[0]} and --{self._excludes} exclude each other", ctx)
        return super().handle_parse_result(ctx, opts, args)


def cluster_command(function: Callable[Concatenate[Client, Output, P], R]) -> Callable[..., R]:
    """Give a command `--endpoint`, `--data-dir` and `--output`, and call it with a client and an output."""

    @cluster_options
    @output_option
    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        endpoint, data_dir = kwargs.pop("endpoint"), kwargs.pop("data_dir")
        out = Output(str(kwargs.pop("output_format")))
        assert isinstance(endpoint, str)
        assert data_dir is None or isinstance(data_dir, Path)
        with Client(endpoint, data_dir=data_dir) as client:
            return function(client, out, *args, **kwargs)

    return command


def cluster_options(function: Callable[P, R]) -> Callable[P, R]:
    """Give a command `--endpoint` and `--data-dir`."""
    for option in (
        click.option(
            "--data-dir",
            type=click.Path(file_okay=False, path_type=Path),
            help="Data directory of a cluster on this machine. [default: LAMBENT_DATA_DIR, or ~/.local/share/lambent]",
        ),
        click.option(
            "--endpoint",
            default="",
            metavar="HOST:PORT",
            help="A scheduler. [default: LAMBENT_ENDPOINT, or the data dir's]",
        ),
    ):
        function = option(function)
    return function


def output_option(function: Callable[P, R]) -> Callable[P, R]:
    """Give a command `--output`."""
    return click.option(
        "-o",
        "--output",
        "output_format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        is_eager=True,
        callback=_remember,
        help="Format of results on stdout; with json, errors on stderr are JSON as well.",
    )(function)


def _remember(ctx: click.Context, param: click.Parameter, value: str) -> str:  # noqa: ARG001 - click's signature
    ctx.meta[OUTPUT_KEY] = value
    return value
