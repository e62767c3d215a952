"""`lambent doctor`: the command line."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import click

from lambent.endpoint import default_data_dir
from lambent_common.logging import configure_logging
from lambent_node_agent.isolation import Level

from .checks import Check, Status, run_checks
from .facts import gather_facts

_MARKS = {Status.OK: ("ok", "green"), Status.WARNING: ("warning", "yellow"), Status.MISSING: ("missing", "red")}
_MARK_WIDTH = max(len(mark) for mark, _ in _MARKS.values())


@click.command()
@click.option(
    "--require-isolation",
    type=click.Choice([level.value for level in Level]),
    default=Level.REDUCED.value,
    show_default=True,
    help="Level of isolation below which this machine is not ready.",
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def doctor(require_isolation: str, output: str) -> None:
    r"""Tell which protections and prerequisites this machine has; exit 1 when something needed is missing.

    \b
    Examples:
      lambent doctor --require-isolation full
      lambent doctor --output json | jq '.checks[] | select(.status != "ok")'
    """
    configure_logging("doctor", level="error")
    data_dir = default_data_dir(os.environ).absolute()
    facts = asyncio.run(gather_facts(os.environ.get("PATH", os.defpath), data_dir))
    checks = run_checks(facts, Level(require_isolation))
    ready = all(check.status is not Status.MISSING for check in checks)
    if output == "json":
        click.echo(json.dumps({"ready": ready, "checks": [_as_json(check) for check in checks]}, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            click.echo(_as_line(check, width))
    sys.exit(0 if ready else 1)


def _as_json(check: Check) -> dict[str, str]:
    return {"name": check.name, "status": check.status.value, "detail": check.detail, "help": check.help}


def _as_line(check: Check, name_width: int) -> str:
    mark, colour = _MARKS[check.status]
    line = f"{click.style(mark.ljust(_MARK_WIDTH), fg=colour)}  {check.name.ljust(name_width)}  {check.detail}"
    return f"{line}. {check.help}" if check.help else line
