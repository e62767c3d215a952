"""Brings log batches to JetStream, or loses them and says so; nobody ever waits for it."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

import nats.errors
import nats.js.errors
import structlog

if TYPE_CHECKING:
    from nats.js import JetStreamContext

    from lambent_node_agent.logs.environment_log import Batch

log = structlog.get_logger(__name__)

# Some seconds of a node that logs at its most; an outage longer than that loses lines, never memory.
BUFFER_BYTES: Final = 16 * 1024 * 1024
# Acknowledgements take half a millisecond each: this many at once keep up with 10,000 batches a second.
_WORKERS: Final = 8
_ACK_TIMEOUT_S: Final = 5.0
_RETRY_WAIT_S: Final = 0.5
# A JetStream that loses its leader has a new one within 10 s; a batch that still finds none is given up.
_GIVE_UP_S: Final = 30.0


class LogPublisher:
    """A bounded buffer of batches and the tasks that empty it.

    Args:
        js: JetStream with the log streams.
        buffer_bytes: Most bytes that wait.
    """

    def __init__(self, js: JetStreamContext, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._js = js
        self._room = buffer_bytes
        self._waiting: deque[Batch] = deque()
        self._available = asyncio.Semaphore(0)
        self._unfinished = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def offer(self, batch: Batch) -> bool:
        """Take a batch; False when there is no room."""
        if len(batch.payload) > self._room:
            return False
        self._room -= len(batch.payload)
        self._waiting.append(batch)
        self._unfinished += 1
        self._idle.clear()
        self._available.release()
        return True

    async def run(self) -> None:
        """Publish until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(_WORKERS):
                workers.create_task(self._work())

    async def wait_until_idle(self) -> None:
        """Return when everything offered so far is published or lost. Wait with a deadline."""
        await self._idle.wait()

    async def _work(self) -> None:
        while True:
            await self._available.acquire()
            batch = self._waiting.popleft()
            try:
                if not await self._publish(batch):
                    batch.drops.add(batch.events, batch.size_bytes)
            finally:
                self._room += len(batch.payload)
                self._unfinished -= 1
                if not self._unfinished:
                    self._idle.set()

    async def _publish(self, batch: Batch) -> bool:
        # JetStream drops what it has stored already: a batch whose acknowledgement was lost is not there twice.
        headers = {"Nats-Msg-Id": secrets.token_hex(12)}
        give_up_at = asyncio.get_running_loop().time() + _GIVE_UP_S
        while True:
            try:
                await self._js.publish(batch.subject, batch.payload, timeout=_ACK_TIMEOUT_S, headers=headers)
            except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
                final = isinstance(error, nats.errors.ConnectionClosedError | nats.errors.MaxPayloadError)
            else:
                return True
            if final or asyncio.get_running_loop().time() >= give_up_at:
                log.warning("log_batch_lost", subject=batch.subject, events=batch.events, error=reason)
                return False
            await asyncio.sleep(_RETRY_WAIT_S)
