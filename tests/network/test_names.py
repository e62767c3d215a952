"""Functions resolve names as the host does, and cannot keep the agent from its work with it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.network.functions import CLIENT, router_of
from tests.network.name_server import NameServer, name_server
from tests.network.world import SERVER, World
from tests.sandbox_harness import Lab, lab

from lambent_node_agent.network import EGRESS, NO_NETWORK, NetworkSettings
from lambent_node_agent.network.names import NameRelay
from lambent_node_agent.network.namespaces import entered

pytestmark = pytest.mark.asyncio(loop_scope="module")

ELSEWHERE = "198.51.100.53"
"""The address of a name server in the world."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers_of_names(servers: World) -> AsyncIterator[tuple[NameServer, NameServer]]:
    """One on the host's loopback, as systemd-resolved is, and one in the world."""
    async with (
        name_server(servers.host, "127.0.0.53", SERVER) as local,
        name_server(servers.world, ELSEWHERE, "198.51.100.99") as far,
    ):
        yield local, far


@pytest.fixture(scope="module")
def resolv_conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host's."""
    path = tmp_path_factory.mktemp("etc") / "resolv.conf"
    path.write_text("search example\nnameserver 127.0.0.53\n")
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(
    servers_of_names: object, resolv_conf: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    """Sandboxes on that host."""
    directory = tmp_path_factory.mktemp("sandbox")
    directory.chmod(0o755)
    async with lab(directory, "test-names", network=NetworkSettings(resolv_conf=resolv_conf)) as made:
        yield made


async def test_a_name_leads_to_the_world(agent: Lab, servers_of_names: tuple[NameServer, NameServer]) -> None:
    """By the host's own resolver, which listens where no function could reach it."""
    async with agent.function(CLIENT, network=EGRESS) as function:
        assert await function.invoke("tcp('www.example.com')") == "world 203.0.113.2"
    assert ("udp", "www.example.com") in servers_of_names[0].asked


async def test_a_long_answer_comes_over_tcp(agent: Lab, servers_of_names: tuple[NameServer, NameServer]) -> None:
    """The C library asks again over TCP when an answer is cut short."""
    async with agent.function(CLIENT, network=EGRESS) as function:
        assert await function.invoke("socket.gethostbyname('long.example.com')") == SERVER
    assert ("tcp", "long.example.com") in servers_of_names[0].asked


async def test_without_a_network_there_are_no_names(
    agent: Lab, servers_of_names: tuple[NameServer, NameServer]
) -> None:
    """A name can carry a secret out. The function is told at once."""
    async with agent.function(CLIENT, network=NO_NETWORK) as function:
        failed = await function.fail("socket.gethostbyname('secret.example.com')")
    assert failed["errorType"] == "gaierror"
    assert not [name for server in servers_of_names for _protocol, name in server.asked if "secret" in name]


FLOOD = """
import time

QUESTION = b"ab\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\5flood\\0\\0\\1\\0\\1"

def flood():
    "Ask thirty times for twenty names: how many answers came, and in how many seconds."
    answers, began = 0, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(0.02)
        for _ in range(30):
            for _ in range(20):
                made.sendto(QUESTION, ("169.254.169.253", 53))
            try:
                while made.recv(512):
                    answers += 1
            except TimeoutError:
                continue
    return answers, time.monotonic() - began
"""


async def test_a_flood_of_questions_is_cut(agent: Lab, servers_of_names: tuple[NameServer, NameServer]) -> None:
    """The kernel drops what exceeds an environment's share, before the agent sees it; others are answered."""
    async with agent.function(CLIENT + FLOOD, network=EGRESS) as function:
        answers, seconds = await function.invoke("flood()")
        async with agent.function(CLIENT, network=EGRESS) as other:
            assert await other.invoke("socket.gethostbyname('after.example.com')") == SERVER
    assert 0 < answers <= 200 + 100 * (seconds + 1)


async def test_what_is_no_question_is_not_relayed(agent: Lab, servers_of_names: tuple[NameServer, NameServer]) -> None:
    """The host's name server sees well-sized queries alone, and nothing that would change what it says."""
    before = len(servers_of_names[0].asked)
    update = r"b'ab\x28\0\0\1\0\0\0\0\0\0\6update\0\0\6\0\1'"
    noise = ["b''", "b'x' * 11", "b'ab\\x81' + bytes(30)", "bytes(5000)", update]
    send = "; ".join(f"u.sendto({one}, ('169.254.169.253', 53))" for one in noise)
    source = CLIENT + f"\ndef noise():\n    u = socket.socket(2, 2)\n    {send}\n    u.close()\n"
    async with agent.function(source, network=EGRESS) as function:
        await function.invoke("noise()")
        assert await function.invoke("socket.gethostbyname('only.example.com')") == SERVER
    assert {name for _protocol, name in servers_of_names[0].asked[before:]} == {"only.example.com"}


@pytest.fixture
def late_server(servers: World, agent: Lab, resolv_conf: Path) -> Iterator[socket.socket]:
    """The host's only name server: answers when the test does."""
    known, before = router_of(agent)._names._servers, resolv_conf.read_text()
    resolv_conf.write_text("nameserver 127.0.0.98\n")
    known._looked_at -= 1  # a second passes
    with entered(servers.host), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.98", 53))
        made.setblocking(False)
        yield made
    resolv_conf.write_text(before)
    known._looked_at -= 1


async def test_an_answer_that_comes_late_finds_nobody(agent: Lab, late_server: socket.socket) -> None:
    """The next environment with that address hears nothing of what the one before has asked."""
    loop = asyncio.get_running_loop()
    begin = "globals().update(u=socket.socket(2, 2)) or u.bind(('', 7777))"
    ask = (
        "u.sendto(b'{0}\\1' + bytes((0, 0, 1, 0, 0, 0, 0, 0, 0)) + b'\\4late\\0\\0\\1\\0\\1', ('169.254.169.253', 53))"
    )
    askers = []
    for number in ("ab", "cd"):
        async with agent.sandbox(CLIENT, network=EGRESS) as sandbox, agent.start(sandbox) as function:
            await function.frame()
            await function.invoke(begin)
            await function.invoke(ask.format(number))
            query, asker = await loop.sock_recvfrom(late_server, 512)
            askers.append((query, asker, sandbox._slot.index))
            if number == "cd":
                for earlier, port, _slot in askers:
                    late_server.sendto(earlier[:2] + b"\x81" + earlier[3:], port)
                assert await function.invoke("u.recv(512)[:2].decode()") == "cd"
    assert askers[0][2] == askers[1][2]


async def test_many_who_ask_much_leave_room_for_one_who_asks_little(tmp_path: Path) -> None:
    """However many questions wait for name servers that do not answer."""
    relay, answered = NameRelay(tmp_path), asyncio.Event()

    async def wait() -> None:
        await answered.wait()

    tasks = [relay._spawn(f"198.18.0.{asker}", wait()) for asker in range(200) for _ in range(100)]
    waiting = [task for task in tasks if task is not None]
    one = relay._spawn("198.18.1.1", wait())
    assert len(waiting) == 1024 + (200 - 1024 // 64) * 2
    assert one is not None
    answered.set()
    await asyncio.wait([one, *waiting])


@pytest.fixture
def moved(agent: Lab, resolv_conf: Path) -> Iterator[None]:
    """The machine changes networks: its first name server is gone, the second is in the world."""
    servers = router_of(agent)._names._servers
    before = resolv_conf.read_text()
    resolv_conf.write_text(f"nameserver 127.0.0.99\nnameserver {ELSEWHERE}\n")
    servers._looked_at -= 1  # a second passes
    yield
    resolv_conf.write_text(before)
    servers._looked_at -= 1


@pytest.mark.usefixtures("moved")
async def test_a_changed_list_of_servers_is_read(agent: Lab) -> None:
    """A server that is not there is passed over."""
    async with agent.function(CLIENT, network=EGRESS) as function:
        assert await function.invoke("socket.gethostbyname('moved.example.com')") == "198.51.100.99"


@pytest.mark.usefixtures("moved")
async def test_an_unanswered_question_ends_in_a_failure(
    agent: Lab, servers_of_names: tuple[NameServer, NameServer]
) -> None:
    """The function need not wait for its own time-out of 10 s and more."""
    servers_of_names[1].silent = True
    async with agent.function(CLIENT, network=EGRESS) as function, asyncio.timeout(8):
        failed = await function.fail("socket.gethostbyname('nobody.example.com')")
    servers_of_names[1].silent = False
    assert failed["errorType"] == "gaierror"
