"""Keeping a lease alive from a thread of its own, so that a busy event loop cannot lose it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

import grpc
import structlog
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from lambent_common.etcd.endpoints import blocking_channel, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lambent_common.credentials import Credentials

log = structlog.get_logger()


class LeaseKeeper:
    """Renews a lease three times within its life, until closed or lost.

    Args:
        endpoints: URLs of the members.
        credentials: For https.
        lease_id: The lease.
        ttl_s: Its time to live.
        on_lost: Called once, from the thread, when the lease has lapsed: etcd says so, or no renewal succeeded for
            `ttl_s`.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        credentials: Credentials,
        lease_id: int,
        ttl_s: int,
        on_lost: Callable[[], None],
    ) -> None:
        self._targets = parse(endpoints)
        self._credentials = credentials
        self._lease_id = lease_id
        self._ttl_s = ttl_s
        self._on_lost = on_lost
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> Self:
        """Begin; the lease was granted just now."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop renewing. The lease lapses by itself unless it is revoked."""
        self._closing.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=self._ttl_s)

    def _run(self) -> None:
        index = 0
        alive_until = time.monotonic() + self._ttl_s
        interval_s = self._ttl_s / 3
        target, tls = self._targets[0]
        channel = blocking_channel(target, tls, self._credentials)
        try:
            while not self._closing.wait(interval_s):
                sent_at = time.monotonic()
                ttl_s = self._renew(channel)
                if ttl_s == 0:
                    self._lost("etcd has ended it")
                    return
                if ttl_s is not None:
                    alive_until = sent_at + ttl_s
                    interval_s = self._ttl_s / 3
                    continue
                if time.monotonic() >= alive_until:
                    self._lost("no member answered in time")
                    return
                channel.close()
                index = (index + 1) % len(self._targets)
                target, tls = self._targets[index]
                channel = blocking_channel(target, tls, self._credentials)
                interval_s = self._ttl_s / 10
        finally:
            channel.close()

    def _renew(self, channel: grpc.Channel) -> int | None:
        """Renew once: the new time to live, 0 when the lease is gone, None without an answer."""
        request = rpc_pb2.LeaseKeepAliveRequest(ID=self._lease_id)
        try:
            responses = rpc_pb2_grpc.LeaseStub(channel).LeaseKeepAlive(iter((request,)), timeout=self._ttl_s / 3)
            return int(next(responses).TTL)
        except (grpc.RpcError, StopIteration) as error:
            log.warning("lease_renewal_failed", lease_id=self._lease_id, error=str(error)[:200])
            return None

    def _lost(self, reason: str) -> None:
        log.error("lease_lost", lease_id=self._lease_id, reason=reason)
        self._on_lost()
