"""What a function may ask of the network, and what an operator says there is; pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class Mode(enum.Enum):
    """Where a function's connections may go."""

    NONE = "none"  # loopback only
    EGRESS = "egress"  # the public internet
    VPC = "vpc"  # what subnets and security groups say


@dataclass(frozen=True, slots=True)
class NetworkChoice:
    """The network of one function. Hashable: functions that choose alike share their rules.

    Attributes:
        mode: Where connections may go.
        subnet_ids: Names of the operator's; for `VPC` alone.
        security_group_ids: Names of the operator's; for `VPC` alone.
    """

    mode: Mode
    subnet_ids: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()


NO_NETWORK: Final = NetworkChoice(Mode.NONE)
EGRESS: Final = NetworkChoice(Mode.EGRESS)


class Protocol(enum.Enum):
    """What an allow rule lets through."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    ALL = "-1"  # as on AWS


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports from `first` to `last`, both included; each within [0, 65535]."""

    first: int
    last: int


ALL_PORTS: Final = PortRange(0, 65_535)


@dataclass(frozen=True, slots=True)
class AllowRule:
    """What a security group lets functions connect to.

    Attributes:
        protocol: Of the connection.
        ports: Of the other side; `ALL_PORTS` for protocols without ports.
        cidrs: Addresses of the other side.
    """

    protocol: Protocol
    ports: PortRange
    cidrs: tuple[IPv4Network, ...]


@dataclass(frozen=True, slots=True)
class NamedNetworks:
    """What the operator offers to functions with a VpcConfig.

    Attributes:
        subnets: For each name, the addresses that are reached through it.
        security_groups: For each name, what it lets through.
    """

    subnets: Mapping[str, tuple[IPv4Network, ...]] = field(default_factory=lambda: MappingProxyType({}))
    security_groups: Mapping[str, tuple[AllowRule, ...]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def names(self) -> frozenset[str]:
        """All names that a function may use here."""
        return frozenset(self.subnets) | frozenset(self.security_groups)

    def missing(self, choice: NetworkChoice) -> tuple[str, ...]:
        """Names that a function uses and that are not there, sorted."""
        return tuple(sorted({*choice.subnet_ids, *choice.security_group_ids} - self.names))


DEFAULT_ADDRESSES: Final = IPv4Network("198.18.0.0/15")
"""For benchmarking of networks (RFC 2544): routed nowhere."""


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """What an operator may say about the network of functions.

    Attributes:
        addresses: Environments have theirs from the first half, which no one outside of this agent sees; agents have
            one each from the second. Nothing else that this machine speaks to may be in it.
        denied: Where no function may connect to, whatever its network.
        named: Subnets and security groups.
        resolv_conf: Names the name servers that the functions' queries go to.
    """

    addresses: IPv4Network = DEFAULT_ADDRESSES
    denied: tuple[IPv4Network, ...] = ()
    named: NamedNetworks = field(default_factory=NamedNetworks)
    resolv_conf: Path = Path("/etc/resolv.conf")
