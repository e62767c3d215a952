"""Entry point: a group of commands that are imported only when they are run.

Exit codes: 0 done, 1 the service or the cluster failed, 2 wrong usage, 3 the function failed, 4 an assertion failed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from typing import TYPE_CHECKING, NoReturn, cast

import click

from lambent.cli.output import OUTPUT_KEY, report_error
from lambent.errors import LambentError

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENTRY_POINTS = "lambent.commands"
"""Group of the entry points by which daemons add their commands; the SDK never imports them by name."""

_INTERRUPTED = 130
"""Exit code of a command ended by Ctrl-C: 128 + SIGINT, as shells have it."""

_COMMANDS = {
    "deploy": "lambent.cli.deploy:deploy",
    "invoke": "lambent.cli.invoke:invoke",
    "list": "lambent.cli.functions:list_functions",
    "describe": "lambent.cli.functions:describe",
    "versions": "lambent.cli.functions:versions",
    "alias": "lambent.cli.aliases:alias",
    "rollback": "lambent.cli.aliases:rollback",
    "concurrency": "lambent.cli.functions:concurrency",
    "delete": "lambent.cli.functions:delete",
    "logs": "lambent.cli.logs:logs",
    "nodes": "lambent.cli.cluster:nodes",
    "status": "lambent.cli.cluster:status",
    "completion": "lambent.cli.completion:completion",
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Give the names, in the order of use: the functions' first, then the daemons'."""
        return [*_COMMANDS, *sorted({point.name for point in _entry_points()} - _COMMANDS.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """Import and give one command; None when there is none of this name."""
        if (location := _COMMANDS.get(cmd_name)) is not None:
            module, _, attribute = location.partition(":")
            return cast("click.Command", getattr(importlib.import_module(module), attribute))
        for point in _entry_points():
            if point.name == cmd_name:
                return _load(point)
        return None

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; Lambent's errors become a message and an exit code."""
        try:
            return super().invoke(ctx)
        except LambentError as error:
            ctx.exit(report_error(error, as_json=ctx.meta.get(OUTPUT_KEY) == "json"))


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 the service or the cluster failed, 2 wrong usage, 3 the function failed, "
    "4 an assertion of `load` failed.",
)
@click.version_option(package_name="lambent", message="lambent %(version)s")
def cli() -> None:
    """AWS Lambda for machines you own.

    \b
    Begin here:
      lambent up                                         start a cluster on this machine
      lambent deploy hello ./hello --handler app.handler
      lambent invoke hello --payload '{"name": "you"}'
      lambent logs hello --follow
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    try:
        code = cli.main(args=arguments, prog_name="lambent", standalone_mode=False)
    except click.Abort:
        return _INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """Run the command that the process was started with."""
    sys.exit(run())


def _load(point: importlib.metadata.EntryPoint) -> click.Command:
    """Give a daemon's command; one that is not installed says so when it is run, and does not spoil the others."""
    try:
        return cast("click.Command", point.load())
    except ImportError as error:
        message = f"`lambent {point.name}` cannot be loaded: {error}"

        @click.command(point.name, context_settings={"ignore_unknown_options": True}, short_help="(not installed)")
        @click.argument("arguments", nargs=-1)
        def missing(arguments: tuple[str, ...]) -> None:  # noqa: ARG001 - whatever was given
            raise click.ClickException(message)

        return missing


def _entry_points() -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=_ENTRY_POINTS)
