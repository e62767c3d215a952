"""Run one of the CLI's commands by the name of its entry point: `python -m lambent_supervisor.launch NAME ...`.

The supervisor starts the daemons so: it never imports them, and the CLI's own start-up is left out.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

GROUP = "lambent.commands"


def main() -> None:
    """Run the command named by the first argument with the rest."""
    name, *arguments = sys.argv[1:]
    (found,) = entry_points(group=GROUP, name=name)
    command = found.load()
    command.main(args=arguments, prog_name=f"lambent {name}")


if __name__ == "__main__":
    main()
