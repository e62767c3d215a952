"""What an agent's network takes of the host goes with the agent, however that ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.network.functions import CLIENT
from tests.network.links import Links
from tests.network.world import SERVER, World
from tests.sandbox_harness import lab

from lambent_node_agent.network import EGRESS, NetworkError, NetworkSettings, Router, parse_networks
from lambent_node_agent.sandbox import SandboxConfig, SandboxError, SandboxHost

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
INTERFACES = Path("/proc/sys/net/ipv4/conf")


@pytest.fixture
def host_links(namespaces: World) -> Iterator[Links]:
    """Those of the host."""
    links = Links(namespaces.host)
    yield links
    links.close()


def test_an_agent_that_stops_leaves_the_host_as_it_was(namespaces: World, host_links: Links, place: Path) -> None:
    """Forwarding, which was off, is off again; the second of two agents does that."""
    before = namespaces.rules()
    assert FORWARDING.read_text() == "0\n"
    first = Router(200, NetworkSettings(), place)
    second = Router(201, NetworkSettings(), place)
    first.open()
    second.open()
    assert FORWARDING.read_text() == "1\n"
    assert "lambent_guard" in namespaces.rules()
    first.close()
    assert FORWARDING.read_text() == "1\n"
    second.close()
    assert FORWARDING.read_text() == "0\n"
    assert namespaces.rules() == before
    host_links.wait_until({"lo", "wan0", "lan0"})


def test_settings_that_forwarding_overwrites_are_put_back(namespaces: World, place: Path) -> None:
    """The kernel lets a host that stops to forward take redirects, and forgets which interfaces forwarded alone."""
    redirects, lan = INTERFACES / "all/accept_redirects", INTERFACES / "lan0/forwarding"
    before = redirects.read_text()
    redirects.write_text("0")
    lan.write_text("1")
    assert FORWARDING.read_text() == "0\n"
    first, second = (Router(number, NetworkSettings(), place) for number in (204, 205))
    first.open()
    second.open()
    first.close()
    second.close()
    assert (FORWARDING.read_text(), redirects.read_text(), lan.read_text()) == ("0\n", "0\n", "1\n")
    assert not (place / "forwarding").exists()
    redirects.write_text(before)
    lan.write_text("0")


def test_an_agent_of_a_number_in_use_is_refused(
    namespaces: World, host_links: Links, place: Path, tmp_path: Path
) -> None:
    """As with two agents that agree on nothing, in containers on the host's network: the first keeps its link."""
    first, second = (Router(206, NetworkSettings(), lock_dir) for lock_dir in (place, tmp_path))
    first.open()
    link, rules = socket.if_nametoindex("lmb206"), namespaces.rules()
    with pytest.raises(NetworkError, match="nftables: "):
        second.open()
    assert (socket.if_nametoindex("lmb206"), namespaces.rules()) == (link, rules)
    first.close()
    host_links.wait_until({"lo", "wan0", "lan0"})


def test_forwarding_that_was_on_stays_on(namespaces: World, place: Path) -> None:
    """The host is a router in its own right: it is not guarded, and not switched off."""
    FORWARDING.write_text("1")
    router = Router(202, NetworkSettings(), place)
    router.open()
    assert "lambent_guard" not in namespaces.rules()
    router.close()
    assert FORWARDING.read_text() == "1\n"
    FORWARDING.write_text("0")


AGENT = """
import asyncio, sys
from pathlib import Path
from lambent_node_agent.network import EGRESS
from lambent_node_agent.sandbox import SandboxConfig, SandboxHost, enter_private_mount_namespace

async def main():
    async with SandboxHost(SandboxConfig(Path(sys.argv[1]), sys.argv[2])) as host:
        await host.wait_until_filled()
        sandbox = await host.create(sys.argv[3])
        await sandbox.specialise(Path(sys.argv[1]), 128, 1000, 512, EGRESS)
        print("ready", flush=True)
        await asyncio.Event().wait()

enter_private_mount_namespace()
asyncio.run(main())
"""


def test_a_killed_agent_takes_its_network_along(namespaces: World, host_links: Links, place: Path) -> None:
    """What guards the host stays, with its forwarding; the next agent that stops ends both."""
    owner, runtime = f"killed-{os.getpid()}", f"python3.{sys.version_info[1]}"
    command = [sys.executable, "-c", AGENT, str(place), owner, runtime]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(host_links.names()) == 4
        process.send_signal(signal.SIGKILL)
    host_links.wait_until({"lo", "wan0", "lan0"})
    left = [line for line in namespaces.rules().splitlines() if line.startswith("table")]
    assert sorted(left) == ["table ip lambent_guard {", "table ip lambent_links {"]
    assert 'iifname "lmb*" fib daddr type != unicast' in namespaces.rules()  # until the last function has ended as well
    assert FORWARDING.read_text() == "1\n"
    router = Router(203, NetworkSettings(), place)
    router.open()
    router.close()
    assert FORWARDING.read_text() == "0\n"
    assert namespaces.rules() == ""


@pytest.fixture
def without_libnftables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which it is not installed."""
    monkeypatch.setattr("lambent_node_agent.network.nftables._LIBRARY", "libnftables.so.0")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.usefixtures("without_libnftables", "namespaces")
async def test_a_machine_that_cannot_refuses_to_start(place: Path, host_links: Links) -> None:
    """It says what would help, and has taken nothing of the machine."""
    with pytest.raises(SandboxError, match=r"libnftables1\).*--allow-missing network"):
        async with SandboxHost(SandboxConfig(place, f"without-{os.getpid()}")):
            pass
    assert host_links.names() == {"lo", "wan0", "lan0"}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.usefixtures("without_libnftables")
async def test_the_operator_can_accept_functions_without_a_network(
    servers: World, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they ask for, they have loopback."""
    monkeypatch.setattr("tests.sandbox_harness.SandboxConfig", _accepting)
    async with lab(place, "accepting") as made, made.function(CLIENT, network=EGRESS) as function:
        assert await function.invoke(f"tcp('{SERVER}')") == "ENETUNREACH"
        assert await function.invoke("[name for _, name in socket.if_nameindex()]") == ["lo"]
        assert made.host.named_networks.names == frozenset()  # functions that need it are placed elsewhere


def _accepting(directory: Path, owner: str, pool_size: int) -> SandboxConfig:
    network = NetworkSettings(named=parse_networks("[subnets.subnet-a]\ncidrs = ['10.0.0.0/8']"))
    return SandboxConfig(directory, owner, pool_size, allow_missing=frozenset({"network"}), network=network)


def slots_in(place: Path) -> list[Path]:
    """Directories of slots in a place of the tests."""
    return list(place.glob("**/slots"))


@pytest.mark.asyncio(loop_scope="module")
async def test_files_go_also_when_connections_cannot_be_forgotten(
    servers: World, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go with the router; the slots' directories would stay, and keep the agent from its end."""

    def refuse(_router: Router, _index: int, _address: object) -> None:
        raise NetworkError("refused")

    async with lab(place, "unforgotten") as made:
        async with made.function(CLIENT, network=EGRESS):
            pass
        assert slots_in(place) != []
        monkeypatch.setattr(Router, "dismiss", refuse)
    assert slots_in(place) == []
