"""The children that are Lambent's own: the scheduler and the node agents."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .child import ChildSpec
from .ports import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .child import Ready
    from .data_directory import DataDirectory
    from .shares import NodeShare

SCHEDULER_ID = "scheduler-1"


@dataclass(frozen=True, slots=True)
class Stores:
    """Where etcd and NATS run; every daemon is told.

    Attributes:
        etcd: URL of etcd.
        nats: URL of nats-server.
    """

    etcd: str
    nats: str


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """What `up` hands on to the scheduler.

    Attributes:
        grpc_port: Port on loopback; 0 for any.
        http_port: Port on loopback; 0 for any.
        keep_alive_s: Time for which an idle environment is kept.
        max_queue_wait_s: Longest time that a call waits for an environment.
        keep_alive_policy: Decides how long idle environments stay.
        eviction_policy: Decides which of them makes room for another one.
        placement_policy: Decides which node gets a new one.
    """

    grpc_port: int
    http_port: int
    keep_alive_s: float
    max_queue_wait_s: float
    keep_alive_policy: str
    eviction_policy: str
    placement_policy: str


@dataclass(frozen=True, slots=True)
class Recycling:
    """When the agents replace environments; None for never.

    Attributes:
        after_invocations: After so many.
        after_hours: From this age on.
    """

    after_invocations: int | None = None
    after_hours: float | None = None

    def flags(self) -> tuple[str, ...]:
        """For an agent's command line."""
        flags = []
        if self.after_invocations is not None:
            flags.append(f"--recycle-after-invocations={self.after_invocations}")
        if self.after_hours is not None:
            flags.append(f"--recycle-after-hours={self.after_hours:g}")
        return tuple(flags)


def scheduler_spec(
    directory: DataDirectory, stores: Stores, options: SchedulerOptions, environment: Mapping[str, str]
) -> ChildSpec:
    """The scheduler; started again, it takes the ports that it had."""

    def command(announced: Ready | None) -> tuple[str, ...]:
        grpc, http = f"{LOOPBACK}:{options.grpc_port}", f"{LOOPBACK}:{options.http_port}"
        if announced is not None:
            grpc, http = announced.grpc, announced.http.removeprefix("http://")
        return (
            *_daemon("scheduler", directory, stores),
            f"--listen={grpc}",
            f"--session-listen={LOOPBACK}:0",
            f"--http-listen={http}",
            f"--id={SCHEDULER_ID}",
            f"--keep-alive={options.keep_alive_s:g}",
            f"--max-queue-wait={options.max_queue_wait_s:g}",
            f"--keep-alive-policy={options.keep_alive_policy}",
            f"--eviction-policy={options.eviction_policy}",
            f"--placement-policy={options.placement_policy}",
        )

    return ChildSpec("scheduler", command, environment, directory.log("scheduler"))


def agent_spec(
    directory: DataDirectory,
    stores: Stores,
    share: NodeShare,
    environment: Mapping[str, str],
    *,
    number: int,
    flags: Sequence[str],
) -> ChildSpec:
    """The agent of a node, counted from 1; its port is a new one each time, which it publishes in etcd.

    `flags` are those that all agents get.
    """
    name = f"node-{number}"
    mark = directory.mark()
    assert mark is not None, "a locked data directory has one"
    command = (
        *_daemon("agent", directory, stores),
        f"--listen={LOOPBACK}:0",
        f"--state-dir={directory.node(number)}",
        f"--id={name}",
        f"--memory={share.memory_mib}",
        f"--cpus={share.cpus:g}",
        f"--disk={share.disk_mib}",
        f"--owner={mark}-{number}",
        *flags,
    )
    return ChildSpec(name, lambda _announced: command, environment, directory.log(name))


def _daemon(name: str, directory: DataDirectory, stores: Stores) -> tuple[str, ...]:
    # A module, not the `lambent` script: it is found wherever this very code was imported from.
    return (
        sys.executable,
        "-m",
        "lambent_supervisor.launch",
        name,
        f"--etcd={stores.etcd}",
        f"--nats={stores.nats}",
        f"--credentials={directory.credentials}",
    )
