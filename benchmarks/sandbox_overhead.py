"""Warm calls of a function in the full sandbox, beside the same path without what stands between it and the kernel.

In a process of its own, which enters a mount namespace as an agent does, and prints both medians in milliseconds. The
calls go over the environment's channel, as the agent's do: on the way from the SDK the difference would drown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import uvloop

from benchmarks.measure import percentile, sequential_ms
from benchmarks.processes import children
from benchmarks.sandbox_environment import Environment, write_function
from lambent_node_agent.cgroups import Group
from lambent_node_agent.network import LoopbackAttachment, LoopbackOnly
from lambent_node_agent.network.namespaces import own_namespace
from lambent_node_agent.sandbox import SandboxConfig, SandboxHost, enter_private_mount_namespace, host

_FULL_MIB, _FULL_MILLIS = 1769, 1000
"""AWS Lambda: memory that comes with one whole CPU. With less, the quota would be measured and not the path."""
_MARK = "bench-overhead"
_WARM_UP = 500
_TURNS = 40
_CALLS_OF_A_TURN = 100


class _HostNetwork(LoopbackOnly):
    """Gives each sandbox the network namespace of this process."""

    def attach(self, position: int) -> LoopbackAttachment:  # noqa: ARG002 - all have the same
        return LoopbackAttachment(own_namespace())


async def sandbox_overhead() -> tuple[float, float]:
    """Give the median of a warm call with the protections and without, in milliseconds."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.sandbox_overhead",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    full, bare = map(float, out.split()[-2:])
    return full, bare


@contextlib.contextmanager
def _unprotected() -> Iterator[None]:
    """Let sandboxes that are made inside have no system call filter, no control groups and the host's network.

    There is no such setting: what the product calls is replaced in this process alone.
    """
    with (
        mock.patch.object(host, "compile_filters", return_value=()),
        mock.patch.object(Group, "open_entrances", return_value=[]),
        mock.patch.object(host, "_open_networks", return_value=_HostNetwork()),
    ):
        yield


def _reapers() -> set[int]:
    """Give the first process of each sandbox that this process has."""
    return {reaper for zygote in children(os.getpid()) for reaper in children(zygote)}


def _require(pid: int, *, protected: bool) -> None:
    """Assert that a sandbox is what it is to be measured as."""
    status = Path(f"/proc/{pid}/status").read_text()
    assert ("Seccomp:\t2" in status) is protected
    assert (os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")) is protected
    own = Path("/proc/self/cgroup").read_text()
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    assert (_MARK in groups and _MARK not in own) is protected


async def _measure() -> tuple[float, float]:
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lambent-bench-")))
        code = write_function(directory)

        async def start(name: str) -> Environment:
            config = SandboxConfig(directory / name, f"{_MARK}-{name}-{os.getpid()}", pool_size=0)
            made = await stack.enter_async_context(SandboxHost(config))
            environment = await Environment.start(made, code, _FULL_MIB, _FULL_MILLIS)
            stack.push_async_callback(environment.close)
            return environment

        full = await start("full")
        [protected] = _reapers()
        with _unprotected():
            bare = await start("bare")
        [unprotected] = _reapers() - {protected}
        _require(protected, protected=True)
        _require(unprotected, protected=False)
        for environment in (full, bare):
            await sequential_ms(environment.invoke, _WARM_UP)
        medians: dict[Environment, list[float]] = {full: [], bare: []}
        for turn in range(_TURNS):
            for environment in (full, bare) if turn % 2 else (bare, full):
                medians[environment].append(percentile(await sequential_ms(environment.invoke, _CALLS_OF_A_TURN), 50))
        return statistics.median(medians[full]), statistics.median(medians[bare])


if __name__ == "__main__":
    enter_private_mount_namespace()
    print(*uvloop.run(_measure()))
