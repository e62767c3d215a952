"""What a real agent says of the parts of a cold start."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid

import pytest
from benchmarks.processes import children, name
from tests.agent.harness import Scheduler, World

from lambent.v1 import frame_pb2, node_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

HANDLER = "def handler(event, context): return event\n"
SLOW_S = 0.3


def again(function: node_pb2.StartEnvironment) -> node_pb2.StartEnvironment:
    """The order for another environment of a function."""
    order = node_pb2.StartEnvironment(environment_id=str(uuid.uuid4()))
    copy = node_pb2.StartEnvironment()
    copy.CopyFrom(function)
    copy.MergeFrom(order)
    return copy


async def started(scheduler: Scheduler, function: node_pb2.StartEnvironment) -> node_pb2.EnvironmentReady:
    """Start an environment, and give what the agent says of it."""
    ready = scheduler.ready(await scheduler.start(function)).result()
    assert ready.start_us == ready.fetch_code_us + ready.sandbox_us + ready.runtime_us + ready.init_us
    return ready


async def test_code_is_fetched_for_the_first_environment_alone(agent: World, scheduler: Scheduler) -> None:
    """The second finds it in the node's cache, and says so by a zero."""
    function = await agent.function(HANDLER + f"# {uuid.uuid4()}\n")
    began = time.monotonic()
    first = await started(scheduler, function)
    waited_us = (time.monotonic() - began) * 1e6
    second = await started(scheduler, again(function))
    assert 0 < first.fetch_code_us < waited_us
    assert second.fetch_code_us == 0
    for ready in (first, second):
        assert min(ready.sandbox_us, ready.runtime_us, ready.init_us) > 0
        await scheduler.stop(ready.environment_id)
    assert first.start_us <= waited_us


async def test_a_slow_import_is_init_and_nothing_else(agent: World, scheduler: Scheduler) -> None:
    """Whoever sees a long init knows that the function's own code is to be looked at."""
    function = await agent.function(f"import time\ntime.sleep({SLOW_S})\n{HANDLER}")
    began = time.monotonic()
    ready = await started(scheduler, function)
    waited_us = (time.monotonic() - began) * 1e6
    assert ready.init_us >= SLOW_S * 1e6
    assert ready.fetch_code_us + ready.sandbox_us + ready.runtime_us <= waited_us - SLOW_S * 1e6
    await scheduler.stop(ready.environment_id)


async def test_a_failed_init_is_init_too(agent: World, scheduler: Scheduler) -> None:
    """The scheduler hears of the environment when its runtime has been killed: all of that is the import's fault."""
    function = await agent.function(f"import time\ntime.sleep({SLOW_S})\nraise ValueError\n")
    ready = await started(scheduler, function)
    assert ready.init_us >= SLOW_S * 1e6
    assert ready.runtime_us == 0
    await scheduler.stop(ready.environment_id)


async def test_a_module_that_lies_about_its_time_adds_none(agent: World, scheduler: Scheduler) -> None:
    """It holds the channel, and may say READY itself; then the start is over, and took what it took."""
    forge = """
import os, socket, stat, time
for fd in range(3, 64):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            socket.socket(fileno=fd).sendall(b"\\0\\0\\0\\4\\x0a\\xff\\xff\\xff\\xff")
            break
    except OSError:
        pass
time.sleep(1000)
"""
    function = await agent.function(forge)
    began = time.monotonic()
    ready = await started(scheduler, function)
    assert ready.start_us <= (time.monotonic() - began) * 1e6
    assert ready.runtime_us == 0
    await scheduler.stop(ready.environment_id)


async def test_a_pool_that_is_exhausted_shows_in_sandbox(agent: World, scheduler: Scheduler) -> None:
    """More environments than sandboxes are ready-made while the zygote makes none: one has to wait for it."""
    function = await agent.function(
        "import time\ndef handler(event, context): time.sleep(event)\n", timeout_us=60_000_000
    )
    environment = await scheduler.start(function)
    zygotes = [pid for pid in children(agent.agent.pid) if name(pid) == "lambent-zygote"]
    assert zygotes
    orders = [again(function) for _ in range(4)]
    try:
        for zygote in zygotes:
            os.kill(zygote, signal.SIGSTOP)
        for order in orders:
            scheduler.order_start(order)
        await scheduler.invoke(environment, SLOW_S)  # after the orders, on the same stream
    finally:
        for zygote in zygotes:
            os.kill(zygote, signal.SIGCONT)
    async with asyncio.timeout(20):
        made = [await scheduler.ready(order.environment_id) for order in orders]
    assert max(ready.sandbox_us for ready in made) >= SLOW_S * 1e6
    assert {ready.fetch_code_us for ready in made} == {0}
    for environment_id in (environment, *(ready.environment_id for ready in made)):
        await scheduler.stop(environment_id)


async def test_the_first_call_s_phases_come_back_and_are_logged_after_report(
    agent: World, scheduler: Scheduler
) -> None:
    """The scheduler knows the whole; what it sends is in the answer and the log, but for a warm call."""
    function = await agent.function(HANDLER)
    environment = await scheduler.start(function)
    phases = frame_pb2.ColdStartPhases(
        queue_us=1_000, placement_us=2_000, fetch_code_us=3_000, sandbox_us=4_000, runtime_us=5_000, init_us=6_000
    )
    cold = await scheduler.invoke(environment, 1, cold_start_phases=phases, log_tail=True)
    warm = await scheduler.invoke(environment, 2)
    assert cold.end is not None
    assert warm.end is not None
    assert cold.end.report.cold_start_phases == phases
    assert b"COLD_START" not in cold.end.report.log_tail
    assert not warm.end.report.HasField("cold_start_phases")
    lines = await agent.logged(function, f"REPORT RequestId: {warm.end.report.request_id}")
    assert [line.split()[0] for line in lines] == [
        *("INIT_START", "START", "END", "REPORT", "COLD_START"),
        *("START", "END", "REPORT"),
    ]
    assert lines[4] == (
        f"COLD_START RequestId: {cold.end.report.request_id}\tQueue: 1.00 ms\tPlacement: 2.00 ms\tFetch Code: 3.00 ms\t"
        "Sandbox: 4.00 ms\tRuntime: 5.00 ms\tInit: 6.00 ms\t"
    )
    await scheduler.stop(environment)
