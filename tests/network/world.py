"""A small internet on one machine: a host in a network namespace of its own, and beside it a world of every address.

      world ns  world0 ---- wan0  host ns (the agent's side)  lan0 ---- lan ns

The machine's own network is not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from lambent_node_agent.network import rtnetlink
from lambent_node_agent.network.namespaces import SYSCTLS, entered, make_namespace, own_namespace
from lambent_node_agent.network.nftables import Nftables
from lambent_runtime import linux

HOST_PUBLIC = IPv4Address("203.0.113.2")
HOST_LAN = IPv4Address("11.0.0.1")
NEIGHBOUR = IPv4Address("11.0.0.2")
"""In the host's LAN, which has public addresses."""
SERVER = "198.51.100.7"
"""One of the world's addresses; it has all that no one else has."""
PORT = 80
_WAN, _LAN = 5, 6
_IP_PKTINFO = 8  # linux/in.h
_EVERYWHERE = IPv4Network("0.0.0.0/0")


@dataclass
class World:
    """Namespaces, and servers in them that count who comes.

    Attributes:
        host: Namespace in which the agent runs.
        world: Namespace that has every address.
        lan: Namespace of the host's neighbour.
        seen: Connections and datagrams that arrived: where, and from whom.
    """

    host: int
    world: int
    lan: int
    seen: list[tuple[str, str]] = field(default_factory=list)

    def at(self, place: str) -> list[str]:
        """Who came to one of the places `world`, `host`, `lan`."""
        return [source for where, source in self.seen if where == place]

    def rules(self, namespace: int | None = None) -> str:
        """The rules of nftables in a namespace; without one, of the host's."""
        with Nftables(self.host if namespace is None else namespace) as nftables:
            return nftables.run("list ruleset")

    def links(self) -> list[str]:
        """Names of the host's interfaces."""
        with entered(self.host):
            return [name for _index, name in socket.if_nameindex()]


@contextlib.contextmanager
def make_world() -> Iterator[World]:
    """Make the namespaces and put the calling thread into the host's for the block."""
    with contextlib.ExitStack() as stack:
        before, world, lan, host = own_namespace(), make_namespace(), make_namespace(), make_namespace()
        for namespace in (before, world, lan, host):
            stack.callback(os.close, namespace)
        for namespace in (world, lan, host):  # a new one has the value that the machine itself has at the moment
            with entered(namespace):
                (SYSCTLS / "ipv4/ip_forward").write_text("0")
        linux.setns(host, linux.CLONE_NEWNET)
        stack.callback(linux.setns, before, linux.CLONE_NEWNET)
        with rtnetlink.RouteSocket() as routes:
            _link(routes, "wan0", _WAN, "world0", world, HOST_PUBLIC)
            _link(routes, "lan0", _LAN, "lan0", lan, HOST_LAN)
            routes.send(
                rtnetlink.new_route(_WAN, _EVERYWHERE),
                rtnetlink.new_route(_LAN, IPv4Network("11.0.0.0/24")),
            )
        with entered(world), rtnetlink.RouteSocket() as routes:
            routes.send(
                rtnetlink.set_up(_WAN),
                rtnetlink.new_address(_WAN, IPv4Address("203.0.113.1")),
                rtnetlink.new_route(_WAN, IPv4Network(HOST_PUBLIC)),
                # To see whether the host would route for others, and what of environments' addresses gets out.
                rtnetlink.new_route(_WAN, IPv4Network("11.0.0.0/24")),
                rtnetlink.new_route(_WAN, IPv4Network("198.18.0.0/15")),
                _local(rtnetlink.new_route(rtnetlink.LOOPBACK_INDEX, _EVERYWHERE)),
            )
        with entered(lan), rtnetlink.RouteSocket() as routes:
            routes.send(
                rtnetlink.set_up(_LAN),
                rtnetlink.new_address(_LAN, NEIGHBOUR),
                rtnetlink.new_route(_LAN, _EVERYWHERE),
            )
        yield World(host, world, lan)


def _link(
    routes: rtnetlink.RouteSocket, name: str, index: int, peer: str, namespace: int, address: IPv4Address
) -> None:
    pair = rtnetlink.new_pair(index, name, group=0, peer_index=index, peer_name=peer, peer_namespace=namespace)
    routes.send(pair, rtnetlink.new_address(index, address))


def _local(route: bytes) -> bytes:
    """Make of a route one whose addresses are all this namespace's own: scope and type of its `struct rtmsg`."""
    scope_host, type_local = 254, 2
    return route[:22] + bytes((scope_host, type_local)) + route[24:]


@contextlib.asynccontextmanager
async def served(world: World) -> AsyncIterator[World]:
    """Serve TCP and UDP on port 80 of every address of world, host and LAN: the answer names place and caller."""
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        for place, namespace in (("world", world.world), ("host", world.host), ("lan", world.lan)):
            with entered(namespace):
                listening = socket.create_server(("", PORT), backlog=2048)
                datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                datagrams.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
                datagrams.bind(("", PORT))
                datagrams.setblocking(False)

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: str = place) -> None:
                source = writer.get_extra_info("peername")[0]
                world.seen.append((place, source))
                writer.write(f"{place} {source}".encode())
                writer.close()

            server = await stack.enter_async_context(await asyncio.start_server(answer, sock=listening))
            stack.callback(server.close)
            loop.add_reader(datagrams, _answer_datagram, world, place, datagrams)
            stack.callback(datagrams.close)
            stack.callback(loop.remove_reader, datagrams)
        yield world


def _answer_datagram(world: World, place: str, datagrams: socket.socket) -> None:
    with contextlib.suppress(OSError):
        _data, control, _flags, source = datagrams.recvmsg(2048, 256)
        world.seen.append((place, source[0]))
        # From the address that was asked, which the kernel would not choose among so many.
        asked = next(data[8:12] for level, kind, data in control if kind == _IP_PKTINFO)
        info = struct.pack("=I4s4s", 0, asked, bytes(4))
        answer = f"{place} {source[0]}".encode()
        datagrams.sendmsg([answer], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, source)


def tracked(namespace: int) -> list[str]:
    """The connections that a namespace remembers."""
    with entered(namespace):
        return Path("/proc/thread-self/net/nf_conntrack").read_text().splitlines()
