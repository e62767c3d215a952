"""A supervisor in the background: the command waits for its word that the cluster serves, or for its error."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from .errors import ChildFailedError, SupervisorError, supervisor_error

if TYPE_CHECKING:
    from collections.abc import Sequence

# Three layers of children with a minute each, and their stop when one fails.
REPORT_TIMEOUT_S = 300.0
_REPORT_BYTES = 1 << 16


class Report:
    """The detached supervisor's end: one JSON line, then the descriptor is closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_inheritable(descriptor, False)  # or a child would keep the waiting command from seeing our end

    def ready(self, cluster: dict[str, str]) -> None:
        """The cluster serves."""
        self._send({"ready": cluster})

    def failed(self, error: SupervisorError) -> None:
        """The cluster cannot be started."""
        self._send({"error": {"type": type(error).__name__, "message": error.message, "help": error.help}})

    def _send(self, content: object) -> None:
        try:
            os.write(self._descriptor, json.dumps(content).encode() + b"\n")
        except BrokenPipeError:
            pass  # the command that waited was killed; the cluster serves all the same
        finally:
            os.close(self._descriptor)


def start_detached(arguments: Sequence[str]) -> dict[str, str]:
    """Start `lambent up` with these arguments in a session of its own; gives its report once it is ready.

    Until then it writes its notices to this process's standard error.

    Raises:
        SupervisorError: What it failed with.
    """
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "lambent_supervisor", "up", *arguments, f"--report-fd={write_end}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(write_end,),
            start_new_session=True,
        )
        os.close(write_end)
        try:
            line = _read_report(read_end)
        except BaseException:  # Ctrl-C too: a cluster that nobody was told of shall not stay
            process.terminate()
            process.wait()
            raise
    finally:
        os.close(read_end)
    if not line:
        raise ChildFailedError(
            f"the supervisor ended with status {process.wait()} before the cluster was ready",
            help_="Run `lambent up` without --detach to see why.",
        )
    report = json.loads(line)
    if "error" in report:
        process.wait()
        error = report["error"]
        raise supervisor_error(error["type"], error["message"], error["help"])
    ready: dict[str, str] = report["ready"]
    process.returncode = 0  # it stays, and is nobody's to wait for
    return ready


def _read_report(descriptor: int) -> bytes:
    """Read until the other end is closed.

    Raises:
        ChildFailedError: It was not within REPORT_TIMEOUT_S.
    """
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + REPORT_TIMEOUT_S
    content = b""
    while poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        piece = os.read(descriptor, _REPORT_BYTES)
        if not piece:
            return content
        content += piece
    raise ChildFailedError(
        f"the cluster was not ready within {REPORT_TIMEOUT_S:.0f} s", help_="Its logs are in the data directory."
    )
