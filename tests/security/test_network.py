"""A function reaches nothing of the host, of the cluster or of other environments over any kind of socket."""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterator

import psutil
import pytest

from lambent_node_agent.network.rules import LINK_PREFIX
from tests.security.siege import Attacker
from tests.security.target import SYSTEM_CALLS, Attack, Target

SOCKETS = (
    SYSTEM_CALLS
    + """
import socket

def connect(family, address, kind=socket.SOCK_STREAM):
    "Connect, and say something: a reply, or the name of the errno."
    with socket.socket(family, kind) as made:
        made.settimeout(2)
        try:
            made.connect(address)
            made.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            return made.recv(9).decode(errors="replace")
        except TimeoutError:
            return "ETIMEDOUT"
        except OSError as error:
            return errno.errorcode[error.errno]
"""
)

UNREACHABLE = {"ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED", "EACCES", "ETIMEDOUT"}
"""What a connection attempt that leaves the sandbox may end with."""
FAMILIES = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
"""The families that the policy allows."""

EVERY_FAMILY = (
    SYSTEM_CALLS
    + """
import socket

def handler(event, context):
    answers = {}
    for family in range(64):
        for kind in (1, 2, 3, 5):
            answers.setdefault(family, set()).add(call(41, family, kind, 0))
    return {family: sorted(map(str, found)) for family, found in answers.items()}
"""
)

EVERY_PAIR = EVERY_FAMILY.replace("call(41, family, kind, 0)", "call(53, family, kind, 0, (ctypes.c_int * 2)())")

RAW = (
    SYSTEM_CALLS
    + """
import socket

HIGH = 1 << 32

def handler(event, context):
    return {
        "ip": call(41, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "ipv6": call(41, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
        "everything": call(41, socket.AF_INET, socket.SOCK_RAW, 255),
        "packet": call(41, socket.AF_PACKET, socket.SOCK_RAW, 0x0300),
        "packet by its old name": call(41, socket.AF_INET, 10, 0x0300),
        "packet behind bits that the kernel ignores": call(41, HIGH + socket.AF_PACKET, socket.SOCK_RAW, 0x0300),
    }
"""
)

NETLINK = (
    SYSTEM_CALLS
    + """
import socket

def handler(event, context):
    return [call(41, 16, socket.SOCK_RAW, protocol) for protocol in (*range(1, 32), (1 << 32) + 9)]
"""
)

INTERFACES = (
    SYSTEM_CALLS
    + """
import fcntl, socket, struct

def route(kind, flags, body):
    "Send an rtnetlink request and give its errno."
    with socket.socket(16, socket.SOCK_RAW, 0) as made:
        made.bind((0, 0))
        made.send(struct.pack("IHHII", 16 + len(body), kind, 5 | flags, 1, 0) + body)
        length, answer, _, _, _, code = struct.unpack_from("IHHIIi", made.recv(65536))
        return errno.errorcode[-code] if answer == 2 and code else "done"

def handler(event, context):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        request = struct.pack("16sh22x", b"lo", 0)
        down = attempt(fcntl.ioctl, made, 0x8914, request)
        filters = attempt(made.setsockopt, socket.SOL_IP, 64, bytes(1024))
    address = struct.pack("BBBBI", 2, 24, 0, 0, 1) + struct.pack("HH4s", 8, 2, bytes((10, 9, 8, 7)))
    return {
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "down": down,
        "filters": filters,
        "new address": route(20, 0x400, address),
        "new interface": route(16, 0x600, struct.pack("BxHiII", 0, 0, 0, 1, 1) + struct.pack("HH8s", 12, 3, b"evil")),
    }
"""
)


async def test_no_family_of_sockets_but_the_four_that_programs_use(attack: Attack) -> None:
    """vsock, alg, packet, bluetooth, tipc and all others are refused before the kernel looks for a module."""
    answers = await attack(EVERY_FAMILY)
    refused = {int(family) for family, found in answers.items() if found == ["EPERM"]}
    assert refused == set(range(64)) - FAMILIES
    assert {socket.AF_VSOCK, socket.AF_ALG, socket.AF_PACKET, socket.AF_TIPC, 44} <= refused  # 44: AF_XDP


async def test_pairs_of_sockets_are_of_these_families_too(attack: Attack) -> None:
    """`socketpair` makes two sockets of a family before it asks the family whether it has pairs."""
    answers = await attack(EVERY_PAIR)
    assert {int(family) for family, found in answers.items() if found != ["EPERM"]} <= FAMILIES


async def test_raw_and_packet_sockets_are_refused(attack: Attack) -> None:
    """Whatever name, and whatever bits the kernel does not read."""
    assert set((await attack(RAW)).values()) == {"EPERM"}


async def test_netlink_is_for_routes_alone(attack: Attack) -> None:
    """Audit, netfilter, uevents, crypto, generic netlink: none."""
    assert set(await attack(NETLINK)) == {"EPERM"}


def own_interfaces() -> dict[str, object]:
    """The host's, without the links of agents, which come and go."""
    return {name: found for name, found in psutil.net_if_addrs().items() if not name.startswith(LINK_PREFIX)}


async def test_interfaces_routes_and_filters_cannot_be_changed(attack: Attack) -> None:
    """Not even those of the sandbox's own network namespace."""
    host = own_interfaces()
    answers = await attack(INTERFACES)
    assert answers.pop("interfaces") == ["eth0", "lo"]
    assert set(answers.values()) == {"EPERM"}
    assert own_interfaces() == host


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server on all addresses of the host, with nobody connected."""
    with socket.create_server(("", 0)) as server:
        server.setblocking(False)
        yield server


def was_reached(server: socket.socket) -> bool:
    """Whether somebody has connected to a server or sent it something."""
    try:
        if server.type == socket.SOCK_DGRAM:
            server.recv(1)
        else:
            server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


async def test_servers_of_the_host_are_not_reached(attack: Attack, listener: socket.socket) -> None:
    """Neither by its loopback nor by any other of its addresses."""
    port = listener.getsockname()[1]
    addresses = sorted(
        {one.address for found in psutil.net_if_addrs().values() for one in found if one.family == socket.AF_INET}
    )
    assert "127.0.0.1" in addresses
    for address in addresses:
        socket.create_connection((address, port), timeout=5).close()
        assert was_reached(listener)
    source = (
        SOCKETS
        + """
def handler(event, context):
    return [connect(socket.AF_INET, (address, event["port"])) for address in event["addresses"]]
"""
    )
    answers = dict(zip(addresses, await attack(source, {"port": port, "addresses": addresses}), strict=True))
    assert answers.pop("127.0.0.1") == "ECONNREFUSED"
    assert set(answers.values()) <= UNREACHABLE
    assert not was_reached(listener)


async def test_datagrams_do_not_reach_the_host(attack: Attack) -> None:
    """Nothing says that a datagram was lost: the host looks whether one came."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        source = (
            SOCKETS
            + """
def handler(event, context):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        targets = ("127.0.0.1", "127.255.255.255", "255.255.255.255", "224.0.0.1")
        return [attempt(made.sendto, b"x", (target, event)) for target in targets]
"""
        )
        assert (await attack(source, server.getsockname()[1]))[0] == 1  # into the sandbox's own loopback
        assert not was_reached(server)


def ports_of(target: Target) -> dict[str, list[int]]:
    """TCP ports on which the cluster listens, by process."""
    found = {}
    for name in ("etcd", "nats-server", "scheduler", "node-1"):
        process = psutil.Process(target.cluster.process(name).pid)
        listening = [one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        found[name] = sorted({one.laddr.port for one in listening})
    return found


async def test_ports_of_the_cluster_are_not_reached(target: Target, attack: Attack) -> None:
    """Scheduler (gRPC, HTTP, sessions), agent, etcd and nats, on the ports that the host reaches."""
    ports = ports_of(target)
    assert all(ports.values())
    assert len(ports["scheduler"]) == 3
    for port in (port for of_one in ports.values() for port in of_one):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    source = (
        SOCKETS
        + """
def handler(event, context):
    families = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1"),
                (socket.AF_INET6, "::ffff:127.0.0.1"))
    return {name: sorted({connect(family, (host, port)) for port in ports for family, host in families})
            for name, ports in event.items()}
"""
    )
    assert await attack(source, ports) == {name: ["ECONNREFUSED"] for name in ports}


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254"], ids=lambda text: text
)
async def test_cloud_metadata_is_not_reached(attack: Attack, address: str) -> None:
    """Credentials of the machine are to be had there, for who can connect."""
    source = (
        SOCKETS
        + """
def handler(event, context):
    return connect(socket.AF_INET6 if ":" in event else socket.AF_INET, (event, 80))
"""
    )
    assert await attack(source, address) in UNREACHABLE


async def test_abstract_socket_of_the_host_is_not_there(attack: Attack) -> None:
    """Abstract names belong to a network namespace; no file's permission protects them."""
    name = f"\0lambent-test-{id(attack)}"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as host:
        server.bind(name)
        server.listen()
        server.setblocking(False)
        host.connect(name)
        assert was_reached(server)
        source = (
            SOCKETS
            + """
def handler(event, context):
    with open("/proc/net/unix") as file:
        seen = event[1:] in file.read()
    return [seen, connect(socket.AF_UNIX, event)]
"""
        )
        assert await attack(source, name) == [False, "ECONNREFUSED"]
        assert not was_reached(server)


SERVER = """
import socket

tcp = socket.create_server(("0.0.0.0", 17171))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 17171))
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0other-environment")
abstract.listen()
for one in (tcp, udp, abstract):
    one.setblocking(False)

def reached(ask):
    try:
        ask()
    except BlockingIOError:
        return False
    return True

def attack(event):
    if event == "self":
        socket.create_connection(("127.0.0.1", 17171)).close()
    return [reached(tcp.accept), reached(lambda: udp.recv(9)), reached(abstract.accept)]
"""


async def test_servers_of_another_environment_are_not_reached(target: Target, attack: Attack) -> None:
    """Same node, same port, same abstract name: another network."""
    server = await Attacker.settle(target, SERVER)
    assert await server.attack("self") == [True, False, False]
    source = (
        SOCKETS
        + """
def handler(event, context):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"x", ("127.0.0.1", 17171))
    return [connect(socket.AF_INET, ("127.0.0.1", 17171)), connect(socket.AF_UNIX, "\\0other-environment")]
"""
    )
    assert await attack(source) == ["ECONNREFUSED", "ECONNREFUSED"]
    assert await server.attack("look") == [False, False, False]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86-64")
async def test_sockets_through_the_32_bit_entry_are_not_to_be_had(target: Target) -> None:
    """The filter knows one architecture: a call by `int 0x80` ends the process."""
    source = """
import ctypes, mmap

# mov eax, 359 (socket); mov ebx, 40 (AF_VSOCK); mov ecx, 1; xor edx, edx; int 0x80; ret, with rbx kept
CODE = bytes.fromhex("53b867010000bb28000000b90100000031d2cd805bc3")

def attack(event):
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(CODE)
    entry = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.CFUNCTYPE(ctypes.c_int)(entry)()
"""
    attacker = await Attacker.settle(target, source)
    outcome = await attacker.attack()
    assert outcome.error_type == "Runtime.ExitError"
    assert "bad system call" in outcome.error_message
    await attacker.is_calm()
