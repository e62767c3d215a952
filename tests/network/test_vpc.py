"""A function with a VpcConfig reaches what its subnets lead to and its security groups let through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.network.functions import CLIENT, REFUSED, router_of
from tests.network.world import HOST_LAN, HOST_PUBLIC, NEIGHBOUR, SERVER, World
from tests.sandbox_harness import Lab, lab

from lambent_node_agent.network import Mode, NetworkChoice, NetworkSettings, parse_networks
from lambent_node_agent.sandbox import SandboxError

pytestmark = pytest.mark.asyncio(loop_scope="module")

NETWORKS = """
[subnets.subnet-data]
cidrs = ["10.20.0.0/16", "172.16.5.0/24"]
[subnets.subnet-lan]
cidrs = ["11.0.0.0/24"]
[subnets.subnet-all]
cidrs = ["0.0.0.0/0"]

[security_groups.sg-web]
allow = [{ protocol = "tcp", ports = "80", cidrs = ["10.20.30.0/24", "11.0.0.2/32"] }]
[security_groups.sg-other]
allow = [
    { protocol = "tcp", ports = "1-79", cidrs = ["0.0.0.0/0"] },
    { protocol = "tcp", ports = "81-65535", cidrs = ["0.0.0.0/0"] },
]
[security_groups.sg-datagrams]
allow = [{ protocol = "udp", cidrs = ["10.20.0.0/16"] }]
[security_groups.sg-all]
allow = [{ cidrs = ["0.0.0.0/0"] }]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(servers: World, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    """Sandboxes on a host with these networks."""
    directory = tmp_path_factory.mktemp("sandbox")
    directory.chmod(0o755)
    async with lab(directory, "test-vpc", network=NetworkSettings(named=parse_networks(NETWORKS))) as made:
        yield made


def choice(subnets: str, groups: str) -> NetworkChoice:
    """A VpcConfig of names between spaces."""
    return NetworkChoice(
        Mode.VPC,
        tuple(f"subnet-{name}" for name in subnets.split()),
        tuple(f"sg-{name}" for name in groups.split()),
    )


async def evaluate(agent: Lab, network: NetworkChoice, expression: str) -> str:
    """Evaluate an expression in a function with this network."""
    async with agent.function(CLIENT, network=network) as function:
        answer = await function.invoke(expression)
    assert isinstance(answer, str)
    return answer


ALLOWED = {
    "a private address": ("data", "web", "tcp('10.20.30.1')"),
    "another subnet": ("data lan", "web", f"tcp('{NEIGHBOUR}')"),
    "another protocol": ("data", "datagrams", "udp('10.20.99.1')"),
    "by the second security group": ("data", "other web", "tcp('10.20.30.1')"),
    "every protocol": ("data", "all", "udp('172.16.5.9')"),
    "the world, when a subnet says so": ("all", "all", f"tcp('{SERVER}')"),
}


@pytest.mark.parametrize(("subnets", "groups", "attempt"), ALLOWED.values(), ids=ALLOWED.keys())
async def test_what_both_allow_is_reached(agent: Lab, world: World, subnets: str, groups: str, attempt: str) -> None:
    """Private addresses, too, since the operator has named them."""
    place, _source = (await evaluate(agent, choice(subnets, groups), attempt)).split()
    assert [where for where, _ in world.seen] == [place]


REFUSALS = {
    "beside the subnets": ("data", "all", "tcp('10.21.0.1')"),
    "the world": ("data lan", "all", f"tcp('{SERVER}')"),
    "beside the rule's addresses": ("data", "web", "tcp('10.20.31.1')"),
    "another port": ("data", "other", "tcp('10.20.30.1')"),
    "another protocol": ("data", "web", "udp('10.20.30.1')"),
    "the host, though all is allowed": ("all", "all", f"tcp('{HOST_PUBLIC}')"),
    "the host in its LAN": ("all lan", "all", f"tcp('{HOST_LAN}')"),
    "metadata, though all is allowed": ("all", "all", "tcp('169.254.169.254')"),
    "environments, though all is allowed": ("all", "all", "tcp('198.18.0.0')"),
}


@pytest.mark.parametrize(("subnets", "groups", "attempt"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_what_one_does_not_allow_is_refused(
    agent: Lab, world: World, subnets: str, groups: str, attempt: str
) -> None:
    """And what no operator can allow is refused whatever they say."""
    assert await evaluate(agent, choice(subnets, groups), attempt) in REFUSED
    assert world.seen == []


async def test_a_network_that_is_not_there_is_named(agent: Lab) -> None:
    """The scheduler places such a function elsewhere; a node that gets it all the same refuses."""
    with pytest.raises(SandboxError, match=r"no subnet or security group sg-gone, subnet-gone"):
        async with agent.function(CLIENT, network=choice("data gone", "gone")):
            pass


async def test_functions_that_choose_alike_share_their_rules(agent: Lab, world: World) -> None:
    """A transaction of nftables takes milliseconds: only the first of them waits for one."""
    chosen = choice("data lan all", "web other")
    rules = router_of(agent)._rules
    counts = []
    for _ in range(2):
        assert await evaluate(agent, chosen, "tcp('10.20.30.1')") == f"world {HOST_PUBLIC}"
        counts.append(rules.run("list ruleset").count("chain vpc_"))
    assert counts[0] == counts[1]


async def test_a_start_that_is_cancelled_gives_nobody_its_network(agent: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rules are made all the same, in a thread; meanwhile those of another combination are asked for."""
    router = router_of(agent)
    run, begun, go_on = router._rules.run, threading.Event(), threading.Event()

    def run_slowly(commands: str) -> str:
        if not begun.is_set():
            begun.set()
            go_on.wait()
        return run(commands)

    monkeypatch.setattr(router._rules, "run", run_slowly)
    first, second = choice("lan data all", "web other"), choice("all data", "datagrams other")
    attachments = [router.attach(position) for position in (4000, 4001)]
    cancelled = asyncio.create_task(attachments[0].connect(first))
    await asyncio.to_thread(begun.wait)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    connecting = asyncio.create_task(attachments[1].connect(second))
    await asyncio.wait([connecting], timeout=0.2)  # as long as it must not take: it waits for the first
    go_on.set()
    await connecting
    assert cancelled.cancelled()
    assert len({router._groups[first], router._groups[second]}) == 2
    for attachment in attachments:
        attachment.close()
