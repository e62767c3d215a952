"""Connecting to NATS, and what every user of JetStream here shares."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import nats
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client

from lambent.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nats.js import JetStreamContext, api

    from lambent_common.credentials import Credentials

# A member that cannot be reached within two seconds is skipped for the next one.
_CONNECT_TIMEOUT_S = 2
# Long enough not to hammer a restarting server, short enough that a restart is hardly noticed.
_RECONNECT_WAIT_S = 1
# A peer that vanished without a word is noticed after 2 x 5 s, like a node whose lease runs out.
_PING_INTERVAL_S = 5
_PINGS_OUTSTANDING = 2
# While the connection is away at most this much waits for it; more raises OutboundBufferLimitError at the publisher.
_PENDING_BYTES = 8 * 1024 * 1024
# Every request to JetStream is answered within this time or counts as failed.
REQUEST_TIMEOUT_S = 5.0

# What is stored survives the loss of one member of three.
REPLICAS = 3

# JetStream's error codes: https://github.com/nats-io/nats-server/blob/main/server/errors.json
STREAM_NAME_IN_USE = 10058
STREAM_NOT_FOUND = 10059
# No suitable peers for placement; replicas > 1 not supported in non-clustered mode.
TOO_FEW_MEMBERS = frozenset({10005, 10074})
WRONG_LAST_SEQUENCE = 10071

log = structlog.get_logger(__name__)


class _Client(Client):
    async def close(self) -> None:
        """Close; what waits for a connection that is away is dropped."""
        with suppress(OSError):
            await super().close()


async def connect_nats(urls: Sequence[str], credentials: Credentials, name: str, *, timeout_s: float = 10.0) -> Client:
    """Connect to NATS; the client then reconnects for ever, trying all members in turn.

    Args:
        urls: `nats://host:port` of one or more members.
        credentials: User and password, when the server asks for them.
        name: Shown in the server's list of connections.
        timeout_s: How long to try before giving up.

    Raises:
        UnavailableError: No member answered in time, or the credentials are refused. The message holds the last reason.
    """
    last_error: Exception | None = None
    client = _Client()

    async def on_error(error: Exception) -> None:
        nonlocal last_error
        if not isinstance(error, OSError) or not isinstance(last_error, nats.errors.Error):
            last_error = error  # what a server said tells more than that it then closed the connection
        log.warning("nats_error", connection=name, error=str(error) or type(error).__name__)

    async def on_disconnect() -> None:
        if not client.is_closed:  # closed: that was us
            log.warning("nats_disconnected", connection=name)

    async def on_reconnect() -> None:
        log.info("nats_reconnected", connection=name)

    try:
        async with asyncio.timeout(timeout_s):
            await client.connect(
                servers=list(urls),
                name=name,
                user=credentials.nats_user,
                password=credentials.nats_password,
                error_cb=on_error,
                disconnected_cb=on_disconnect,
                reconnected_cb=on_reconnect,
                connect_timeout=_CONNECT_TIMEOUT_S,
                reconnect_time_wait=_RECONNECT_WAIT_S,
                max_reconnect_attempts=-1,
                ping_interval=_PING_INTERVAL_S,
                max_outstanding_pings=_PINGS_OUTSTANDING,
                pending_size=_PENDING_BYTES,
            )
    except (OSError, TimeoutError, nats.errors.Error) as error:
        await client.close()
        reason = str(last_error or error) or type(last_error or error).__name__
        raise UnavailableError(
            f"NATS at {', '.join(urls)} cannot be reached within {timeout_s:g} s: {reason}"
        ) from error
    return client


@asynccontextmanager
async def jetstream_errors(doing: str) -> AsyncIterator[None]:
    """Turn an outage of JetStream into UnavailableError; what a caller can act on passes unchanged.

    Args:
        doing: What was tried, as the end of "JetStream is not available for ...".
    """
    try:
        yield
    except (
        nats.errors.TimeoutError,
        nats.errors.ConnectionClosedError,
        nats.errors.ConnectionReconnectingError,
        nats.errors.ConnectionDrainingError,
        nats.errors.OutboundBufferLimitError,
        nats.errors.NoRespondersError,
        nats.errors.StaleConnectionError,
        nats.js.errors.NoStreamResponseError,
        nats.js.errors.ServiceUnavailableError,
        nats.js.errors.ServerError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise UnavailableError(f"JetStream is not available for {doing}: {reason}") from error


async def ensure_stream(js: JetStreamContext, config: api.StreamConfig) -> None:
    """Make a stream when there is none of its name. Any number of processes may do so at once.

    A stream that is there stays as it is: its bounds and replicas are the operator's, by `nats stream edit`. A new one
    gets `REPLICAS` replicas where the cluster has as many members, else one.

    Raises:
        UnavailableError: JetStream does not answer.
    """
    async with jetstream_errors(f"the stream {config.name}"):
        for replicas in (REPLICAS, 1):
            try:
                await js.add_stream(config.evolve(num_replicas=replicas))
            except nats.js.errors.APIError as error:
                if error.err_code == STREAM_NAME_IN_USE:
                    return
                if replicas == 1 or error.err_code not in TOO_FEW_MEMBERS:
                    raise
            else:
                return
