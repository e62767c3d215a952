"""What commands print: tables and colour on a terminal, tab-separated lines in a pipe, JSON when asked."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import click

from lambent.errors import FunctionError, LambentError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OUTPUT_KEY = "lambent.output"
"""Where a command's context keeps the output format, for errors that end the command."""

SERVICE_FAILED = 1
FUNCTION_FAILED = 3

_UNITS = ("B", "KiB", "MiB", "GiB")


class Output:
    """Prints results to stdout and remarks to stderr."""

    def __init__(self, output_format: str) -> None:
        self.as_json = output_format == "json"
        self.terminal = sys.stdout.isatty() and not self.as_json

    def json(self, value: object) -> None:
        """Print a value as one JSON document."""
        click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))

    def json_line(self, value: object) -> None:
        """Print a value as one line of JSON, for results that keep coming."""
        click.echo(json.dumps(plain(value), ensure_ascii=False))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows under a heading."""
        if not self.terminal:
            click.echo("\t".join(columns))
            for row in rows:
                click.echo("\t".join(row))
            return
        from rich.console import Console  # noqa: PLC0415 - only terminals pay for it
        from rich.table import Table  # noqa: PLC0415 - as above

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(_escape(cell) for cell in row))
        Console().print(table)

    def fields(self, values: Mapping[str, str]) -> None:
        """Print one thing, a line per field."""
        if not self.terminal:
            for name, value in values.items():
                click.echo(f"{name}\t{value}")
            return
        width = max(map(len, values), default=0)
        for name, value in values.items():
            click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")

    def payload(self, payload: bytes) -> None:
        """Print a function's answer: its very bytes in a pipe, coloured JSON on a terminal."""
        if self.terminal:
            try:
                text = payload.decode()
                json.loads(text)
            except ValueError:
                pass
            else:
                from rich.console import Console  # noqa: PLC0415 - only terminals pay for it

                Console().print_json(text)
                return
        click.echo(payload, nl=self.terminal)

    def remark(self, text: str) -> None:
        """Print a line for the person at the terminal; scripts get none."""
        if self.terminal:
            click.secho(text, dim=True, err=True)


def plain(value: object) -> object:
    """Give a value as JSON has it: dataclasses as objects, times in ISO 8601, enums as their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value


def parsed(payload: bytes) -> object:
    """Give an answer as a JSON value, or as text when it is none."""
    try:
        value: object = json.loads(payload)
    except ValueError:
        return payload.decode(errors="replace")
    return value


def size(size_bytes: int) -> str:
    """Write a size for a person."""
    amount = float(size_bytes)
    for unit in _UNITS:
        if amount < 1024 or unit == _UNITS[-1]:
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def when(moment: datetime) -> str:
    """Write a time for a person: local, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def report_error(error: LambentError, *, as_json: bool) -> int:
    """Print an error to stderr and give the exit code that goes with it."""
    if isinstance(error, FunctionError):
        if as_json:
            _json_error(
                {
                    "kind": "function",
                    "type": error.error_type,
                    "message": error.error_message,
                    "stack_trace": error.stack_trace,
                    "request_id": error.request_id,
                    "log_tail": error.log_tail,
                }
            )
        else:
            _print_function_error(error)
        return FUNCTION_FAILED
    if as_json:
        described: dict[str, object] = {"kind": "service", "type": type(error).__name__, "message": str(error)}
        if isinstance(error, ServiceError):
            described |= {"name": error.aws_name, "dispatched": error.dispatched, "details": error.details}
        _json_error(described)
    else:
        label = click.style("Error:", fg="red", bold=True)
        reason = (
            f" ({error.details['Reason']})" if isinstance(error, ServiceError) and "Reason" in error.details else ""
        )
        click.echo(f"{label} {error}{reason}", err=True)
    return SERVICE_FAILED


def _print_function_error(error: FunctionError) -> None:
    if error.log_tail:
        click.echo(error.log_tail.rstrip(b"\n"), err=True)
    if error.stack_trace:
        click.echo("Remote traceback (most recent call last):", err=True)
        for line in error.stack_trace:
            click.echo(line.rstrip("\n"), err=True)
    click.echo(f"{click.style(error.error_type, fg='red', bold=True)}: {error.error_message}", err=True)
    if error.request_id:
        click.secho(f"request id {error.request_id}", dim=True, err=True)


def _json_error(described: Mapping[str, object]) -> None:
    click.echo(json.dumps({"error": plain(described)}, ensure_ascii=False), err=True)


def _escape(cell: str) -> str:
    return cell.replace("[", "\\[")
