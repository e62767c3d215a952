"""Attacks that last: what the host sees of the attacker, and whether the neighbour is answered meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

import lambent
from lambent_supervisor.data_directory import DataDirectory
from lambent_supervisor.processes import ProcessId
from tests.cluster import control_groups
from tests.security.target import Target

END_TIMEOUT_S = 20.0
"""For an environment to end once its function has been deleted; milliseconds as a rule."""

_CALM = """
import os

def handler(event, context):
    return attack(event) if event else [os.getuid(), "calm"]
"""


def processes_of(uid: int) -> dict[ProcessId, str]:
    """Processes of a UID as the host sees them, with name and state such as `python3.11 S`."""
    found: dict[ProcessId, str] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            lines = Path("/proc", name, "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        values = dict(line.split(":\t", 1) for line in lines[:12] if ":\t" in line)
        if values["Uid"].split("\t")[0] == str(uid) and (process := ProcessId.of(int(name))) is not None:
            found[process] = f"{values['Name']} {values['State'][0]}"
    return found


@dataclass
class Attacker:
    """A function with `attack(event)` that has answered once, so that its environment is known.

    Attributes:
        target: Where it lives.
        name: Its function name.
        uid: Of its sandbox.
        reaper: PID 1 of its sandbox, seen from the host.
        groups: Control groups of its sandbox.
    """

    target: Target
    name: str
    uid: int
    reaper: ProcessId
    groups: list[Path]

    @classmethod
    async def settle(cls, target: Target, source: str, *, memory_mib: int = 128, timeout_s: int = 10) -> Self:
        """Deploy it and look for its sandbox on the host."""
        name = await target.deploy(source + _CALM, memory_mib=memory_mib, timeout_s=timeout_s)
        uid, _ = (await target.client.invoke(name)).json()
        [reaper] = [process for process, text in processes_of(uid).items() if text.startswith("lambent-reaper")]
        assert psutil.Process(reaper.pid) in target.agent.children(recursive=True)
        mark = DataDirectory(target.data_dir).mark()
        directories = [path for root in control_groups(f"lambent-{mark}-") for path in root.glob("*/")]
        groups = [path for path in directories if str(reaper.pid) in (path / "cgroup.procs").read_text().split()]
        assert groups
        return cls(target, name, uid, reaper, groups)

    async def attack(self, event: Any = True) -> Any:
        """Invoke it: what the handler returned, or the FunctionError."""
        try:
            return (await self.target.client.invoke(self.name, event)).json()
        except lambent.FunctionError as error:
            return error

    async def besiege(self, event: Any = True, look: Callable[[], object] = lambda: None) -> Any:
        """Attack, and have the neighbour answer for as long as that takes; gives what `attack` does.

        Args:
            event: What the attack function gets.
            look: Called after each answer of the neighbour's.
        """
        attack = asyncio.create_task(self.attack(event))
        await during(self.target, attack, look)
        return await attack

    async def is_calm(self) -> None:
        """Its next call is answered."""
        assert (await self.target.client.invoke(self.name)).json()[1] == "calm"

    def processes(self) -> dict[ProcessId, str]:
        """Its processes as the host sees them, the reaper included."""
        return processes_of(self.uid)

    def memory_bytes(self) -> int:
        """What its control group says that it uses now; 0 when the group has gone with what was charged to it."""
        names = ("memory.usage_in_bytes", "memory.current")
        for path in [path / name for path in self.groups for name in names]:
            with contextlib.suppress(OSError):  # not of this version, or gone
                return int(path.read_text())
        return 0

    def cpu_s(self) -> float:
        """CPU time that its living processes have taken, in seconds."""
        taken = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = psutil.Process(process.pid).cpu_times()
                taken += times.user + times.system
        return taken

    async def end(self) -> None:
        """Delete the function and wait until its environment has ended."""
        await self.target.client.functions.delete(self.name)
        await wait_until_ended([self.reaper])

    def left(self) -> list[str]:
        """What of it is still on the host: nothing, once its environment has ended.

        The next sandbox may have its UID and control groups by then.
        """
        members = [pid for path in self.groups if path.exists() for pid in (path / "cgroup.procs").read_text().split()]
        found = {process.pid: text for process, text in self.processes().items()}
        found |= {int(pid): f"member {pid} of its control group" for pid in members}
        return [text for pid, text in found.items() if not self._is_of_another_sandbox(pid)]

    def _is_of_another_sandbox(self, pid: int) -> bool:
        try:
            process = psutil.Process(pid)
            line = [process, *process.parents()]
            return any(one.name() == "lambent-reaper" and one.pid != self.reaper.pid for one in line)
        except psutil.NoSuchProcess:
            return True  # it has ended meanwhile


async def wait_until_ended(processes: Iterable[ProcessId]) -> None:
    """Wait until none of them runs any more."""
    for process in processes:
        assert await asyncio.to_thread(process.wait_until_ended, END_TIMEOUT_S)


async def during(target: Target, attack: asyncio.Future[Any], look: Callable[[], object] = lambda: None) -> int:
    """Have the neighbour answer again and again until the attack is over; gives how often it did, at least once."""
    answered = 0
    while True:
        await target.neighbour.answers(target.client)
        answered += 1
        look()
        if attack.done():
            return answered


@dataclass
class Work:
    """What the agent has done.

    Attributes:
        share: CPU time by time, 1 for all of one core.
    """

    share: float = 0.0


@contextlib.contextmanager
def agent_at_work(target: Target) -> Iterator[Work]:
    """Measure what the agent does inside the block."""
    work, before, started = Work(), target.agent.cpu_times(), time.monotonic()
    yield work
    after = target.agent.cpu_times()
    work.share = (after.user + after.system - before.user - before.system) / (time.monotonic() - started)
