"""Calls that do not go to their end in one go: payloads and answers that stall, callers that leave."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.agent.harness import WAIT_S, Scheduler, World

from lambent.framing import INITIAL_CREDIT_BYTES

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = "def handler(event, context): return event"
LARGE = "def handler(event, context): return 'x' * event"
STREAM = """
def handler(event, context):
    for number in range(event):
        print(number)
        yield b"x" * 65536
"""


async def test_a_cancelled_answer_that_nobody_reads_ends_at_once(agent: World, scheduler: Scheduler) -> None:
    """A caller that leaves while its answer flows gives no credit any more; its environment must not wait for that."""
    environment = await scheduler.start(await agent.function(LARGE))
    scheduler.auto_credit = False
    call_id = scheduler.open(environment, 6_000_000)
    await _wait(scheduler.answers[call_id].first)
    scheduler.cancel(call_id)
    answer = await scheduler.answer(call_id)
    assert answer.end is not None
    assert answer.end.service_error.reason == "CancelledException"
    assert answer.end.service_error.dispatched
    assert answer.end.report.duration_us > 0
    assert len(answer.body) <= INITIAL_CREDIT_BYTES
    assert (await scheduler.invoke(environment, 3)).json() == "xxx"
    await scheduler.stop(environment)


async def test_a_cancelled_stream_that_nobody_reads_ends_at_once(agent: World, scheduler: Scheduler) -> None:
    """The handler is stopped by the lack of credit; the cancel ends it, and the END waits for no credit."""
    function = await agent.function(STREAM)
    environment = await scheduler.start(function)
    scheduler.auto_credit = False
    call_id = scheduler.open(environment, 1000, streaming=True)
    await agent.logged(function, "4")  # half a chunk has left, and a socket holds three
    scheduler.cancel(call_id)
    answer = await scheduler.answer(call_id)
    assert answer.end is not None
    assert answer.end.service_error.reason == "CancelledException"
    assert len(answer.body) <= INITIAL_CREDIT_BYTES
    scheduler.auto_credit = True
    assert (await scheduler.invoke(environment, 1, streaming=True)).body == b"x" * 65536
    await scheduler.stop(environment)


async def test_a_payload_that_never_ends_costs_the_callers_time_at_most(agent: World, scheduler: Scheduler) -> None:
    """An opening holds an environment; a client that sends no more than that must not have it for ever."""
    environment = await scheduler.start(await agent.function(ECHO))
    answer = await scheduler.invoke(environment, complete=False, timeout_us=300_000)
    assert answer.end is not None
    assert answer.end.service_error.reason == "DeadlineExceededException"
    assert not answer.end.service_error.dispatched
    assert (await scheduler.invoke(environment, 1)).json() == 1
    await scheduler.stop(environment)


async def test_the_time_that_a_payload_took_is_the_callers(agent: World, scheduler: Scheduler) -> None:
    """Durations travel: each hop subtracts what it spent."""
    source = "import time\ndef handler(event, context): time.sleep(event)\n"
    environment = await scheduler.start(await agent.function(source))
    other = await scheduler.start(await agent.function(source))
    call_id = scheduler.open(environment, b"6", complete=False, timeout_us=1_500_000)
    await scheduler.invoke(other, 0.5)
    scheduler.end_payload(call_id, b"0")
    answer = await scheduler.answer(call_id)
    assert answer.end is not None
    assert answer.end.service_error.reason == "DeadlineExceededException"
    assert answer.end.service_error.dispatched
    assert answer.end.report.duration_us <= 1_000_000
    await scheduler.stop(environment)
    await scheduler.stop(other)


async def test_a_call_whose_payload_is_on_its_way_fails_with_its_environment(
    agent: World, scheduler: Scheduler
) -> None:
    """Nothing of it has run: the error says so, and comes before the news of the environment's end."""
    environment = await scheduler.start(await agent.function(ECHO))
    call_id = scheduler.open(environment, b'"xxx', complete=False)
    await scheduler.stop(environment)
    answer = scheduler.answers[call_id]
    assert answer.end is not None
    assert answer.end.service_error.reason == "ServiceUnavailableException"
    assert not answer.end.service_error.dispatched


async def test_a_draining_stop_lets_a_payload_come_that_is_on_its_way(agent: World, scheduler: Scheduler) -> None:
    """An update of a function must not fail the calls under way."""
    environment = await scheduler.start(await agent.function(ECHO))
    call_id = scheduler.open(environment, b"1", complete=False)
    stopping = asyncio.create_task(scheduler.stop(environment, drain=True))
    other = await scheduler.start(await agent.function(ECHO))  # the order to stop has arrived before this one
    assert not stopping.done()
    scheduler.end_payload(call_id, b"2")
    assert (await scheduler.answer(call_id)).json() == 12
    await stopping
    late = scheduler.open(other, b"1", complete=False, timeout_us=100_000)
    await scheduler.stop(other, drain=True)
    assert (await scheduler.answer(late)).end is not None


async def test_single_bytes_do_not_take_the_agents_time(agent: World, scheduler: Scheduler) -> None:
    """One function that writes byte by byte, and no newline, must not slow every other call of the node."""
    source = """
import os, time
def handler(event, context):
    end = time.monotonic() + event
    while time.monotonic() < end:
        os.write(1, b"x")
"""
    environment = await scheduler.start(await agent.function(source, memory_mib=1769))
    before_s = _cpu_s(agent.agent.pid)
    await scheduler.invoke(environment, 2)
    assert _cpu_s(agent.agent.pid) - before_s < 0.2
    await scheduler.stop(environment)


def _cpu_s(pid: int) -> float:
    """CPU time that a process has used, in seconds (proc(5): utime and stime in hundredths)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def _wait(event: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_S):
        await event.wait()
