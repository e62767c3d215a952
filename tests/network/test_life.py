"""Network namespaces of the pool carry nothing over from one function to the next."""

from __future__ import annotations

import os
import socket

import pytest
from tests.network.functions import CLIENT, address_of, attachments_of, router_of
from tests.network.links import Links
from tests.network.world import HOST_PUBLIC, PORT, SERVER, World, tracked
from tests.sandbox_harness import Lab

from lambent_node_agent.network import EGRESS, NO_NETWORK, NetworkChoice
from lambent_node_agent.network.namespaces import entered

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_next_function_finds_nothing_of_the_last(agent: Lab, world: World) -> None:
    """In the same slot: no connection that ends slowly, no counts, nothing of what it spoke to."""
    reads = [f"read('/proc/net/{name}')" for name in ("tcp", "dev", "snmp", "netstat")]
    async with agent.sandbox(CLIENT, network=NO_NETWORK) as sandbox, agent.start(sandbox) as function:
        await function.frame()
        slot = sandbox._slot.index
        fresh = [await function.invoke(one) for one in reads]
    async with agent.sandbox(CLIENT, network=EGRESS) as sandbox, agent.start(sandbox) as function:
        await function.frame()
        assert sandbox._slot.index == slot
        assert await function.invoke(f"tcp('{SERVER}')") == f"world {HOST_PUBLIC}"
        assert [await function.invoke(one) for one in reads] != fresh
    async with agent.sandbox(CLIENT, network=NO_NETWORK) as sandbox, agent.start(sandbox) as function:
        await function.frame()
        assert sandbox._slot.index == slot
        assert [await function.invoke(one) for one in reads] == fresh


async def test_an_answer_that_comes_late_finds_nobody(agent: Lab, world: World) -> None:
    """The address is somebody else's by then: the router has forgotten who asked."""
    with entered(world.world):
        late = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        late.bind((SERVER, 9999))
        late.settimeout(5)
    ask = f"globals().update(u=socket.socket(2, 2)) or u.bind(('', 7777)) or u.sendto(b'?', ('{SERVER}', 9999))"
    listen = "globals().update(u=socket.socket(2, 2)) or u.bind(('', 7777)) or u.settimeout(0)"
    with late:
        async with agent.sandbox(CLIENT, network=EGRESS) as sandbox, agent.start(sandbox) as function:
            await function.frame()
            await function.invoke(ask)
            asker, slot = late.recvfrom(9)[1], sandbox._slot.index
            late.sendto(b"in time", asker)
            assert await function.invoke("u.recv(9).decode()") == "in time"
        async with agent.sandbox(CLIENT, network=EGRESS) as sandbox, agent.start(sandbox) as function:
            await function.frame()
            assert sandbox._slot.index == slot
            await function.invoke(listen)
            late.sendto(b"late", asker)
            assert await function.invoke(f"tcp('{SERVER}')") == f"world {HOST_PUBLIC}"
            assert (await function.fail("u.recv(9)"))["errorType"] == "BlockingIOError"


async def test_a_function_that_ends_leaves_no_connection(agent: Lab, world: World) -> None:
    """Not in the router; what the host remembers leads to nobody."""
    async with agent.sandbox(CLIENT, network=EGRESS) as sandbox, agent.start(sandbox) as function:
        await function.frame()
        address = address_of(agent, sandbox)
        await function.invoke(f"globals().update(s=socket.create_connection(('{SERVER}', {PORT})))")
        assert [line for line in tracked(router_of(agent)._namespace) if address in line]
    assert not [line for line in tracked(router_of(agent)._namespace) if address in line]


async def test_two_hundred_sandboxes_leave_nothing(agent: Lab) -> None:
    """No interface, namespace, rule or descriptor."""
    router = router_of(agent)
    links = Links(router._namespace)
    rules = router._rules.run("list chains").count("chain")
    descriptors = len(os.listdir("/proc/self/fd"))
    attachments = [router.attach(1000 + position) for position in range(200)]
    choices: list[NetworkChoice] = [EGRESS, NO_NETWORK]
    for position, attachment in enumerate(attachments):
        await attachment.connect(choices[position % 2])
        attachment.close()
    links.wait_until({"lo", "uplink", *(f"e{attachment._index}" for attachment in attachments_of(agent))})
    links.close()
    assert router._rules.run("list chains").count("chain") == rules
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1  # that of `links` has gone as well
