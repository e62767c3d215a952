"""The sender against targets of this process: what it does when a target is slow, or silent, or it is late itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest

from lambent_load.pacing import Timer
from lambent_load.sender import Sender
from lambent_load.tally import Answer
from lambent_load.targets import NullTarget, Request

REQUEST = Request("f", b"")
PATIENCE_S = 20


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    """Nothing here takes a second."""
    async with asyncio.timeout(PATIENCE_S):
        yield


@dataclass
class Holding(NullTarget):
    """Answers when it is told to.

    Attributes:
        released: Set to have all calls answered.
        running: Calls that are held now.
        most: Most calls that were held at once.
    """

    released: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    most: int = 0

    async def call(self, request: Request) -> Answer:
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        await self.released.wait()
        self.running -= 1
        return Answer()


class Blocking(NullTarget):
    """Holds up the whole process in its first call, as a garbage collection or a busy machine would."""

    def __init__(self, block_s: float) -> None:
        self._block_s = block_s

    async def call(self, request: Request) -> Answer:
        until, self._block_s = time.monotonic() + self._block_s, 0.0
        while time.monotonic() < until:
            pass
        return Answer()


async def test_every_call_is_sent_at_its_time() -> None:
    """Never before it, and none is forgotten."""
    sender = Sender(NullTarget(), 1)
    began = time.monotonic()
    await sender.open_loop(((number / 1000, REQUEST) for number in range(100)), 100)
    assert time.monotonic() - began >= 0.099
    assert sender.tally.total().sent == sender.tally.total().latency.count == 100
    assert sender.tally.send_delay.count == 100


async def test_latency_counts_from_when_a_call_was_due() -> None:
    """Calls due while the generator was held up have waited all the same, and are counted as late."""
    sender = Sender(Blocking(0.1), 1)
    await sender.open_loop(((number / 1000, REQUEST) for number in range(100)), 100)
    total = sender.tally.total()
    assert total.sent == 100
    assert total.late >= 80
    # Half of the calls were due in the first half of the 100 ms, and sent after its end.
    p50_us = total.latency.percentile_us(50)
    assert p50_us is not None
    assert p50_us >= 45_000


async def test_what_exceeds_max_in_flight_is_counted_and_not_sent() -> None:
    """A target that answers nothing does not fill the generator's memory."""
    target = Holding()
    sender = Sender(target, 1)

    def arrivals() -> Iterator[tuple[float, Request]]:
        for _ in range(10):
            yield 0.0, REQUEST
        target.released.set()

    await sender.open_loop(arrivals(), 3)
    total = sender.tally.total()
    assert (total.sent, total.dropped, total.answered) == (3, 7, 3)


async def test_slow_answers_do_not_slow_the_sends() -> None:
    """That is what an open loop is."""
    target = Holding()
    sender = Sender(target, 1)

    def arrivals() -> Iterator[tuple[float, Request]]:
        for number in range(50):
            yield number / 1000, REQUEST
        yield 0.06, REQUEST
        target.released.set()

    await sender.open_loop(arrivals(), 1000)
    assert target.most >= 50


async def test_stopped_run_counts_what_was_in_flight_as_unanswered() -> None:
    """Sent calls are either answered, failed or unanswered; they add up."""
    target = Holding()
    sender = Sender(target, 1)
    sending = asyncio.create_task(sender.open_loop(iter([(0.0, REQUEST), (3600.0, REQUEST)]), 10))
    await target.begun.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert sender.tally.errors == {"Unanswered": 1}
    assert sender.tally.total().sent == sender.tally.total().answered == 1


async def test_closed_loop_has_one_call_of_each_caller_in_flight() -> None:
    """And goes on until its time is over."""
    target = Holding()
    sender = Sender(target, 1)
    sending = asyncio.create_task(sender.closed_loop(REQUEST, 4, 0.05))
    await target.begun.wait()
    assert target.most == target.running == 4
    target.released.set()
    await sending
    assert target.most == 4
    assert sender.tally.total().answered > 4


async def test_timer_wakes_no_earlier_than_asked() -> None:
    """A call is not sent before its time, also not by the rounding of a clock."""
    with Timer() as timer:
        for microseconds in (-1000, 0, 1, 50, 333, 2000):
            moment = time.monotonic() + microseconds / 1e6
            await timer.wait_until(moment)
            assert time.monotonic() >= moment - 1e-6
