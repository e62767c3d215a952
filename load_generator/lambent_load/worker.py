"""A generator process: reads its plan from standard input, sends, and writes its counts to standard output.

    in   the plan, one line of JSON; then a line `start`; the end of the input stops the run
    out  {"ready": true}; {"tally": ...} twice a second; {"done": {"cpu_s": ...}}; or {"failed": ..., "message": ...}

Nothing else is done here, so that drawing and writing never delay a call.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from typing import TYPE_CHECKING

import uvloop

from lambent.errors import ServiceError
from lambent_load.plan import ClosedLoop, Plan
from lambent_load.sender import Sender
from lambent_load.targets import Request, make_target

if TYPE_CHECKING:
    from lambent_load.targets import Target

REPORT_S = 0.5
"""Between two reports: often enough for a person who watches."""

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Longest line either way: a plan with a payload of 6 MiB as base64, or a report of an hour's intervals."""


async def _work() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(1, "wb"))
    reports = asyncio.StreamWriter(transport, protocol, None, loop)
    plan = Plan.decode(await orders.readline())
    try:
        async with make_target(plan.target, plan.endpoint, plan.data_dir, plan.timeout_s, os.environ) as target:
            await _report(reports, {"ready": True})
            if await orders.readline():
                before_s = time.process_time()
                await _run(plan, target, orders, reports)
                await _report(reports, {"done": {"cpu_s": time.process_time() - before_s}})
    except ServiceError as error:
        await _report(reports, {"failed": error.aws_name, "message": error.message})
    finally:
        reports.close()


async def _run(plan: Plan, target: Target, orders: asyncio.StreamReader, reports: asyncio.StreamWriter) -> None:
    """Send until the plan is done, or the input ends."""
    sender = Sender(target, plan.interval_s)
    gc.collect()
    gc.freeze()  # What is there stays: collections look at calls alone.
    sending = asyncio.create_task(_send(plan, sender))
    stopped = asyncio.create_task(orders.read())
    try:
        while True:
            ended, _ = await asyncio.wait((sending, stopped), timeout=REPORT_S, return_when=asyncio.FIRST_COMPLETED)
            if stopped in ended:
                sending.cancel()
                await asyncio.wait((sending,))
            await _report(reports, {"tally": sender.take().as_json()})
            if sending.done():
                break
    finally:
        stopped.cancel()
    if not sending.cancelled():
        sending.result()


async def _send(plan: Plan, sender: Sender) -> None:
    if isinstance(plan.load, ClosedLoop):
        await sender.closed_loop(Request(plan.function, plan.payload), plan.load.callers, plan.duration_s)
    else:
        await sender.open_loop(plan.arrivals(), plan.max_in_flight)


async def _report(reports: asyncio.StreamWriter, said: dict[str, object]) -> None:
    reports.write(json.dumps(said, separators=(",", ":")).encode() + b"\n")
    await reports.drain()


def serve() -> None:
    """Be a generator process until the run is over."""
    uvloop.run(_work())


if __name__ == "__main__":
    serve()
