"""One cluster of one node for all attempts, and a neighbour that must not notice any of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

import lambent
from tests.cluster import Cluster, running_cluster
from tests.security.target import NEIGHBOUR, Attack, Machine, Neighbour, Target, package


@pytest.fixture(scope="package")
def attacked_cluster() -> Iterator[Cluster]:
    """One node, so that every attacker is beside the neighbour."""
    if os.geteuid() != 0:
        pytest.skip("sandboxes need root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECURITY_TEST", f"environment-secret-{secrets.token_hex(16)}")  # the agent has it as well
        with running_cluster() as running:
            yield running


@pytest.fixture(scope="package")
def neighbour(attacked_cluster: Cluster) -> Neighbour:
    """Deployed once; its one environment lives as long as the cluster."""
    made = Neighbour("neighbour", f"neighbour-secret-{secrets.token_hex(16)}")
    with lambent.Client(data_dir=attacked_cluster.data_dir) as client:
        client.deploy(
            made.name,
            package(NEIGHBOUR),
            handler="attack.handler",
            memory_mib=128,
            timeout_s=30,
            environment={"SECRET": made.secret},
        )
    return made


@pytest_asyncio.fixture(autouse=True)
async def target(attacked_cluster: Cluster, neighbour: Neighbour) -> AsyncIterator[Target]:
    """The cluster under attack; after every attempt agent and neighbour are the ones that they were before."""
    async with asyncio.timeout(90), lambent.AsyncClient(data_dir=attacked_cluster.data_dir) as client:
        made = Target(attacked_cluster, client, neighbour)
        await neighbour.answers(client)
        agent, machine = made.agent, Machine.look(made)
        try:
            yield made
            assert agent.is_running()
            assert made.agent == agent
            now = Machine.look(made)
            assert now == machine
            assert abs(now.started_at - machine.started_at) < 5
            await neighbour.answers(client)
        finally:
            for name in made.deployed:
                with contextlib.suppress(lambent.FunctionNotFoundError):
                    await client.functions.delete(name)


@pytest.fixture
def attack(target: Target) -> Attack:
    """Deploys source text with `handler(event, context)`, invokes it once and gives what it returned."""
    return target.attack
