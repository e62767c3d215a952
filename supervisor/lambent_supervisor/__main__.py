"""`python -m lambent_supervisor up ...`: the commands without the rest of the CLI; a detached supervisor runs so."""

from __future__ import annotations

import click

from .commands import down, up

if __name__ == "__main__":
    click.Group(commands=[up, down]).main(prog_name="lambent")
