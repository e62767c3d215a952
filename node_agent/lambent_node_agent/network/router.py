"""The network of one agent's environments: a router in a namespace of its own, between them and the host.

        environment          router                    host
      +--------------+    +-----------------+    +------------------+
      | lo           |    | 169.254.169.253 |    |                  |
      | eth0 --------+----+- e7   rules     |    |                  |
      +--------------+    |                 |    |                  |
      | lo           |    |          uplink-+----+- lmb0  rules     |
      | eth0 --------+----+- e8             |    |          eth0 ---+---- world
      +--------------+    +-----------------+    +------------------+

All of it goes with the agent, however that ends: the router's namespace is held by descriptor alone, and with it go
its interfaces and their other ends; the host's rules belong to a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
import threading
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import rtnetlink
from .conntrack import ConnectionTable
from .errors import NetworkError
from .forwarding import start_forwarding, stop_forwarding
from .model import Mode
from .names import NameRelay
from .namespaces import SYSCTLS, entered, make_namespace, own_namespace
from .nftables import Nftables
from .rules import (
    EGRESS_GROUP,
    FIRST_VPC_GROUP,
    LINK_PREFIX,
    NOWHERE,
    RESOLVER,
    UPLINK_GROUP,
    host_rules,
    mark_of,
    router_rules,
    vpc_rules,
)

if TYPE_CHECKING:
    from .model import NetworkChoice, NetworkSettings

_EVERYWHERE: Final = IPv4Network("0.0.0.0/0")
_INSIDE_NAME: Final = "eth0"
_INSIDE_INDEX: Final = 2
_UPLINK_NAME: Final = "uplink"
_UPLINK_INDEX: Final = 2
# Above the uplink's, and never used twice, so that the interface of a namespace that is just going is nobody else's.
_FIRST_INDEX: Final = 16

_ENVIRONMENTS_PREFIX: Final = 20
"""4,096 addresses: one for each UID of an agent."""
_SMALLEST_PREFIX: Final = 19
"""A half for environments, and one in which 256 agents have two each."""
_MAX_VPC_GROUPS: Final = 4096
"""Combinations of subnets and security groups, each a chain of rules that stays: more than a node has functions for."""


class Attachment:
    """A network namespace, and its one link to the router, for one environment.

    Attributes:
        namespace: Descriptor of the namespace.
    """

    def __init__(self, router: Router, namespace: int, index: int, address: IPv4Address) -> None:
        self.namespace = namespace
        self._router = router
        self._index = index
        self._address = address

    async def connect(self, choice: NetworkChoice) -> None:
        """Give the namespace a network; before, no packet leaves it. One message to the kernel as a rule.

        Raises:
            NetworkError: The kernel refused, or this node has no subnet or security group of such a name.
        """
        if choice.mode is Mode.NONE:
            with entered(self.namespace), rtnetlink.RouteSocket() as inside:
                inside.send(rtnetlink.set_down(_INSIDE_INDEX))
        else:
            await self._router.admit(self._index, choice)

    def close(self) -> None:
        """Cut the namespace off and forget its connections; it goes with its last process.

        From any thread; may be called again, when it has failed or not.

        Raises:
            NetworkError: The kernel refused.
        """
        if self.namespace >= 0:
            self._router.dismiss(self._index, self._address)
            os.close(self.namespace)
            self.namespace = -1


class Router:
    """The router of one agent.

    Args:
        number: Of the agent, on this machine: no other living one has it.
        settings: What the operator says.
        lock_dir: Where the agents of this machine agree.

    Raises:
        NetworkError: The range of addresses is too small.
    """

    def __init__(self, number: int, settings: NetworkSettings, lock_dir: Path) -> None:
        if settings.addresses.prefixlen > _SMALLEST_PREFIX:
            raise NetworkError(
                f"the range {settings.addresses} of addresses is too small: /{_SMALLEST_PREFIX} is the smallest"
            )
        environments, agents = settings.addresses.subnets()
        self._environments = IPv4Network((environments.network_address, _ENVIRONMENTS_PREFIX))
        self._host_address = agents.network_address + 2 * number
        self._router_address = self._host_address + 1
        self._link = f"{LINK_PREFIX}{number}"
        self._table = f"lambent_{number}"
        self._named = settings.named
        self._denied = (*settings.denied, settings.addresses)
        self._names = NameRelay(settings.resolv_conf)
        self._lock_dir = lock_dir
        self._indexes = itertools.count(_FIRST_INDEX)
        self._groups: dict[NetworkChoice, int] = {}
        self._making_group = threading.Lock()
        self._resources = contextlib.ExitStack()

    def open(self) -> None:
        """Make the router, and its link to the namespace of the calling thread.

        Raises:
            NetworkError: The machine cannot do what is needed, or the kernel refused; nothing is left.
        """
        with self._resources:
            try:
                self._make_namespace()
                host = self._open_host_rules()
                # Before the link: the table of a living agent of this number refuses this one, and keeps its link.
                host.run(host_rules(self._table, self._link, self._router_address))
                self._link_to_host()
                rules = router_rules(self._environments, self._denied, neighbours(), _half_of_all_connections())
                self._rules.run(rules)
                start_forwarding(host, self._lock_dir)
            except OSError as error:
                raise NetworkError(f"network of functions: {error}") from error
            self._resources = self._resources.pop_all()

    async def serve_names(self) -> None:
        """Answer what environments ask the resolver, until `stop_names`.

        Raises:
            NetworkError: The kernel refused.
        """
        await self._names.open(self._namespace)

    async def stop_names(self) -> None:
        """Answer nothing more."""
        await self._names.close()

    def close(self) -> None:
        """Take everything off the machine.

        Raises:
            NetworkError: The kernel refused.
        """
        self._resources.close()

    def attach(self, position: int) -> Attachment:
        """Make a network namespace with a link that leads nowhere yet. May be called from any thread.

        Args:
            position: Of the environment, below `ENVIRONMENTS_PER_AGENT`; whoever had it before has been closed.

        Raises:
            NetworkError: The kernel refused.
        """
        index, address = next(self._indexes), self._environments[position]
        namespace = make_namespace()
        try:
            self._background.send(
                rtnetlink.new_pair(
                    index,
                    f"e{index}",
                    group=NOWHERE,
                    peer_index=_INSIDE_INDEX,
                    peer_name=_INSIDE_NAME,
                    peer_namespace=namespace,
                ),
                rtnetlink.new_route(index, IPv4Network(address)),
            )
            with entered(namespace), rtnetlink.RouteSocket() as inside:
                inside.send(
                    rtnetlink.set_up(_INSIDE_INDEX),
                    rtnetlink.new_address(_INSIDE_INDEX, address),
                    rtnetlink.new_route(_INSIDE_INDEX, _EVERYWHERE),
                )
        except BaseException:
            os.close(namespace)
            raise
        return Attachment(self, namespace, index, address)

    async def admit(self, index: int, choice: NetworkChoice) -> None:
        """Let the packets of an interface go where a choice says. Raises as `Attachment.connect`."""
        group = EGRESS_GROUP if choice.mode is Mode.EGRESS else self._groups.get(choice)
        if group is None:
            group = await asyncio.to_thread(self._group_of, choice)
        self._on_path.send(rtnetlink.set_group(index, group))

    def dismiss(self, index: int, address: IPv4Address) -> None:
        """Let no more packets of an interface pass, and forget what its address was connected to.

        Raises:
            NetworkError: The kernel refused.
        """
        self._background.send(rtnetlink.set_group(index, NOWHERE))
        self._connections.forget(mark_of(address))
        self._names.forget(str(address))

    def _group_of(self, choice: NetworkChoice) -> int:
        with self._making_group:  # held by the thread, which goes on when whoever waits for it is cancelled
            if choice in self._groups:
                return self._groups[choice]
            if missing := self._named.missing(choice):
                raise NetworkError(f"this node has no subnet or security group {', '.join(missing)}")
            if len(self._groups) == _MAX_VPC_GROUPS:
                raise NetworkError(f"this node has {_MAX_VPC_GROUPS} combinations of subnets and security groups")
            group = FIRST_VPC_GROUP + len(self._groups)
            self._rules.run(vpc_rules(group, choice, self._named))
            self._groups[choice] = group
            return group

    def _make_namespace(self) -> None:
        self._namespace = make_namespace()
        self._resources.callback(os.close, self._namespace)
        with entered(self._namespace):
            (SYSCTLS / "ipv4/ip_forward").write_text("1")
            # Each refused connection is told so, and not one a second: else functions wait for a time-out.
            (SYSCTLS / "ipv4/icmp_ratelimit").write_text("0")
            # Two, so that a cold start does not wait for what others have in the making.
            self._on_path = self._resources.enter_context(rtnetlink.RouteSocket())
            self._background = self._resources.enter_context(rtnetlink.RouteSocket())
            self._connections = self._resources.enter_context(ConnectionTable())
        self._rules = self._resources.enter_context(Nftables(self._namespace))
        self._background.send(rtnetlink.new_address(rtnetlink.LOOPBACK_INDEX, IPv4Address(RESOLVER)))

    def _open_host_rules(self) -> Nftables:
        namespace = own_namespace()
        self._resources.callback(os.close, namespace)
        rules = self._resources.enter_context(Nftables(namespace))
        # Before the link is made, so that it is taken back after the link is gone.
        self._resources.callback(stop_forwarding, rules, self._lock_dir)
        return rules

    def _link_to_host(self) -> None:
        host = self._resources.enter_context(rtnetlink.RouteSocket())
        # One of this name belongs to an agent that was killed a moment ago; its namespace is just going.
        with contextlib.suppress(OSError):
            host.send(rtnetlink.delete_link(socket.if_nametoindex(self._link)))
        host.send(
            rtnetlink.new_pair(
                rtnetlink.ANY_INDEX,
                self._link,
                group=NOWHERE,
                peer_index=_UPLINK_INDEX,
                peer_name=_UPLINK_NAME,
                peer_namespace=self._namespace,
            )
        )
        index = socket.if_nametoindex(self._link)
        self._resources.callback(host.send, rtnetlink.delete_link(index))
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            (SYSCTLS / f"ipv6/conf/{self._link}/disable_ipv6").write_text("1")
        host.send(rtnetlink.new_address(index, self._host_address, peer=self._router_address))
        self._background.send(
            rtnetlink.set_group(_UPLINK_INDEX, UPLINK_GROUP),
            rtnetlink.set_up(_UPLINK_INDEX),
            rtnetlink.new_address(_UPLINK_INDEX, self._router_address, peer=self._host_address),
            rtnetlink.new_route(_UPLINK_INDEX, _EVERYWHERE, gateway=self._host_address),
        )


def neighbours() -> list[IPv4Network]:
    """Give the networks that the calling thread's namespace reaches without a gateway, whatever their addresses."""
    lines = Path("/proc/thread-self/net/route").read_text().splitlines()[1:]
    found = []
    for _name, destination, gateway, _flags, _count, _use, _metric, mask, *_rest in map(str.split, lines):
        if int(gateway, 16) == 0 and int(mask, 16):
            found.append(IPv4Network((_address(destination), str(_address(mask)))))
    return found


def _address(text: str) -> IPv4Address:
    """Read an address as procfs writes it: the four bytes as a number of this machine, in hexadecimal."""
    return IPv4Address(int(text, 16).to_bytes(4, sys.byteorder))


def _half_of_all_connections() -> int:
    """The host's table has an entry for each of ours: half of it stays the host's."""
    return int((SYSCTLS / "netfilter/nf_conntrack_max").read_text()) // 2
