"""Environments that nobody uses: frozen, thawed, taken memory back from, and replaced after a while."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.harness import MAIN, AgentLog, Scheduler, World, start_agent, stop_agent

from lambent_node_agent.environment.model import Environment, Facts, Phase
from lambent_node_agent.idle.choice import FREEZE_AFTER_S, MOST_AT_ONCE, is_short, to_freeze, to_reclaim_from
from lambent_node_agent.idle.pressure import MEMORY_STALLS, Clock, Stalls, memory_pressure

asynchronous = pytest.mark.asyncio(loop_scope="module")

# A thread that prints would be heard of: it counts while its process runs.
COUNTER = """
import threading, time
count = 0
def work():
    global count
    while True:
        count += 1
        time.sleep(0.001)
threading.Thread(target=work, daemon=True).start()
def handler(event, context):
    before = count
    if event:
        time.sleep(event)
    return [before, count]
"""


async def until_frozen(scheduler: Scheduler, count: int) -> None:
    """Wait until the node says that so many environments are frozen."""
    async with asyncio.timeout(20):
        while scheduler.status.frozen != count:
            scheduler.status_changed.clear()
            await scheduler.status_changed.wait()


@asynchronous
async def test_an_idle_environment_is_frozen_and_thawed_by_a_call(agent: World, scheduler: Scheduler) -> None:
    """What the function does by itself stands still between invocations, as on AWS, and goes on with the next."""
    environment = await scheduler.start(await agent.function(COUNTER))
    _, last = (await scheduler.invoke(environment, 0.05)).json()  # type: ignore[misc] # the handler's two numbers
    await until_frozen(scheduler, 1)
    started = time.monotonic()
    before, after = (await scheduler.invoke(environment, 0.05)).json()  # type: ignore[misc]
    assert time.monotonic() - started < 1
    # In the second before it was frozen it counted to a thousand; while it was frozen, and it was for longer, to none.
    assert last <= before
    assert before < after
    await until_frozen(scheduler, 0)
    await until_frozen(scheduler, 1)
    assert (await scheduler.stop(environment)).reason == "idle"


@asynchronous
async def test_a_frozen_environment_keeps_its_time_limits(agent: World, scheduler: Scheduler) -> None:
    """The time of an invocation is counted from its thaw on, and a runtime that is killed is replaced as ever."""
    environment = await scheduler.start(await agent.function(COUNTER, timeout_us=200_000))
    await until_frozen(scheduler, 1)
    answer = await scheduler.invoke(environment, 5)
    assert answer.error()["errorType"] == "Sandbox.Timedout"
    before, _ = (await scheduler.invoke(environment)).json()  # type: ignore[misc] # the handler's two numbers
    assert before >= 0
    await until_frozen(scheduler, 1)
    call = scheduler.open(environment, 0.1)
    scheduler.cancel(call)
    answer = await scheduler.answer(call)
    assert answer.end is not None
    assert answer.end.service_error.reason == "CancelledException"
    await scheduler.stop(environment)


@asynchronous
async def test_a_frozen_environment_that_is_killed_ends(agent: World, scheduler: Scheduler) -> None:
    """By the operator: on version 1 its end is known with the next call, which another environment may serve."""
    environment = await scheduler.start(await agent.function(COUNTER, memory_mib=777))
    await until_frozen(scheduler, 1)
    for pid in processes_with_limit(777):
        os.kill(pid, 9)
    answer = await scheduler.invoke(environment)
    assert answer.end is not None
    assert answer.end.service_error.reason or "signal: killed" in str(answer.error()["errorMessage"])
    async with asyncio.timeout(20):
        await scheduler.stopped(environment)


def is_alive(pid: int) -> bool:
    """Whether it can still run: an orphan that has ended is there until the machine's first process takes note."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_with_limit(memory_mib: int) -> list[int]:
    """The processes of the sandbox that has this memory limit, in version 1 or 2."""
    for name in ("memory.limit_in_bytes", "memory.max"):
        for file in Path("/sys/fs/cgroup").glob(f"**/lambent-test-{os.getpid()}*/*/{name}"):
            if file.read_text().strip() == str(memory_mib << 20):
                return [int(pid) for pid in (file.parent / "cgroup.procs").read_text().split()]
    raise AssertionError(f"no sandbox has {memory_mib} MiB")


@asynchronous
async def test_what_a_killed_agent_left_frozen_is_taken_away(agent: World, tmp_path: Path) -> None:
    """On version 1 nothing but a thaw ends it, and its successor is the only one to give that."""
    options = ("--owner", f"test-{os.getpid()}-killed", "--id", "node-7")
    process, address = await start_agent(tmp_path, agent.etcd, agent.nats, *options, log=AgentLog())
    scheduler = Scheduler(address, "scheduler-killed")
    await scheduler.attach()
    await scheduler.start(await agent.function(COUNTER, memory_mib=778))
    await until_frozen(scheduler, 1)
    pids = processes_with_limit(778)
    assert pids
    process.kill()
    await process.wait()
    await scheduler.close()
    successor, _ = await start_agent(tmp_path, agent.etcd, agent.nats, *options, log=AgentLog())
    assert await stop_agent(successor) == 0
    assert [pid for pid in pids if is_alive(pid)] == []


# The node of this agent is always short of memory, and has no kernel to tell it so.
SHORT = "from pathlib import Path\nfrom lambent_node_agent.idle import choice, pressure\nchoice._SHORT_SHARE = 2\n"
SHORT += "pressure.memory_pressure.__wrapped__.__defaults__ = (Path('/none'),)\n"
READER = """
import os
def handler(event, context):
    file = os.open("/var/task/app.py", os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # read by the agent: now it is to be this function's
    return len(os.read(file, 1 << 30))
"""


@asynchronous
async def test_memory_is_taken_from_frozen_environments_when_it_is_short(agent: World, tmp_path: Path) -> None:
    """Whatever they have read; they go on being usable, and the operator sees how much it was."""
    log = AgentLog()
    options = ("--owner", f"test-{os.getpid()}-short", "--id", "node-8")
    process, address = await start_agent(tmp_path, agent.etcd, agent.nats, *options, log=log, main=SHORT + MAIN)
    scheduler = Scheduler(address, "scheduler-short")
    await scheduler.attach()
    try:
        source = READER + "# " + os.urandom(4 << 20).hex() + "\n"
        environment = await scheduler.start(await agent.function(source))
        size = (await scheduler.invoke(environment)).json()
        assert isinstance(size, int)
        assert size > 8 << 20
        await log.line("memory_reclaimed")
        async with asyncio.timeout(20):
            while scheduler.status.reclaimed_bytes < 6 << 20:
                scheduler.status_changed.clear()
                await scheduler.status_changed.wait()
        assert (await scheduler.invoke(environment)).json() == size
        await until_frozen(scheduler, 1)
    finally:
        await scheduler.close()
        begun = time.monotonic()
        assert await stop_agent(process) == 0
        assert time.monotonic() - begun < 3, "it waits for nobody to thaw"


@asynchronous
async def test_an_environment_says_that_it_is_spent_before_its_last_answer(agent: World, tmp_path: Path) -> None:
    """With calls on their way: they are served, and none is refused."""
    options = ("--owner", f"test-{os.getpid()}-spent", "--id", "node-9", "--recycle-after-invocations", "2")
    process, address = await start_agent(tmp_path, agent.etcd, agent.nats, *options, log=AgentLog())
    scheduler = Scheduler(address, "scheduler-spent")
    await scheduler.attach()
    try:
        environment = await scheduler.start(await agent.function("def handler(event, context): return event"))
        for number in range(4):
            assert (await scheduler.invoke(environment, number)).json() == number
            assert scheduler.spent == [environment] * number
    finally:
        await scheduler.close()
        assert await stop_agent(process) == 0


def environments(*idle: tuple[float, Phase]) -> list[tuple[str, Environment]]:
    facts = Facts("1", 128, "")
    return [(str(number), Environment(facts, phase, idle_since=since)) for number, (since, phase) in enumerate(idle)]


IDLE = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 2.0, 3.0]), st.sampled_from([Phase.IDLE, Phase.FROZEN, Phase.INVOKE])),
    max_size=40,
)


@given(IDLE, st.sampled_from([1.0, 2.0, 2.5, 9.0]))
def test_whoever_is_idle_longest_is_frozen_first(idle: list[tuple[float, Phase]], now: float) -> None:
    """Nobody is passed over by one that was used later, and nobody in use is frozen."""
    known = environments(*idle)
    chosen = to_freeze(known, now)
    due = [key for key, env in known if env.phase is Phase.IDLE and env.idle_since <= now - FREEZE_AFTER_S]
    assert set(chosen) <= set(due)
    assert len(chosen) == min(len(due), MOST_AT_ONCE)
    since = {key: env.idle_since for key, env in known}
    left = [since[key] for key in due if key not in chosen]
    assert [since[key] for key in chosen] == sorted(since[key] for key in chosen)
    assert not left or max(since[key] for key in chosen) <= min(left)


@given(IDLE)
def test_memory_is_taken_from_each_frozen_environment_once(idle: list[tuple[float, Phase]]) -> None:
    """Least recently used first, and not again from one that had nothing more, unless it was used since."""
    known = environments(*idle)
    since = {key: env.idle_since for key, env in known if env.phase is Phase.FROZEN}
    order = to_reclaim_from(known, {})
    assert [since[key] for key in order] == sorted(since.values())
    assert to_reclaim_from(known, since) == []
    used = [(key, env._replace(idle_since=9.0)) for key, env in known]
    assert sorted(to_reclaim_from(used, since)) == sorted(since)


def test_a_node_is_short_of_memory_below_a_tenth() -> None:
    """The rest is what the kernel and the daemons need to go on."""
    assert [is_short(left, 1000) for left in (99, 100)] == [True, False]


@pytest.fixture
def crowd() -> Iterator[None]:
    """More that want a CPU than there are CPUs."""
    spin = [sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(spin) for _ in range((os.cpu_count() or 1) + 1)]
    yield
    for process in spinning:
        process.kill()
        process.wait()


@asynchronous
async def test_the_kernel_tells_of_stalls(crowd: None) -> None:
    """Of waits for a CPU here, which harm nobody; those for memory are told in the same way."""
    try:
        heard, quiet = Stalls(Path("/proc/pressure/cpu")), Stalls(MEMORY_STALLS)
    except OSError as error:
        pytest.skip(f"the kernel has no pressure stall information: {error}")
    waited_us = stalled_us(MEMORY_STALLS)
    waiting = asyncio.create_task(quiet.wait())
    try:
        async with asyncio.timeout(20):
            await heard.wait()
        heard_too, _ = await asyncio.wait([waiting], timeout=0.2)
        # Other processes of this machine may have stalled.
        assert not heard_too or stalled_us(MEMORY_STALLS) > waited_us
    finally:
        waiting.cancel()
        heard.close()
        quiet.close()


def stalled_us(path: Path) -> int:
    """For how long some task has stalled since the machine was started."""
    return int(path.read_text().partition(" total=")[2].split()[0])


@asynchronous
async def test_without_the_kernels_word_a_clock_does(tmp_path: Path) -> None:
    """Kernels before 5.2, and those that were started without it."""
    with memory_pressure(tmp_path / "none") as pressure:
        assert isinstance(pressure, Clock)
