"""The generator processes of a run: started together, followed, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from typing import TYPE_CHECKING

from lambent.errors import InternalError, InvalidParameterError, service_error
from lambent_load.tally import Tally
from lambent_load.worker import MAX_LINE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from lambent_load.plan import Plan

MOST_PROCESSES = 64

OWN = (sys.executable, "-m", "lambent_load.worker")
"""The command of a generator process of this machine."""

_READY_TIMEOUT_S = 60.0
"""For a process to start and connect; a second as a rule, on a machine with nothing else to do."""

_END_TIMEOUT_S = 10.0
"""For processes that were stopped: they end their calls and say goodbye to the cluster."""


class Generators:
    """Processes that are connected and wait for the word. Made by `connected`."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        self.stopped = False

    async def run(self, on_tally: Callable[[Tally], None]) -> float:
        """Have all of them send, and return when the last one has ended.

        Args:
            on_tally: Gets what each has counted since its last report, twice a second.

        Returns:
            CPU seconds that they have used for it.

        Raises:
            ServiceError: One of them failed.
        """
        for process in self._processes:
            _say(process, b"start\n")
        following = [asyncio.create_task(_follow(process, on_tally)) for process in self._processes]
        try:
            return sum(await asyncio.gather(*following))
        finally:
            for task in following:
                task.cancel()

    def stop(self) -> None:
        """Have them send nothing more and end what is in flight; `run` returns soon after."""
        self.stopped = True
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()


@contextlib.asynccontextmanager
async def connected(plan: Plan, commands: Sequence[Sequence[str]]) -> AsyncIterator[Generators]:
    """Start the processes, each with its share of the plan, and wait until all are connected.

    Args:
        plan: What to send.
        commands: Each starts one process, here or, as `ssh` does, elsewhere.

    Raises:
        ServiceError: The target cannot be reached, or a process cannot start.
    """
    started: list[Process] = []
    try:
        for command, part in zip(commands, plan.divided(len(commands)), strict=True):
            # A session of its own: Ctrl-C is for the process that the person sees, which then stops these.
            try:
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=PIPE, stdout=PIPE, limit=MAX_LINE_BYTES, start_new_session=True
                )
            except OSError as error:
                raise InvalidParameterError(f"{command[0]!r} cannot be run: {error.strerror}") from error
            started.append(process)
            _say(process, part.encode() + b"\n")
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                for process in started:
                    await _next(process)
        except TimeoutError as error:
            raise InternalError(f"a generator process was not ready within {_READY_TIMEOUT_S:g} s") from error
        yield Generators(started)
    finally:
        await _end(started)


async def _follow(process: Process, on_tally: Callable[[Tally], None]) -> float:
    """Pass on a process's counts; gives the CPU seconds that it has used."""
    while "done" not in (said := await _next(process)):
        on_tally(Tally.from_json(said["tally"]))
    return float(str(said["done"]["cpu_s"]))


async def _next(process: Process) -> Mapping[str, dict[str, object]]:
    """Give what the process says next; its failure is raised."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise InternalError(f"generator process {process.pid} ended with status {await process.wait()}")
    try:
        said: dict[str, dict[str, object]] = json.loads(line)
    except ValueError as error:
        raise InternalError(f"generator process {process.pid} said {line[:80]!r}, which no generator says") from error
    if "failed" in said:
        raise service_error(str(said["failed"]), str(said["message"]))
    return said


def _say(process: Process, line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line)


async def _end(processes: list[Process]) -> None:
    """Let them end by themselves, and kill what does not."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    ending = [asyncio.create_task(process.wait()) for process in processes]
    if ending:
        await asyncio.wait(ending, timeout=_END_TIMEOUT_S)
    for process in processes:
        if process.returncode is None:
            process.kill()
    await asyncio.gather(*ending)
