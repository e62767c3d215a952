"""Addresses of etcd's members, and channels to them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import grpc
import grpc.aio

from lambent.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lambent_common.credentials import Credentials

_OPTIONS: tuple[tuple[str, int], ...] = (
    # A member whose machine died under a watch is noticed within 15 s. etcd hangs up on who pings more often than every
    # 5 s (--grpc-keepalive-min-time).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Otherwise equal channels of one process share a connection, and the lease would wait behind a large listing.
    ("grpc.use_local_subchannel_pool", 1),
    # An HTTP proxy for the internet is not the way to etcd.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # etcd restarts within a second or two; do not wait two minutes before trying again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def parse(endpoints: Sequence[str]) -> list[tuple[str, bool]]:
    """Give host:port and whether to use TLS for each URL.

    Raises:
        InvalidParameterError: A URL is not `http://host:port` or `https://host:port`.
    """
    if not endpoints:
        raise InvalidParameterError("no etcd endpoint was given")
    parsed = []
    for endpoint in endpoints:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidParameterError(f"etcd endpoint {endpoint!r} is not http://host:port or https://host:port")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        parsed.append((f"{host}:{parts.port or 2379}", parts.scheme == "https"))
    return parsed


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """Give what TLS to etcd needs: the authority, and the client's certificate."""
    return grpc.ssl_channel_credentials(credentials.etcd_ca, credentials.etcd_key, credentials.etcd_cert)


def aio_channel(target: str, tls: bool, credentials: Credentials) -> grpc.aio.Channel:
    """Open a channel for asyncio."""
    if tls:
        return grpc.aio.secure_channel(target, channel_credentials(credentials), options=_OPTIONS)
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


def blocking_channel(target: str, tls: bool, credentials: Credentials) -> grpc.Channel:
    """Open a channel for a thread."""
    if tls:
        return grpc.secure_channel(target, channel_credentials(credentials), options=_OPTIONS)
    return grpc.insecure_channel(target, options=_OPTIONS)
