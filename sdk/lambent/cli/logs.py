"""`lambent logs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lambent.cli.options import Duration, FunctionName, cluster_command

if TYPE_CHECKING:
    from lambent.blocking import Client
    from lambent.cli.output import Output


@click.command()
@click.argument("name", type=FunctionName())
@click.option("-f", "--follow", is_flag=True, help="Go on as more arrives, until Ctrl-C.")
@click.option("--since", "since_s", type=Duration(), help="How far back: 30s, 5m, 2h, 1d. [default: all that is kept]")
@cluster_command
def logs(client: Client, out: Output, *, name: str, follow: bool, since_s: float | None) -> None:
    """Print what the function NAME wrote, oldest line first.

    \b
    Examples:
      lambent logs hello --since 5m
      lambent logs hello --follow
      lambent logs hello --output json | jq -r .message
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    for event in client.logs(name, since_s=since_s, follow=follow):
        if out.as_json:
            out.json_line(event)
            continue
        stamp = event.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        click.echo(f"{click.style(stamp, dim=True)} {event.message.rstrip()}")
