"""Sending: calls at their times whatever becomes of them (open loop), or one after another (closed loop)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from lambent_load.pacing import Timer
from lambent_load.tally import UNANSWERED, Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lambent_load.targets import Request, Target

_SENDS_IN_A_ROW = 32
"""When sending is behind its schedule, answers are read after so many sends at the latest."""


class Sender:
    """Sends the calls of one generator process and counts what becomes of them.

    Args:
        target: Where the calls go.
        interval_s: Length of the tally's intervals.

    Attributes:
        tally: The counts since `take` was last called.
    """

    def __init__(self, target: Target, interval_s: int) -> None:
        self._target = target
        self._start = 0.0
        self._in_flight = 0
        self.tally = Tally(interval_s)

    def take(self) -> Tally:
        """Give the counts so far, and begin anew with none."""
        taken, self.tally = self.tally, Tally(self.tally.interval_s)
        return taken

    async def open_loop(self, arrivals: Iterator[tuple[float, Request]], max_in_flight: int) -> None:
        """Send each call at its time, without waiting for others; returns when all have ended.

        A call's latency counts from when it was due: one that the generator or a full connection delays has waited
        all the same ("coordinated omission" is to forget that). What is due while `max_in_flight` calls run is not
        sent and counted as dropped. Cancelled, it ends the calls in flight, which count as unanswered.

        Args:
            arrivals: When each call is due, in seconds from now, and the call.
            max_in_flight: At least 1.
        """
        self._start = time.monotonic()
        in_a_row = 0
        with Timer() as timer:
            async with asyncio.TaskGroup() as calls:
                for due_s, request in arrivals:
                    now_s = time.monotonic() - self._start
                    if now_s < due_s:
                        await timer.wait_until(self._start + due_s)
                        now_s = time.monotonic() - self._start
                        in_a_row = 0
                    elif in_a_row >= _SENDS_IN_A_ROW:
                        await asyncio.sleep(0)
                        in_a_row = 0
                    in_a_row += 1
                    if self._in_flight >= max_in_flight:
                        self.tally.dropped(due_s)
                        continue
                    self._in_flight += 1
                    calls.create_task(self._call(request, due_s))

    async def closed_loop(self, request: Request, callers: int, duration_s: float) -> None:
        """Have `callers` each send the next call when its last one has ended, for `duration_s`.

        Latency counts from the send: what a slow answer keeps from being sent is not seen.
        """
        self._start = time.monotonic()

        async def repeat() -> None:
            while (now_s := time.monotonic() - self._start) < duration_s:
                self._in_flight += 1
                await self._call(request, now_s)

        async with asyncio.TaskGroup() as calls:
            for _ in range(callers):
                calls.create_task(repeat())

    async def _call(self, request: Request, due_s: float) -> None:
        start = self._start
        self.tally.sent(due_s, time.monotonic() - start - due_s)
        answer = UNANSWERED
        try:
            answer = await self._target.call(request)
        finally:
            self._in_flight -= 1
            end_s = time.monotonic() - start
            self.tally.answered(end_s, end_s - due_s, answer)
