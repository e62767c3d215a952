"""How the kernel schedules the daemons beside the functions and clients of the same machine."""

from __future__ import annotations

import os
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_NICENESS: Final = -10
"""Nine times the weight of an ordinary process: the scheduler of CPUs lets such a one run almost as soon as it wakes.
A daemon works for some microseconds and sleeps again; waiting behind somebody's handler for its turn costs
milliseconds, at each hop of each call."""


def prefer_daemon() -> None:
    """Have this process run before ordinary ones; without the privilege it goes on as it is.

    Children inherit it: sandboxes go back to 0 by their recipe.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    except PermissionError as error:
        log.info("ordinary_priority", reason=str(error))
