"""How the kernel schedules the daemons beside the functions and clients of the same machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_NICENESS: Final = -10
"""Nine times the weight of an ordinary process: the scheduler of CPUs lets such a one run almost as soon as it wakes.
A daemon works for some microseconds and sleeps again; waiting behind somebody's handler for its turn costs
milliseconds, at each hop of each call."""


_AUTOGROUP = Path("/proc/self/autogroup")
"""The session's own niceness, where the kernel weighs sessions first and processes only within one (sched(7))."""


def prefer_daemon() -> None:
    """Have this process run before ordinary ones; without the privilege it goes on as it is.

    With it goes its session where that is its own, as under the supervisor, and not that of somebody's shell. Children
    inherit the one or the other: sandboxes go back to 0 by their recipe.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
        if os.getsid(0) == os.getpid() and _AUTOGROUP.exists():
            _AUTOGROUP.write_text(str(_NICENESS))
    except PermissionError as error:
        log.info("ordinary_priority", reason=str(error))
