"""A whole cluster on a host of its own: networks from the command line to the packets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.cluster import Cluster, running_cluster_async
from tests.network.functions import CLIENT, REFUSED
from tests.network.world import HOST_PUBLIC, NEIGHBOUR, SERVER, World

import lambent

pytestmark = pytest.mark.asyncio(loop_scope="module")

NETWORKS = """
[subnets.subnet-lan]
cidrs = ["11.0.0.0/24"]
[security_groups.sg-web]
allow = [{ protocol = "tcp", ports = "80", cidrs = ["11.0.0.0/24"] }]
"""
IN_LAN = ("--subnet-ids=subnet-lan", "--security-group-ids=sg-web")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(servers: World, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A cluster with a file of networks, which denies one address of the world."""
    networks = tmp_path_factory.mktemp("networks") / "networks.toml"
    networks.write_text(NETWORKS)
    async with running_cluster_async([f"--networks={networks}", "--network-deny=198.51.100.66"]) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(cluster: Cluster) -> AsyncIterator[lambent.AsyncClient]:
    """A client of it."""
    async with lambent.AsyncClient(data_dir=cluster.data_dir) as made:
        yield made


def listening_ports() -> set[int]:
    """TCP ports of the host on which somebody listens."""
    lines = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
    return {int(local.partition(":")[2], 16) for _, local, _, state, *_ in lines if state == "0A"}


async def deploy(cluster: Cluster, code: Path, name: str, *flags: str) -> Any:
    """Deploy by the command line, and give what it says of the function."""
    path = code / "app.py"
    path.write_text(CLIENT)
    deployed = ("deploy", "--output=json", name, str(path), "--handler=app.handler", *flags)
    return json.loads((await asyncio.to_thread(cluster.lambent, *deployed)).stdout)


async def test_functions_reach_the_world_unless_told_otherwise(
    cluster: Cluster, client: lambent.AsyncClient, world: World, tmp_path: Path
) -> None:
    """As on AWS; `--network none` takes it away, and both are seen in the function's description."""
    assert (await deploy(cluster, tmp_path, "open"))["network"] == "egress"
    assert (await client.invoke("open", f"tcp('{SERVER}')")).json() == f"world {HOST_PUBLIC}"
    assert (await deploy(cluster, tmp_path, "open", "--network=none"))["network"] == "none"
    assert (await client.invoke("open", f"tcp('{SERVER}')")).json() == "ENETUNREACH"
    described = await asyncio.to_thread(cluster.lambent, "describe", "open")
    assert "network" in described.stdout
    assert "none" in described.stdout


async def test_a_vpc_config_leads_to_the_operators_networks(
    cluster: Cluster, client: lambent.AsyncClient, world: World, tmp_path: Path
) -> None:
    """And to nothing else."""
    function = await deploy(cluster, tmp_path, "inside", *IN_LAN)
    assert function["vpc_config"] == {"subnet_ids": ["subnet-lan"], "security_group_ids": ["sg-web"]}
    assert (await client.invoke("inside", f"tcp('{NEIGHBOUR}')")).json().startswith("lan ")
    for attempt in (f"udp('{NEIGHBOUR}')", f"tcp('{SERVER}')", f"tcp('{NEIGHBOUR}', 81)"):
        assert (await client.invoke("inside", attempt)).json() in REFUSED
    assert len(world.seen) == 1


async def test_a_network_that_no_node_has_is_named(
    cluster: Cluster, client: lambent.AsyncClient, tmp_path: Path
) -> None:
    """At once, and not after the longest wait for room."""
    await deploy(cluster, tmp_path, "lost", "--subnet-ids=subnet-far", "--security-group-ids=sg-web")
    with pytest.raises(lambent.NoCapacityError, match=r"label network:subnet-far.*1 for labels"):
        await client.invoke("lost", "1")


async def test_the_clusters_ports_and_what_is_denied_are_refused(
    cluster: Cluster, client: lambent.AsyncClient, world: World, tmp_path: Path
) -> None:
    """By all addresses that the host has."""
    await deploy(cluster, tmp_path, "open", "--network=egress")
    listening = listening_ports()
    assert len(listening) >= 6  # etcd, nats, scheduler, agent
    for host in ("127.0.0.1", str(HOST_PUBLIC), "11.0.0.1"):
        with socket.socket() as made:
            made.settimeout(5)
            made.connect((host, 80))
        probe = f"sorted({{tcp('{host}', port) for port in {sorted(listening)}}})"
        assert set((await client.invoke("open", probe)).json()) <= REFUSED
    world.seen.clear()
    assert (await client.invoke("open", "tcp('198.51.100.66')")).json() in REFUSED
    assert world.seen == []
