"""What a scheduler is told at its start: read once, checked, and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambent_common.credentials import Credentials


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Configuration of one scheduler instance.

    Attributes:
        scheduler_id: Identity that survives a restart, so that the instance takes its partitions back at once.
        etcd: URLs of the etcd members.
        nats: URLs of the NATS members.
        credentials: Token of the cluster, and what etcd and NATS ask for.
        listen: host:port of the gRPC server; port 0 picks a free one.
        session_listen: host:port of the session port; port 0 picks a free one.
        http_listen: host:port of the HTTP server; port 0 picks a free one.
        allowed_hosts: Further hosts that HTTP clients may name.
        region: Region in ARNs.
        keep_alive_s: How long an idle environment stays; see `Limits`.
        keep_alive_policy: Name of the policy that decides about that.
        eviction_policy: Name of the policy that decides which idle environment makes room.
        placement_policy: Name of the policy that decides which node gets a new environment.
        max_queue_wait_s: Longest wait of a synchronous call for capacity; see `Limits`.
        account_concurrency: Most invocations that an account may have running or waiting.
        drain_s: How long running calls may take after the order to stop.
    """

    scheduler_id: str
    etcd: tuple[str, ...]
    nats: tuple[str, ...]
    credentials: Credentials
    listen: str
    session_listen: str
    http_listen: str
    allowed_hosts: tuple[str, ...]
    region: str
    keep_alive_s: float
    keep_alive_policy: str
    eviction_policy: str
    placement_policy: str
    max_queue_wait_s: float
    account_concurrency: int
    drain_s: float
