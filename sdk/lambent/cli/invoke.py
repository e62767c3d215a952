"""`lambent invoke`."""

from __future__ import annotations

import codecs
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lambent.cli.options import Exclusive, FunctionName, Seconds, cluster_command
from lambent.cli.output import Output, parsed, plain

if TYPE_CHECKING:
    from lambent.blocking import Client
    from lambent.results import InvokeResult


class Payload(click.ParamType[bytes]):
    """An event: JSON text, `@` and a file's path, or `-` for stdin."""

    name = "payload"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Give the event's bytes, which are JSON or nothing."""
        if isinstance(value, bytes):
            return value
        content = self._read(str(value), param, ctx)
        if content:
            try:
                json.loads(content)
            except ValueError as error:
                self.fail(f"not JSON: {error}", param, ctx)
        return content

    def _read(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if value == "-":
            return sys.stdin.buffer.read()
        if not value.startswith("@"):
            return value.encode(errors="surrogateescape")
        try:
            return Path(value[1:]).read_bytes()
        except OSError as error:
            self.fail(f"{value[1:]} cannot be read: {error.strerror}", param, ctx)


@click.command()
@click.argument("name", type=FunctionName())
@click.option(
    "--payload",
    type=Payload(),
    default=b"",
    metavar="JSON|@FILE|-",
    help="The event: JSON text, @ and a file, or - for stdin.",
)
@click.option("--qualifier", default="", help="Version number, alias or $LATEST.")
@click.option("--stream", is_flag=True, help="Print the answer as the function yields it.")
@click.option("--log", is_flag=True, help="Print the end of the invocation's log to stderr.")
@click.option("--timeout-s", type=Seconds(min=0, min_open=True), help="How long to wait, queueing included.")
@click.option(
    "--idempotent",
    cls=Exclusive,
    excludes="stream",
    is_flag=True,
    help="Running twice does no harm: try again if the answer was lost.",
)
@cluster_command
def invoke(
    client: Client,
    out: Output,
    *,
    name: str,
    payload: bytes,
    qualifier: str,
    stream: bool,
    log: bool,
    timeout_s: float | None,
    idempotent: bool,
) -> None:
    """Run the function NAME and print its answer.

    \b
    Examples:
      lambent invoke hello --payload '{"name": "you"}'
      lambent invoke hello --payload @event.json --log
      cat event.json | lambent invoke hello --payload - --output json
      lambent invoke story --stream

    Exits with 3 when the function failed.
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    if stream:
        result = _stream(client, out, name=name, event=payload, qualifier=qualifier, log=log, timeout_s=timeout_s)
    else:
        result = client.invoke(
            name, payload, qualifier=qualifier, timeout_s=timeout_s, log_tail=log, idempotent=idempotent
        )
        if not out.as_json:
            out.payload(result.payload)
    if out.as_json:
        described = plain(result)
        assert isinstance(described, dict)
        if stream:
            del described["payload"]
            out.json_line({"result": described})
        else:
            out.json(described | {"payload": parsed(result.payload)})
        return
    if log and result.log_tail:
        click.echo(result.log_tail.rstrip(b"\n"), err=True)
    out.remark(_summary(result))


def _stream(
    client: Client,
    out: Output,
    *,
    name: str,
    event: bytes,
    qualifier: str,
    log: bool,
    timeout_s: float | None,
) -> InvokeResult:
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode  # A piece may end within a character.
    with client.stream(name, event, qualifier=qualifier, timeout_s=timeout_s, log_tail=log) as pieces:
        for piece in pieces:
            if not out.as_json:
                sys.stdout.buffer.write(piece)
            elif text := decode(piece):
                out.json_line({"chunk": text})
            sys.stdout.flush()
    if out.as_json and (text := decode(b"", final=True)):
        out.json_line({"chunk": text})
    if out.terminal:
        click.echo()
    assert pieces.result is not None
    return pieces.result


def _summary(result: InvokeResult) -> str:
    return (
        f"version {result.executed_version}, {result.duration_ms:.2f} ms ({_start(result)}), "
        f"{result.max_memory_used_mib} of {result.memory_size_mib} MiB, node {result.node_id}, {result.request_id}"
    )


def _start(result: InvokeResult) -> str:
    if not result.cold_start:
        return "warm"
    if result.cold_start_phases is None:
        return f"cold start, init {result.init_duration_ms:.1f} ms"
    phases = ", ".join(
        f"{field.name.removesuffix('_ms').replace('_', ' ')} {getattr(result.cold_start_phases, field.name):.1f}"
        for field in dataclasses.fields(result.cold_start_phases)
    )
    return f"cold start {result.queue_ms:.1f} ms: {phases}"
