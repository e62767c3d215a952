"""The benchmark on a cluster of its own: it finds the processes it measures, and has alive what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from benchmarks.cluster import cluster
from benchmarks.invocations import BURST, Suite
from benchmarks.processes import descendants
from tests.cluster import leftovers

import lambent

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def suite() -> AsyncIterator[Suite]:
    """One for all tests of this module; nothing of its cluster is left."""
    async with cluster(16_384) as running, lambent.AsyncClient(data_dir=running.data_dir) as client:
        yield Suite(running, client)
    assert leftovers(running.data_dir) == []


async def test_functions_of_the_rounds_answer(suite: Suite) -> None:
    """What the rounds call is what `prepare` deploys."""
    await suite.prepare()
    assert len(await suite.warm_ms("empty", 5)) == len(await suite.warm_ms("empty-128", 5)) == 5
    assert (await suite.client.invoke("large", b'"four"')).json() == 4
    assert [cold > 0 for cold in await suite.cold_ms(1, 128)] == [True]


async def test_a_burst_empties_the_pool(suite: Suite) -> None:
    """The call after it finds nothing ready-made, and its sandboxes end with their functions."""
    await suite.prepare_empty()
    durations, after_ms = await suite.exhausted_ms()
    assert len(durations) >= BURST
    assert min(durations) > 0
    assert after_ms is None or after_ms > 0  # a busy machine may have filled the pool in between


async def test_environments_are_alive_as_counted(suite: Suite) -> None:
    """The label of a row is the cluster's own count; blank sandboxes do not count."""
    await suite.prepare_empty()
    before = (await suite.client.status()).environments
    for more in (2, 5):
        alive = await suite.fill_environments(before + more)
        assert alive == before + more
        assert sum(map(len, suite.cluster.environments().values())) == alive
    assert await suite.fill_environments(1) == before + 5


async def test_functions_are_deployed_as_counted(suite: Suite) -> None:
    """Those that are there already count."""
    before = len([function async for function in suite.client.functions.list()])
    assert await suite.fill_functions(before + 5) == before + 5


async def test_memory_is_that_of_the_cluster_s_processes(suite: Suite) -> None:
    """The supervisor's scheduler and agent, the agent's zygotes, and what has a function below them."""
    await suite.prepare_empty()
    assert len(suite.cluster.parts("scheduler")) == len(suite.cluster.parts("agent")) == 1
    ((zygote, environments),) = suite.cluster.environments().items()
    assert zygote in suite.cluster.zygotes()
    assert all(set(environment) < set(descendants(zygote)) for environment in environments)
    memory = suite.memory()
    assert memory.environments == len(environments) > 0
    figures = (memory.scheduler, memory.agent, memory.zygote, memory.all_zygotes, memory.environment)
    assert all(figure is not None and figure > 0.5 for figure in figures)


async def test_interpreter_is_the_zygotes(suite: Suite) -> None:
    """The floor of a cold start runs the same binary."""
    await suite.prepare_empty()
    assert suite.python.startswith("/")
    bubblewrap_runs = await asyncio.to_thread(executable, suite.python)
    zygotes_run = {await asyncio.to_thread(executable, f"/proc/{pid}/exe") for pid in suite.cluster.environments()}
    assert zygotes_run == {bubblewrap_runs}


def executable(path: str) -> tuple[int, int]:
    """The file that a path leads to."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino
