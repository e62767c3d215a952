"""Generator processes that die, and what becomes of them when the command does."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from tests.cluster import COMMAND_TIMEOUT_S, RunningCommand, running_command

ENDLESS = ("load", "--target", "null", "--rate", "100", "--duration", "1h", "--processes", "2", "--progress", "plain")


def workers(command: RunningCommand) -> list[int]:
    """Its generator processes."""
    pid = command.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_process_that_dies_ends_the_run_with_an_error() -> None:
    """A result without a part of its calls would be a wrong one; the other process goes as well."""
    with running_command(*ENDLESS) as command:
        command.said("answered")
        first, second = workers(command)
        os.kill(first, signal.SIGKILL)
        command.said(f"generator process {first} ended with status -9")
        assert command.process.wait(COMMAND_TIMEOUT_S) == 1
    assert not Path(f"/proc/{second}").exists()


def test_processes_end_with_the_command() -> None:
    """A load that nobody watches would go on for an hour."""
    with running_command(*ENDLESS) as command:
        command.said("answered")
        ends = [os.pidfd_open(pid) for pid in workers(command)]
        command.process.kill()
        for end in ends:
            # A process's descriptor is readable once it has ended.
            assert select.select([end], [], [], COMMAND_TIMEOUT_S)[0]
            os.close(end)
