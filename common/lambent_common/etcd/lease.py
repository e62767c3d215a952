"""Keeping a lease alive from a thread of its own, so that a busy event loop cannot lose it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Self

import grpc
import structlog
from aetcd.rpc import rpc_pb2

from lambent_common.etcd.endpoints import blocking_channel, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lambent_common.credentials import Credentials

log = structlog.get_logger()

_KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"

_MAX_ATTEMPT_S = 2.0
"""A member that is silent leaves time for another one within a lease of 5 s."""


class LeaseKeeper:
    """Renews a lease three times within its life, until closed or lost.

    An etcd that does not answer has not ended the lease: it counts no time while it is away, and a new leader grants
    every lease its full time again. So silence is logged and asked again, and only etcd's own word ends it. Whoever
    could be replaced meanwhile without hearing of it is fenced by the epoch in its orders, not by this.

    Args:
        endpoints: URLs of the members.
        credentials: For https.
        lease_id: The lease.
        ttl_s: Its time to live.
        on_lost: Called once, from the keeper's thread, when etcd says that the lease does not exist.
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
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> Self:
        """Begin; the lease was granted just now."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop renewing; returns at once, also from a renewal under way. The lease lapses unless it is revoked."""
        self._closing.set()
        self._close_channel()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=self._ttl_s)

    def _run(self) -> None:
        """Renew, and go to the next member after a failure."""
        renewed_at = time.monotonic()
        wait_s, index, overdue = self._ttl_s / 3, 0, False
        renew = self._open(index)
        while not self._closing.wait(wait_s):
            sent_at = time.monotonic()
            ttl_s = self._renew(renew)
            if ttl_s == 0:
                log.error("lease_lost", lease_id=self._lease_id)
                self._on_lost()
                break
            if ttl_s is not None:
                if overdue:
                    log.info("lease_renewed_again", lease_id=self._lease_id, silent_s=sent_at - renewed_at)
                renewed_at, overdue, wait_s = sent_at, False, self._ttl_s / 3
                continue
            if not overdue and time.monotonic() - renewed_at > self._ttl_s:
                overdue = True
                log.warning("lease_overdue", lease_id=self._lease_id, ttl_s=self._ttl_s)
            index = (index + 1) % len(self._targets)
            renew, wait_s = self._open(index), self._ttl_s / 10
        self._close_channel()

    def _open(self, index: int) -> Any:
        """Connect to a member; gives the call that renews."""
        self._close_channel()
        target, tls = self._targets[index]
        channel = blocking_channel(target, tls, self._credentials)
        with self._lock:
            self._channel = channel
        # etcd's method is a stream; one request and one answer on it look the same on the wire, and need no second
        # thread, which gRPC takes to send the requests of a stream.
        return channel.unary_unary(
            _KEEP_ALIVE,
            request_serializer=rpc_pb2.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=rpc_pb2.LeaseKeepAliveResponse.FromString,
        )

    def _renew(self, renew: Any) -> int | None:
        """Renew once: the new time to live in seconds, 0 when the lease is gone, None without an answer."""
        request = rpc_pb2.LeaseKeepAliveRequest(ID=self._lease_id)
        try:
            return int(renew(request, timeout=min(self._ttl_s / 3, _MAX_ATTEMPT_S)).TTL)
        except (grpc.RpcError, ValueError) as error:  # ValueError: the channel was closed meanwhile
            if not self._closing.is_set():
                details = error.details() if isinstance(error, grpc.Call) else error
                log.warning("lease_renewal_failed", lease_id=self._lease_id, error=str(details))
            return None

    def _close_channel(self) -> None:
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
