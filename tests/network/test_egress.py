"""A function with the network `egress` reaches the world, and nothing else."""

from __future__ import annotations

import asyncio
import json
import socket
from ipaddress import IPv4Address, IPv4Network

import pytest
from tests.network.functions import CLIENT, REFUSED, address_of, router_of
from tests.network.world import HOST_LAN, HOST_PUBLIC, NEIGHBOUR, PORT, SERVER, World, tracked
from tests.sandbox_harness import Lab

from lambent_node_agent.network import EGRESS, NO_NETWORK, rtnetlink
from lambent_node_agent.network.namespaces import entered

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def evaluate(agent: Lab, *expressions: str) -> list[str]:
    """Evaluate expressions in a function with egress."""
    async with agent.function(CLIENT, network=EGRESS) as function:
        return [await function.invoke(expression) for expression in expressions]


async def test_the_world_is_reached_with_the_address_of_the_host(agent: Lab, world: World) -> None:
    """TCP and UDP; nobody outside sees where on the host a function runs."""
    answers = await evaluate(agent, f"tcp('{SERVER}')", f"udp('{SERVER}')")
    assert answers == [f"world {HOST_PUBLIC}"] * 2
    assert world.at("world") == [str(HOST_PUBLIC)] * 2


async def test_a_large_answer_comes_whole(agent: Lab, world: World) -> None:
    """Packets of full size pass both ways."""
    with entered(world.world):
        listening = socket.create_server(("", 8080))
    listening.setblocking(False)

    async def give() -> None:
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(listening)
        with connection:
            await loop.sock_sendall(connection, bytes(5_000_000))

    fetch = f"""(lambda client: sum(map(len, iter(lambda: client.recv(65536), b''))))(
        socket.create_connection(('{SERVER}', 8080)))"""
    with listening:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(give())
            assert await evaluate(agent, fetch) == [5_000_000]


DENIED = {
    "the host's public address": str(HOST_PUBLIC),
    "the host's address in its LAN": str(HOST_LAN),
    "a neighbour in the LAN": str(NEIGHBOUR),
    "metadata of a cloud": "169.254.169.254",
    "credentials of containers": "169.254.170.2",
    "metadata of another cloud": "100.100.100.200",
    "settings of a third cloud's machines": "168.63.129.16",
    "private: 10": "10.1.2.3",
    "private: 172.16": "172.31.0.1",
    "private: 192.168": "192.168.0.1",
    "this network": "0.1.2.3",
    "benchmarking": "198.19.200.1",
    "what the operator denies": "8.8.4.4",
}


@pytest.mark.parametrize("address", DENIED.values(), ids=DENIED.keys())
async def test_what_is_not_the_world_is_refused(agent: Lab, world: World, address: str) -> None:
    """There is somebody at each of these addresses who would answer the host; the function is told no at once."""
    answers = await evaluate(agent, f"tcp('{address}')", f"udp('{address}')")
    assert set(answers) <= REFUSED | {"EINVAL"}
    assert world.seen == []


@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.255.254", "0.0.0.0"])
async def test_loopback_is_the_sandboxs_own(agent: Lab, world: World, address: str) -> None:
    """The host listens on all its addresses."""
    assert await evaluate(agent, f"tcp('{address}')", f"udp('{address}')") == ["ECONNREFUSED"] * 2
    assert world.seen == []


@pytest.mark.parametrize("address", ["255.255.255.255", "224.0.0.1", "239.1.2.3", "240.0.0.1", "11.0.0.255"])
async def test_nobody_hears_broadcast_and_multicast(agent: Lab, world: World, address: str) -> None:
    """Nothing says that such a datagram was lost."""
    await evaluate(agent, f"udp('{address}', timeout=0.1)")
    await evaluate(agent, f"udp('{SERVER}')")  # whatever came before it would have been seen
    assert world.seen == [("world", str(HOST_PUBLIC))]


async def test_both_ends_of_the_link_to_the_host_are_refused(agent: Lab, world: World) -> None:
    """The router offers nothing but names, and the host nothing at all."""
    router = router_of(agent)
    ends = (router._host_address, router._router_address)
    assert set(await evaluate(agent, *(f"{kind}('{end}')" for end in ends for kind in ("tcp", "udp")))) <= REFUSED
    assert world.seen == []


async def test_other_environments_are_refused(agent: Lab, world: World) -> None:
    """Two functions with egress have routes to one router, which joins them nowhere."""
    listen = "globals().update(tcp_server=socket.create_server(('', 8080)))"
    async with (
        agent.sandbox(CLIENT, network=EGRESS) as sandbox,
        agent.start(sandbox) as other,
        agent.function(CLIENT, network=EGRESS) as function,
    ):
        await other.frame()
        await other.invoke(listen)
        address = address_of(agent, sandbox)
        assert (
            set(
                json.loads(
                    await function.invoke(f"__import__('json').dumps([tcp('{address}', 8080), udp('{address}', 8080)])")
                )
            )
            <= REFUSED
        )
        with pytest.raises(AssertionError, match="BlockingIOError"):
            await other.invoke("tcp_server.setblocking(False) or tcp_server.accept()")


async def test_without_a_network_there_is_loopback_alone(agent: Lab, world: World) -> None:
    """The interface is down, and who may not raise it has no route anywhere."""
    async with agent.function(CLIENT, network=NO_NETWORK) as function:
        answers = [await function.invoke(f"{kind}('{SERVER}')") for kind in ("tcp", "udp")]
        routes = await function.invoke("read('/proc/net/route')")
    assert answers == ["ENETUNREACH"] * 2
    assert len(routes.splitlines()) == 1  # the heading
    assert world.seen == []


async def test_a_blank_sandbox_sends_nothing(agent: Lab, world: World) -> None:
    """Its network is decided with its function."""
    router = router_of(agent)
    attachment = router.attach(4000)
    with entered(attachment.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"?", (SERVER, PORT))
        await attachment.connect(EGRESS)
        made.sendto(b"?", (SERVER, PORT))
    await evaluate(agent, f"udp('{SERVER}')")
    attachment.close()
    assert world.at("world") == [str(HOST_PUBLIC)] * 2


async def test_a_forged_source_address_gets_nowhere(agent: Lab, world: World) -> None:
    """Not that a function could send from one: even root in its namespace could not."""
    router = router_of(agent)
    attachment = router.attach(4001)
    await attachment.connect(EGRESS)
    forged = (router._environments[7], IPv4Address(SERVER), HOST_PUBLIC, router._router_address)
    with entered(attachment.namespace):
        for address in forged:
            with rtnetlink.RouteSocket() as routes:
                routes.send(rtnetlink.new_address(2, address))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.bind((str(address), 0))
                made.sendto(b"?", ("198.51.100.8", PORT))
    assert await evaluate(agent, f"udp('{SERVER}')") == [f"world {HOST_PUBLIC}"]
    assert tracked(router._namespace) == [line for line in tracked(router._namespace) if "198.51.100.8" not in line]
    attachment.close()
    assert world.at("world") == [str(HOST_PUBLIC)]


async def test_the_host_routes_for_nobody_else(agent: Lab, world: World) -> None:
    """Forwarding is on for the functions' sake; a neighbour who takes the host for a router gets nowhere."""
    for namespace, target in ((world.lan, SERVER), (world.world, str(NEIGHBOUR))):
        with entered(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.sendto(b"?", (target, PORT))
    await evaluate(agent, f"udp('{SERVER}')")
    assert world.seen == [("world", str(HOST_PUBLIC))]


async def test_nobody_outside_can_begin_a_conversation(agent: Lab, world: World) -> None:
    """Answers pass, and nothing else: neither for the world nor for the host, though they have routes to it."""
    async with agent.sandbox(CLIENT, network=EGRESS) as sandbox, agent.start(sandbox) as function:
        await function.frame()
        await function.invoke("globals().update(u=socket.socket(2, 2)) or u.bind(('', 8080)) or u.settimeout(0)")
        address, router = address_of(agent, sandbox), router_of(agent)
        with rtnetlink.RouteSocket() as routes:
            link = socket.if_nametoindex(router._link)
            routes.send(rtnetlink.new_route(link, IPv4Network(address), gateway=router._router_address))
        for namespace in (world.world, world.host):
            for target in (address, str(router._router_address)):
                with entered(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                    made.sendto(b"?", (target, 8080))
        assert await function.invoke(f"tcp('{SERVER}')") == f"world {HOST_PUBLIC}"
        assert (await function.fail("u.recv(9)"))["errorType"] == "BlockingIOError"


async def test_one_function_cannot_fill_the_table_of_connections(agent: Lab, world: World) -> None:
    """Datagrams to ever new ports are connections to the kernel, which it remembers for a while."""
    flood = "[udp.sendto(b'?', ('198.51.100.9', port)) for port in range(1000, 5000)]"
    async with agent.sandbox(CLIENT, network=EGRESS) as sandbox, agent.start(sandbox) as function:
        await function.frame()
        await function.invoke(f"[globals().update(udp=socket.socket(2, 2)), {flood}] and None")
        own = [line for line in tracked(router_of(agent)._namespace) if address_of(agent, sandbox) in line]
        assert 900 <= len(own) <= 1100
        assert await evaluate(agent, f"tcp('{SERVER}')") == [f"world {HOST_PUBLIC}"]
    assert [line for line in tracked(router_of(agent)._namespace) if "198.51.100.9" in line] == []
