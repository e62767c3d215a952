"""Generator processes that die, and what becomes of them when the command does."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.cluster import COMMAND_TIMEOUT_S, LAMBENT, RunningCommand, running_command

ENDLESS = ("load", "--target", "null", "--rate", "100", "--duration", "1h", "--processes", "2", "--progress", "plain")


def workers(command: RunningCommand) -> list[int]:
    """Its generator processes."""
    pid = command.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_worker_of_another_machine_has_its_share(lambent: Run) -> None:
    """Whatever starts a program there and passes on its standard input and output; `env` stands for `ssh` here."""
    elsewhere = f"env -C / {LAMBENT} load worker"
    arguments = ("--rate", "300", "--duration", "1s", "--worker", elsewhere, "--worker", elsewhere, "-o", "json")
    found = lambent("load", "--target", "null", *arguments).json()
    assert (found["processes"], found["sent"], found["answered"]) == (3, 300, 300)
    alone = lambent("load", "--target", "null", "--processes", "0", *arguments).json()
    assert (alone["processes"], alone["sent"]) == (2, 300)


@pytest.mark.parametrize(
    ("worker", "says"), [("no-such-program", "'no-such-program' cannot be run"), ("echo hello", "said b'hello")]
)
def test_what_is_no_worker_is_said(lambent: Run, worker: str, says: str) -> None:
    """A wrong word after `ssh` is the commonest of mistakes."""
    ran = lambent("load", "--target", "null", "--rate", "1", "--worker", worker)
    assert ran.code == 1
    assert says in ran.err


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
