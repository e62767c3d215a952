"""What is attacked: a cluster of one node, and a function that lives on it beside the attacker."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import time
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

import lambent
from tests.cluster import Cluster

SYSTEM_CALLS = """
import ctypes, errno, os
_libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    "Make a raw system call: what it returned, or the name of its errno."
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    returned = ctypes.c_long(_libc.syscall(ctypes.c_long(number), *wide)).value
    return returned if returned >= 0 else errno.errorcode[ctypes.get_errno()]

def attempt(action, *arguments):
    "Do it: what it returned, or the name of the errno of its OSError."
    try:
        return action(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
"""
"""Beginning of attack functions that ask the kernel directly."""

NEIGHBOUR = """
import os

SECRET = os.environ["SECRET"]
kept = {"count": 0, "secret": SECRET.encode() * 100}
with open("/tmp/secret", "w") as file:
    file.write(SECRET)

def handler(event, context):
    kept["count"] += 1
    with open("/tmp/secret") as file:
        text = file.read()
    return {"count": kept["count"], "memory": kept["secret"].decode() == SECRET * 100, "file": text == SECRET,
            "tmp": sorted(os.listdir("/tmp")), "pid": os.getpid(), "uid": os.getuid()}
"""


class Attack(Protocol):
    """Deploys a function and invokes it once: the fixture `attack`."""

    async def __call__(self, source: str, event: object = None, memory_mib: int = 128, timeout_s: int = 10) -> Any:
        """Give what the handler returned."""


def package(source: str) -> bytes:
    """Make the zip of a function whose handler is `attack.handler`."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        file.writestr("attack.py", source)
    return written.getvalue()


@dataclass
class Neighbour:
    """A function with a secret in its memory and in its /tmp, whose one environment must live through everything.

    Attributes:
        name: Its function name.
        secret: A text that nobody else may ever see.
        calls: How often it has answered.
        environment_id: Of the environment that answered first; empty before.
    """

    name: str
    secret: str
    calls: int = 0
    environment_id: str = ""

    async def answers(self, client: lambent.AsyncClient, timeout_s: float = 30) -> None:
        """Invoke it once: the environment is the same one, and nothing in its memory and its /tmp has changed."""
        result = await client.invoke(self.name, timeout_s=timeout_s)
        self.calls += 1
        self.environment_id = self.environment_id or result.environment_id
        assert result.environment_id == self.environment_id
        answer = result.json()
        assert (answer["count"], answer["memory"], answer["file"]) == (self.calls, True, True)
        assert answer["tmp"] == ["secret"]


@dataclass(frozen=True)
class Machine:
    """What an attempt might have changed of the machine: equal before and after, and started at the same time."""

    host_name: str
    mounts: tuple[str, ...]
    swaps: tuple[str, ...]
    core_pattern: str
    started_at: float = field(compare=False)  # by the clock that can be set
    keys: tuple[str, ...]

    @classmethod
    def look(cls, target: Target) -> Machine:
        """Read it; mounts below the cluster's data directory come and go with environments, and are left out."""
        own = str(target.data_dir.resolve())
        tables = [Path(f"/proc/{pid}/mountinfo").read_text().splitlines() for pid in ("self", target.agent.pid)]
        return cls(
            host_name=os.uname().nodename,
            mounts=tuple(line for table in tables for line in table if own not in line.split()[4]),
            swaps=tuple(line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()),
            core_pattern=Path("/proc/sys/kernel/core_pattern").read_text(),
            started_at=time.time() - time.monotonic(),
            keys=tuple(line for line in Path("/proc/keys").read_text().splitlines() if "attacker" in line),
        )


@dataclass
class Target:
    """A running cluster of one node, a client of it, and what attacks may not reach.

    Attributes:
        cluster: The cluster.
        client: Connected to it.
        neighbour: Lives on the same node as every attacker.
        deployed: Names of the functions that a test has deployed; they are deleted after it.
    """

    cluster: Cluster
    client: lambent.AsyncClient
    neighbour: Neighbour
    deployed: list[str] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        """The cluster's data directory on the host."""
        return self.cluster.data_dir

    @property
    def agent(self) -> psutil.Process:
        """The node agent."""
        return psutil.Process(self.cluster.process("node-1").pid)

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes below the agent with this name, as the host sees them: `lambent-zygote`, `lambent-reaper`, ..."""
        return self._below(lambda process: process.name() == name)

    def processes_of(self, uid: int) -> list[psutil.Process]:
        """Processes of the environment with this UID, its reaper included."""
        return self._below(lambda process: process.uids().real == uid)

    def _below(self, fits: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        """Processes below the agent that fit; others come and go meanwhile."""
        found = []
        for process in self.agent.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if fits(process):
                    found.append(process)
        return found

    @staticmethod
    def status(process: psutil.Process) -> dict[str, str]:
        """Fields of its /proc/PID/status."""
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def environments(self) -> list[dict[str, str]]:
        """Status of each process of each environment that is through the recipe: its reaper has a child."""
        found = []
        for reaper in self.processes("lambent-reaper"):
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                if children := reaper.children(recursive=True):
                    found += [self.status(process) for process in (reaper, *children)]
        return found

    @staticmethod
    def namespaces(process: psutil.Process) -> tuple[str, ...]:
        """Names of the namespaces that it is in, and that its children would be in."""
        return tuple(f"{link.name} {link.readlink()}" for link in sorted(Path(f"/proc/{process.pid}/ns").iterdir()))

    async def end(self, name: str, uid: int) -> None:
        """Delete a function and wait until the processes of its environment, which has this UID, have ended."""
        processes = self.processes_of(uid)
        assert processes
        await self.client.functions.delete(name)
        _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=20)
        assert alive == []

    async def next_tenant(self, uid: int, source: str) -> Any:
        """Deploy and invoke until an environment has this UID, whose handler gives it as `uid`; gives its answer.

        The slot of the environment before it, with its mounts, has then been cleaned.
        """
        for _ in range(40):  # the pool has other slots, which come first
            name = await self.deploy(source)
            answer = (await self.client.invoke(name)).json()
            await self.end(name, answer["uid"])
            if answer["uid"] == uid:
                return answer
        raise AssertionError(f"UID {uid} was not used again")

    async def deploy(self, source: str | bytes, *, memory_mib: int = 128, timeout_s: int = 10, **options: Any) -> str:
        """Deploy a function under a name of its own.

        Args:
            source: Text of a module with `handler(event, context)`, or the bytes of a zip with `attack.py`.
            memory_mib: Of the function.
            timeout_s: Of the function.
            options: As of `AsyncClient.deploy`.
        """
        name = f"attack-{uuid.uuid4().hex[:12]}"
        code = package(source) if isinstance(source, str) else source
        self.deployed.append(name)
        await self.client.deploy(
            name, code, handler="attack.handler", memory_mib=memory_mib, timeout_s=timeout_s, **options
        )
        return name

    async def attack(self, source: str, event: object = None, memory_mib: int = 128, timeout_s: int = 10) -> Any:
        """Deploy and invoke once, and give what the handler returned.

        Raises:
            FunctionError: The attack ended its own environment, raised, or timed out.
        """
        name = await self.deploy(source, memory_mib=memory_mib, timeout_s=timeout_s)
        return (await self.client.invoke(name, event)).json()
