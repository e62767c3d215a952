"""The node as the cluster sees it: registration, several schedulers, fencing, capacity, and losing its stores."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.harness import MAIN, RUNTIME, AgentLog, Scheduler, World, start_agent, stop_agent
from tests.user_namespaces import FORBID

from lambent.message_stream import connect
from lambent.v1 import node_pb2, record_pb2
from lambent_common import keys, records
from lambent_common.credentials import Credentials
from lambent_common.etcd import Changes, Delete, Put, Snapshot
from lambent_node_agent import node
from lambent_node_agent.registration import LEASE_TTL_S, Registration, is_worth_telling

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = "def handler(event, context): return event"


async def test_the_node_is_in_etcd_and_comes_back_after_its_lease_was_lost(agent: World) -> None:
    """A network that was away for longer than the lease must not cost the node for good."""
    async with await agent.connect_etcd() as etcd:
        found = await etcd.get(keys.node("node-1"))
        assert found is not None
        record = records.decode(found.value, record_pb2.NodeRecord)
        assert record.address == agent.address
        assert dict(record.capacity)["memory_mib"] == 4096
        assert RUNTIME in record.runtimes
        async with asyncio.timeout(20):
            revoked = False
            async for batch in etcd.watch(keys.NODES):
                if isinstance(batch, Snapshot) and not revoked:
                    await etcd.revoke_lease(found.lease_id)
                    revoked = True
                elif isinstance(batch, Changes) and any(isinstance(event, Put) for event in batch.events):
                    break


async def test_a_record_that_is_gone_is_written_again(agent: World) -> None:
    """Somebody else's lease may have taken it away; the own lease goes on, so that nothing else would bring it back."""
    reserved = 0

    def status() -> node_pb2.NodeStatus:
        nonlocal reserved
        reserved += 1000  # worth telling each time, and with the telling it is looked at
        return node_pb2.NodeStatus(reserved={"memory_mib": reserved})

    record = record_pb2.NodeRecord(node_id="node-2", address="127.0.0.1:1")
    key = keys.node("node-2")
    async with await agent.connect_etcd() as etcd:
        registration = Registration(
            etcd, agent.etcd.endpoints, Credentials(), record=record, capacity={"memory_mib": 1000}, status=status
        )
        running = asyncio.create_task(registration.run())
        try:
            async with asyncio.timeout(20):
                await registration.wait_until_registered()
                gone = False
                async for batch in etcd.watch(key):
                    if isinstance(batch, Snapshot):
                        assert await etcd.delete(key)
                    else:
                        gone = gone or any(isinstance(event, Delete) for event in batch.events)
                        if gone and any(isinstance(event, Put) for event in batch.events):
                            break
        finally:
            running.cancel()
            await asyncio.wait([running])
        assert await etcd.get(key) is None, "the end of the registration takes the record away"


async def test_a_node_id_that_is_in_use_is_refused(agent: World, tmp_path: Path) -> None:
    """Two cloned machines have one name; the second must not take the first one's place."""
    log = AgentLog()
    owner = f"test-{os.getpid()}-twin"
    with pytest.raises(AssertionError, match=f"node id node-1 belongs to the agent at {agent.address}"):
        await start_agent(tmp_path, agent.etcd, agent.nats, "--owner", owner, log=log)
    async with await agent.connect_etcd() as etcd:
        found = await etcd.get(keys.node("node-1"))
    assert found is not None
    assert records.decode(found.value, record_pb2.NodeRecord).address == agent.address


async def test_the_id_of_an_agent_that_was_killed_is_free_at_once(agent: World, tmp_path: Path) -> None:
    """Its record lives for some seconds; its successor need not wait for that."""
    options = ("--owner", f"test-{os.getpid()}-next", "--id", "node-3")
    killed, _ = await start_agent(tmp_path, agent.etcd, agent.nats, *options, log=AgentLog())
    killed.kill()
    await killed.wait()
    started = asyncio.get_running_loop().time()
    successor, address = await start_agent(tmp_path, agent.etcd, agent.nats, *options, log=AgentLog())
    try:
        assert asyncio.get_running_loop().time() - started < LEASE_TTL_S
        async with await agent.connect_etcd() as etcd:
            found = await etcd.get(keys.node("node-3"))
        assert found is not None
        assert records.decode(found.value, record_pb2.NodeRecord).address == address
    finally:
        assert await stop_agent(successor) == 0


async def test_environments_of_a_lost_scheduler_are_offered_to_the_next(agent: World) -> None:
    """A scheduler that restarts adopts what is warm; calls of the lost one finish and answer to nobody."""
    source = "import time\nn = 0\ndef handler(event, context):\n    global n; n += 1; time.sleep(event); return n\n"
    function = await agent.function(source, environment_variables={"SECRET": "s"})
    async with agent.scheduler("first") as first:
        environment = await first.start(function)
        assert (await first.invoke(environment, 0)).json() == 1
        first.open(environment, 0.7)
        await agent.logged(function, "START")
    await agent.log.line('"scheduler_detached"', '"first"')
    async with agent.scheduler("second") as second:
        (held,) = second.welcome.environments
        assert held.start.environment_id == environment
        assert held.start.revision_id == function.revision_id
        assert not held.start.environment_variables, "variables may be secrets and are of no use to the adopter"
        if held.busy:
            async with asyncio.timeout(10):
                await second.ready(environment)
        assert (await second.invoke(environment, 0)).json() == 3
        assert (await second.stop(environment)).reason == "idle"


async def test_environments_that_the_attached_scheduler_does_not_know_are_stopped(agent: World) -> None:
    """A scheduler may be replaced before its connection is known to be dead: the new one has not been told of them."""
    async with agent.scheduler("replaced") as old:
        environment = await old.start(await agent.function(ECHO))
        async with agent.scheduler("new") as new:
            assert not new.welcome.environments
            await old.close()
            async with asyncio.timeout(20):
                assert (await new.stopped(environment)).reason == "orphaned"


async def test_environments_that_no_scheduler_comes_back_for_are_stopped(agent: World, tmp_path: Path) -> None:
    """They wait ten minutes, warm, for a scheduler that restarts; their memory is not theirs for ever."""
    assert node.ORPHAN_TIMEOUT_S == 600
    main = f"from lambent_node_agent import node; node.ORPHAN_TIMEOUT_S, node.UNTOLD_TIMEOUT_S = 0, 1e9; {MAIN}"
    log = AgentLog()
    options = ("--owner", f"test-{os.getpid()}-alone", "--id", "node-4")
    process, address = await start_agent(tmp_path, agent.etcd, agent.nats, *options, log=log, main=main)
    try:
        scheduler = Scheduler(address, "lost")
        await scheduler.attach()
        environment = await scheduler.start(await agent.function(ECHO))
        await scheduler.close()
        await log.line('"environment_stopped"', environment, '"orphaned"')
    finally:
        assert await stop_agent(process) == 0


async def test_a_second_stream_of_the_same_scheduler_takes_over(agent: World) -> None:
    """A stream may hang half dead for seconds after its scheduler has made a new one."""
    function = await agent.function(ECHO)
    async with agent.scheduler("same") as old:
        environment = await old.start(function)
        async with agent.scheduler("same") as new:
            assert [held.start.environment_id for held in new.welcome.environments] == [environment]
            assert (await new.invoke(environment, 1)).json() == 1
            await new.stop(environment)


async def test_orders_of_an_older_epoch_are_refused(agent: World, scheduler: Scheduler) -> None:
    """A scheduler that lost its partition and does not know it must not disturb the new owner.

    When etcd was made anew this refuses everybody, which the log tells an operator.
    """
    scheduler.partition = 200
    function = await agent.function(ECHO)
    scheduler.epoch = 7
    environment = await scheduler.start(function)
    scheduler.epoch = 6
    stale = await scheduler.invoke(environment, 1)
    assert stale.end is not None
    assert stale.end.service_error.reason == "StaleEpochException"
    assert not stale.end.service_error.dispatched
    assert "restart this agent" in await agent.log.line('"stale_epoch"')
    other = await agent.function(ECHO)
    scheduler.order_start(other)
    async with asyncio.timeout(20):
        assert (await scheduler.stopped(other.environment_id)).reason == "stale_epoch"
    scheduler.partition = 201
    await scheduler.stop(await scheduler.start(await agent.function(ECHO)))
    told = [line for line in agent.log.lines if '"stale_epoch"' in line]
    assert len(told) == 1, "orders may come by the thousand"
    scheduler.partition, scheduler.epoch = 200, 8
    assert (await scheduler.invoke(environment, 1)).json() == 1
    await scheduler.stop(environment)


async def test_what_does_not_fit_is_refused_with_the_numbers(agent: World, scheduler: Scheduler) -> None:
    """The agent is the authority on its capacity; a refusal lets the scheduler try another node."""
    large = await agent.function(ECHO, memory_mib=3000)
    environment = await scheduler.start(large)
    small = await agent.function(ECHO, memory_mib=2000)
    scheduler.order_start(small)
    async with asyncio.timeout(20):
        stopped = await scheduler.stopped(small.environment_id)
    assert (stopped.reason, stopped.refused) == ("capacity", True)
    assert stopped.message == "the node has 1096 memory_mib of 4096 left, and 2000 are needed"
    await scheduler.stop(environment)
    small.environment_id += "-again"
    await scheduler.stop(await scheduler.start(small))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"runtime": "cobol1.0"}, "runtime"),
        ({"code_sha256": "0" * 64}, "code"),
        ({"memory_mib": 50_000}, "sandbox"),
    ],
)
async def test_an_environment_that_cannot_be_made_says_why(
    agent: World, scheduler: Scheduler, fields: dict[str, object], reason: str
) -> None:
    """The waiting caller gets this sentence."""
    function = await agent.function(ECHO)
    for name, value in fields.items():
        setattr(function, name, value)
    scheduler.order_start(function)
    async with asyncio.timeout(20):
        stopped = await scheduler.stopped(function.environment_id)
    assert stopped.reason == reason
    assert stopped.message
    assert not stopped.refused


async def test_a_stop_without_drain_fails_the_invocation(agent: World, scheduler: Scheduler) -> None:
    """The caller is answered, not left waiting."""
    function = await agent.function("import time\ndef handler(event, context):\n    print('on')\n    time.sleep(60)\n")
    environment = await scheduler.start(function)
    call_id = scheduler.open(environment)
    await agent.logged(function, "on")
    await scheduler.stop(environment)
    answer = await scheduler.answer(call_id)
    assert answer.end is not None
    assert answer.end.service_error.reason == "ServiceUnavailableException"
    assert answer.end.service_error.dispatched


async def test_nats_away_does_not_hold_up_invocations(agent: World, scheduler: Scheduler) -> None:
    """Logs wait or are lost; answers are not."""
    function = await agent.function("def handler(event, context):\n    print('line', event)\n    return event\n")
    environment = await scheduler.start(function)
    await scheduler.invoke(environment, 0)
    await agent.nats.kill()
    try:
        async with asyncio.timeout(10):
            for number in range(200):
                assert (await scheduler.invoke(environment, number)).json() == number
    finally:
        await agent.nats.start()
    lines = await agent.logged(function, "line 199")
    assert "line 0" in lines
    await scheduler.stop(environment)


@pytest.mark.parametrize(
    ("told", "now", "age_s", "expected"),
    [(0, 99, 1.0, False), (0, 100, 1.0, True), (200, 100, 1.0, True), (0, 0, 10.0, True), (0, 0, 9.0, False)],
)
async def test_health_is_told_on_a_tenth_or_after_ten_seconds(
    told: int, now: int, age_s: float, expected: bool
) -> None:
    """Etcd's budget: never a write for an invocation."""
    capacity = {"memory_mib": 1000}
    assert is_worth_telling({"memory_mib": told}, {"memory_mib": now}, capacity, age_s=age_s) is expected


async def test_the_agent_says_that_it_needs_root_or_a_user_namespace() -> None:
    """A clear line with what would help instead of a failed system call."""
    program = FORBID + "from lambent_node_agent.command import agent\nos.setuid(65534)\nagent()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, "--etcd", "http://127.0.0.1:1", "--nats", "nats://127.0.0.1:1"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    async with asyncio.timeout(20):
        _, stderr = await process.communicate()
    assert process.returncode == 1
    assert b"the kernel refuses one: unshare" in stderr
    assert b"sysctl user.max_user_namespaces" in stderr
    assert b"run this as root" in stderr


async def test_an_agent_without_a_token_says_so_by_name(agent: World, tmp_path: Path) -> None:
    """Whoever reached its port could run code as root: that has to be meant."""
    options = ("--owner", f"test-{os.getpid()}-open", "--id", "node-4")
    with pytest.raises(AssertionError, match="--insecure"):
        await start_agent(tmp_path, agent.etcd, agent.nats, *options, log=AgentLog(), with_token=False)
    options = (*options, "--insecure")
    process, _ = await start_agent(tmp_path, agent.etcd, agent.nats, *options, log=AgentLog(), with_token=False)
    assert await stop_agent(process) == 0


async def test_an_agent_may_open_as_many_files_as_the_system_allows(agent: World, tmp_path: Path) -> None:
    """Shells and systemd begin with 1,024, which some 165 environments would use up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        options = ("--owner", f"test-{os.getpid()}-files", "--id", "node-5")
        process, _ = await start_agent(tmp_path, agent.etcd, agent.nats, *options, log=AgentLog())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limits = await asyncio.to_thread(Path(f"/proc/{process.pid}/limits").read_text)
    assert await stop_agent(process) == 0
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert line.split()[3:5] == [str(hard), str(hard)]


async def test_a_scheduler_with_a_wrong_token_is_refused(agent: World) -> None:
    """Loopback is no authentication; the refusal says what is wrong."""
    stream = await connect(agent.address, node_pb2.EventBatch.FromString, timeout_s=20)
    hello = node_pb2.Hello(scheduler_id="s", token="wrong")
    await stream.write([node_pb2.NodeOrder(hello=hello)])
    async with asyncio.timeout(20):
        first = await stream.read()
        assert first is not None
        assert first.events[0].refusal.reason == "UnrecognizedClientException"
        assert await stream.read() is None
    stream.close()


FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.fixture
def frozen() -> Iterator[Path]:
    """A control group whose processes do not die while it is frozen."""
    if not (FREEZER / "tasks").exists():
        pytest.skip("only the freezer of version 1 keeps a killed process")
    group = FREEZER / f"test-{os.getpid()}"
    group.mkdir()
    yield group
    (group / "freezer.state").write_text("THAWED")
    group.rmdir()


async def test_memory_of_a_process_that_does_not_die_stays_reserved(
    agent: World, scheduler: Scheduler, frozen: Path
) -> None:
    """It is in use: whoever got it would have its neighbours killed. It comes back with the process's end."""
    function = await agent.function(ECHO, memory_mib=3001)
    environment = await scheduler.start(function)
    for pid in _processes_with_limit(3001):
        (frozen / "cgroup.procs").write_text(str(pid))
    (frozen / "freezer.state").write_text("FROZEN")
    assert (await scheduler.stop(environment)).reason == "idle"
    second = await agent.function(ECHO, memory_mib=3000)
    scheduler.order_start(second)
    async with asyncio.timeout(20):
        assert (await scheduler.stopped(second.environment_id)).reason == "capacity"
        (frozen / "freezer.state").write_text("THAWED")
        while scheduler.status.reserved["memory_mib"]:
            await scheduler.status_changed.wait()
            scheduler.status_changed.clear()
    second.environment_id += "-again"
    await scheduler.stop(await scheduler.start(second))


def _processes_with_limit(memory_mib: int) -> list[int]:
    """The processes of the agent's sandbox that has this memory limit."""
    for file in Path("/sys/fs/cgroup/memory").glob(f"**/lambent-test-{os.getpid()}/*/memory.limit_in_bytes"):
        if int(file.read_text()) == memory_mib << 20:
            return [int(pid) for pid in (file.parent / "cgroup.procs").read_text().split()]
    raise AssertionError(f"no sandbox has {memory_mib} MiB")


async def test_an_environment_takes_one_call_at_a_time(agent: World, scheduler: Scheduler) -> None:
    """A second call is refused as not dispatched, whether the first one runs or its payload is on its way."""
    environment = await scheduler.start(
        await agent.function("import time\ndef handler(event, context): time.sleep(1)\n")
    )
    for complete in (False, True):
        first = scheduler.open(environment, "x", complete=complete)
        second = await scheduler.invoke(environment, "y")
        assert second.end is not None
        assert second.end.service_error.reason == "ServiceUnavailableException"
        assert not second.end.service_error.dispatched
        scheduler.cancel(first)
        await scheduler.answer(first)
    await scheduler.stop(environment)
