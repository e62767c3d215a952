"""What the operator is told, on the terminal or in a log."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def tell(text: str, log: Path, *, err: bool = True) -> None:
    """Write a line to standard error or output; never raises, since a cluster is worth more than a line about it.

    Args:
        text: The line.
        log: Gets it, and everything from then on, when whoever read the stream has gone.
        err: True for standard error.
    """
    descriptor, line = 2 if err else 1, text.encode(errors="replace") + b"\n"
    try:
        os.write(descriptor, line)
    except OSError:
        with contextlib.suppress(OSError):  # the disk is full: then there is nobody left to tell
            move_output(log)
            os.write(descriptor, line)


def move_output(log: Path) -> None:
    """Let this process write to its log from now on instead of the terminal that it was started from."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
