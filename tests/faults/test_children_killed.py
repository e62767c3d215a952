"""What callers meet when a part of a real cluster is killed, and that the cluster mends itself under them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest
import pytest_asyncio
from tests.cluster import Cluster, RunningCommand, foreground_cluster

import lambent
from lambent_common import keys
from lambent_common.credentials import Credentials
from lambent_common.etcd import Changes, Delete, EtcdClient
from lambent_supervisor.data_directory import DataDirectory

# A call on a node that was killed fails by the end of a connection, long before a lease lapses or a time runs out.
AT_ONCE_S = 4

# A node's lease is one of 5 s.
LEASE_S = 15

HANDLERS = """
import time

def echo(event, context):
    print("echo of", event)
    return event

def count(event, context):
    for number in range(1_000):
        yield f"{number}\\n"
        time.sleep(0.05)
"""


@dataclass(frozen=True)
class FaultyCluster:
    """Two nodes with room for four environments of 128 MiB each, and what the supervisor says."""

    cluster: Cluster
    supervisor: RunningCommand

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a child."""
        assert self.cluster.process(name).send(number)

    @contextlib.asynccontextmanager
    async def without(self, name: str) -> AsyncIterator[None]:
        """A child is killed, and the supervisor has not yet noticed; after the block it serves again."""
        process = self.cluster.process(name)
        self.supervisor.process.send_signal(signal.SIGSTOP)
        try:
            assert process.send(signal.SIGKILL)
            assert await asyncio.to_thread(process.wait_until_ended, AT_ONCE_S)
            yield
        finally:
            self.supervisor.process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(self.supervisor.said, f"{name} is ready again")

    async def wait_until_node_is_gone(self, node_id: str) -> None:
        """Return when the node's lease has lapsed."""
        address = json.loads(DataDirectory(self.cluster.data_dir).cluster.read_text())["etcd"]
        credentials = Credentials.load(DataDirectory(self.cluster.data_dir).credentials)
        async with await EtcdClient.connect([address], credentials) as etcd, asyncio.timeout(LEASE_S):
            async for batch in etcd.watch(keys.node(node_id)):
                if isinstance(batch, Changes) and any(isinstance(event, Delete) for event in batch.events):
                    return


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyCluster]:
    """One cluster for all tests here: each waits until it is whole again."""
    data_dir = tmp_path_factory.mktemp("faults") / "data"
    with foreground_cluster(data_dir, "--nodes=2", "--memory=1024") as (running, supervisor):
        yield FaultyCluster(running, supervisor)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = tmp_path_factory.mktemp("handlers") / "app.py"
    module.write_text(HANDLERS)
    return module


@pytest_asyncio.fixture
async def client(faulty: FaultyCluster) -> AsyncIterator[lambent.AsyncClient]:
    async with asyncio.timeout(60), lambent.AsyncClient(data_dir=faulty.cluster.data_dir) as connected:
        yield connected


@pytest_asyncio.fixture
async def deploy(client: lambent.AsyncClient, code: Path) -> AsyncIterator[Deploy]:
    deployed = Deploy(client, code)
    yield deployed
    for name in deployed.names:
        await client.functions.delete(name)


@dataclass
class Deploy:
    """Deploys functions of 128 MiB under names of their own; deleted at the end of the test."""

    client: lambent.AsyncClient
    code: Path
    names: list[str] = field(default_factory=list)

    async def __call__(self, handler: str) -> str:
        """Deploy one of the handlers and give its name."""
        name = f"{handler}-{uuid.uuid4().hex[:8]}"
        await self.client.deploy(name, self.code, handler=f"app.{handler}", memory_mib=128, timeout_s=60)
        self.names.append(name)
        return name


class Reader:
    """Reads a streamed call until it fails; `read` waits for the next piece from now on."""

    def __init__(self, client: lambent.AsyncClient, name: str) -> None:
        self._stream = client.stream(name)
        self._piece = asyncio.Event()
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async with self._stream:
            async for _ in self._stream:
                self._piece.set()

    async def read_or_end(self) -> None:
        """Wait until one more piece has come, or the end."""
        self._piece.clear()
        waiting = asyncio.create_task(self._piece.wait())
        await asyncio.wait((waiting, self.task), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def read(self) -> None:
        """Wait until one more piece has come."""
        await self.read_or_end()
        assert not self.task.done(), self.task

    async def __aenter__(self) -> Self:
        await self.read()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.cancel()

    async def cancel(self) -> None:
        """Cancel the call, unless it has failed."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def attached_nodes(client: lambent.AsyncClient) -> set[str]:
    return {node.node_id async for node in client.nodes() if node.attached}


async def test_calls_on_a_killed_agent_fail_at_once_and_others_go_on(
    faulty: FaultyCluster, client: lambent.AsyncClient, deploy: Deploy
) -> None:
    """With an error that a caller may retry; the node leaves the pool, comes back, and serves again."""
    count, echo = await deploy("count"), await deploy("echo")
    async with contextlib.AsyncExitStack() as stack:
        # Four fit on one node, so that both have two at least.
        readers = [await stack.enter_async_context(Reader(client, count)) for _ in range(6)]
        async with faulty.without("node-1"):
            tasks = [reader.task for reader in readers]
            await asyncio.wait(tasks, timeout=AT_ONCE_S, return_when=asyncio.FIRST_COMPLETED)
            assert await attached_nodes(client) == {"node-2"}
            # What comes from the other node from now on comes behind every failure.
            for _ in range(2):
                await asyncio.gather(*(reader.read_or_end() for reader in readers))
            lost = [reader for reader in readers if reader.task.done()]
            left = [reader for reader in readers if reader not in lost]
            assert 2 <= len(lost) <= 4
            for reader in lost:
                error = reader.task.exception()
                assert isinstance(error, lambent.NodeLostError)
                assert error.dispatched
            await faulty.wait_until_node_is_gone("node-1")
            while "node-1" in [node.node_id async for node in client.nodes()]:
                pass  # the scheduler hears of it when we do
            await left.pop().cancel()
            assert (await client.invoke(echo, 1)).node_id == "node-2"
            await asyncio.gather(*(reader.read() for reader in left))

        # More than node-2 has room for.
        left += [await stack.enter_async_context(Reader(client, count)) for _ in range(8 - len(left))]
        assert await attached_nodes(client) == {"node-1", "node-2"}
        await asyncio.gather(*(reader.read() for reader in left))


async def test_a_killed_scheduler_costs_neither_environments_nor_idempotent_calls(
    faulty: FaultyCluster, client: lambent.AsyncClient, deploy: Deploy
) -> None:
    """The next one finds the functions and adopts what the nodes hold; calls that may be sent again are answered."""
    calm, busy = await deploy("echo"), await deploy("echo")
    before = await client.invoke(calm)
    answered = asyncio.Condition()
    answers: list[lambent.InvokeResult] = []
    done = False

    async def call_until_done() -> None:
        while not done:
            result = await client.invoke(busy, idempotent=True)
            async with answered:
                answers.append(result)
                answered.notify_all()

    async def wait_for_more(number: int) -> None:
        wanted = len(answers) + number
        async with answered:
            await answered.wait_for(lambda: len(answers) >= wanted)

    async with asyncio.TaskGroup() as callers:
        for _ in range(2):  # the node that is back first has room for them beside what it holds
            callers.create_task(call_until_done())
        await wait_for_more(20)
        async with faulty.without("scheduler"):
            pass
        await wait_for_more(20)
        done = True
    after = await client.invoke(calm)
    assert (after.cold_start, after.environment_id) == (False, before.environment_id)
    assert {function.function_name async for function in client.functions.list()} == {calm, busy}


async def test_warm_calls_go_on_without_etcd_and_changes_after_it(
    faulty: FaultyCluster, client: lambent.AsyncClient, deploy: Deploy
) -> None:
    """Neither an etcd that hangs nor one that is gone is on the way of an invocation."""
    echo = await deploy("echo")
    await client.invoke(echo)
    faulty.send("etcd", signal.SIGSTOP)
    await call_warm(client, echo)
    async with faulty.without("etcd"):
        await call_warm(client, echo)
    another = await deploy("echo")
    assert (await client.invoke(another, 2)).json() == 2
    await call_warm(client, echo)


async def test_warm_calls_go_on_without_nats_and_logs_come_back(
    faulty: FaultyCluster, client: lambent.AsyncClient, deploy: Deploy
) -> None:
    """What functions print waits within bounds, and code can be deployed again."""
    echo = await deploy("echo")
    await client.invoke(echo)
    faulty.send("nats-server", signal.SIGSTOP)
    await call_warm(client, echo)
    async with faulty.without("nats-server"):
        await call_warm(client, echo)
    await client.invoke(echo, "afterwards")
    async for event in client.logs(echo, follow=True):
        if event.message == "echo of afterwards":
            break
    another = await deploy("echo")
    assert (await client.invoke(another, 2)).json() == 2


async def call_warm(client: lambent.AsyncClient, name: str) -> None:
    """Make calls that have to be warm and quick."""
    async with asyncio.timeout(AT_ONCE_S):
        for number in range(20):
            result = await client.invoke(name, number)
            assert (result.json(), result.cold_start) == (number, False)
