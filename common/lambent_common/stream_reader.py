"""Reading one subject of a JetStream stream: in order, in bounded batches, and on after an outage."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

import nats.errors
import nats.js.errors
from nats.js import api

from lambent_common.nats import jetstream_errors

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

# Of the largest messages that we publish (512 KiB) this many are 8 MiB; a reader never holds more.
_BATCH = 16
# A consumer whose reader died goes away after this; a reader asks more often, also when it only waits.
_INACTIVE_THRESHOLD_S = 60.0
_FETCH_TIMEOUT_S = 5.0


class StreamReader:
    """A reader of the messages of one subject; an async context manager.

    It is an ephemeral pull consumer, so the server sends only what was asked for. A consumer that the server lost
    (restart, or a longer outage) is made again after the last message read: nothing comes twice, and nothing is left
    out that the stream still holds.

    Args:
        js: Where the stream is.
        stream: Name of the stream.
        subject: Subject, wildcards allowed.
        start_time: Leave out messages stored before; None reads from the first one.
        last_headers: Read the last message of each subject alone, and of it the headers alone. After an outage earlier
            ones of a subject may come as well, and before its last one.
    """

    def __init__(
        self,
        js: JetStreamContext,
        stream: str,
        subject: str,
        *,
        start_time: datetime | None = None,
        last_headers: bool = False,
    ) -> None:
        self._js = js
        self._stream = stream
        self._subject = subject
        self._start_time = start_time
        self._last_headers = last_headers
        self._last_sequence = 0
        self._pending = 0
        self._subscription: JetStreamContext.PullSubscription | None = None
        self._consumer = ""

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def pending(self) -> int:
        """Messages known to be stored and not yet read."""
        return self._pending

    async def read(self) -> list[Msg]:
        """Give the next messages that are stored already; empty when there are none left.

        Raises:
            UnavailableError: JetStream does not answer.
        """
        if self._pending == 0:
            return []
        messages = await self._fetch(min(self._pending, _BATCH))
        if not messages:
            await self._reopen_if_lost()
        return messages

    async def wait(self, timeout_s: float) -> list[Msg]:
        """Wait for messages and give the next ones; empty when none arrived in time.

        Raises:
            UnavailableError: JetStream does not answer.
        """
        if self._pending:
            return await self.read()
        # One: a larger fetch would hold back the first message until the batch is full.
        messages = await self._fetch(1, timeout_s)
        if not messages:
            await self._reopen_if_lost()
        return messages

    async def _fetch(self, count: int, timeout_s: float = _FETCH_TIMEOUT_S) -> list[Msg]:
        assert self._subscription is not None, "the reader is open"
        try:
            messages = await self._subscription.fetch(count, timeout=timeout_s)
        except (nats.errors.TimeoutError, TimeoutError, nats.js.errors.APIError):
            return []
        fresh = [message for message in messages if message.metadata.sequence.stream > self._last_sequence]
        if fresh:
            self._last_sequence = fresh[-1].metadata.sequence.stream
            self._pending = fresh[-1].metadata.num_pending
        return fresh

    async def _open(self) -> None:
        config = api.ConsumerConfig(
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=_INACTIVE_THRESHOLD_S,
            mem_storage=True,
            num_replicas=1,
            headers_only=self._last_headers,
        )
        if self._last_sequence:
            config.deliver_policy = api.DeliverPolicy.BY_START_SEQUENCE
            config.opt_start_seq = self._last_sequence + 1
        elif self._start_time is not None:
            config.deliver_policy = api.DeliverPolicy.BY_START_TIME
            config.opt_start_time = self._start_time
        elif self._last_headers:
            config.deliver_policy = api.DeliverPolicy.LAST_PER_SUBJECT
        async with jetstream_errors(f"reading {self._subject}"):
            self._subscription = await self._js.pull_subscribe(self._subject, stream=self._stream, config=config)
            assert config.name is not None, "pull_subscribe names the consumer"
            self._consumer = config.name
            self._pending = (await self._subscription.consumer_info()).num_pending or 0

    async def _reopen_if_lost(self) -> None:
        assert self._subscription is not None, "the reader is open"
        async with jetstream_errors(f"reading {self._subject}"):
            try:
                self._pending = (await self._subscription.consumer_info()).num_pending or 0
            except nats.js.errors.NotFoundError:
                await self._close()
                await self._open()

    async def _close(self) -> None:
        if self._subscription is None:
            return
        subscription, self._subscription = self._subscription, None
        # Best effort: what cannot be deleted now goes away by itself.
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await subscription.unsubscribe()
            await self._js.delete_consumer(self._stream, self._consumer)
