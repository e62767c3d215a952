"""The end of a command: its result printed and written, its status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lambent_load.report import write_files
from lambent_load.text import summary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lambent.cli.output import Output
    from lambent_load.assertions import Assertion
    from lambent_load.result import Result

ASSERTION_FAILED = 4
INTERRUPTED = 130

_NOT_KEPT = {"payload", "endpoint", "data_dir", "output_format", "assertions", "progress", "report", "workers"}
"""Options that a result does not keep: what may be secret or long, and what says nothing about the load."""


def settings_of(ctx: click.Context) -> dict[str, object]:
    """Give the options as they were given, or by default, for the result."""
    return {name: value for name, value in ctx.params.items() if name not in _NOT_KEPT and value is not None}


def finish(
    ctx: click.Context, out: Output, result: Result, assertions: Sequence[Assertion], report: Path | None
) -> None:
    """Write and print a result, and end the command with its status."""
    if out.as_json:
        verdicts = [
            {"assertion": one.text, "value": one.value(result), "holds": one.holds(result)} for one in assertions
        ]
        out.json(result.as_json() | {"assertions": verdicts})
    else:
        click.echo(summary(result, assertions))
    if report is not None:
        try:
            paths = write_files(report, result, assertions)
        except OSError as error:
            raise click.ClickException(f"{error.filename} cannot be written: {error.strerror}") from error
        click.echo(f"written: {', '.join(map(str, paths))}", err=True)
    if result.interrupted:
        ctx.exit(INTERRUPTED)
    if not all(one.holds(result) for one in assertions):
        ctx.exit(ASSERTION_FAILED)
