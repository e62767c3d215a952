"""The rules of nftables that keep functions from where they must not be; pure.

Two namespaces have rules. In the router's, which all packets of environments come to first, it is decided by the group
of the interface that a packet comes from, so that giving an environment its network changes no rule. In the host's, the
router's one interface is kept from the host itself and gets the host's address.
"""

from __future__ import annotations

import sys
from ipaddress import IPv4Network, collapse_addresses
from typing import TYPE_CHECKING, Final

from .model import ALL_PORTS, AllowRule, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address

    from .model import NamedNetworks, NetworkChoice

NOWHERE: Final = 0
"""Group of interfaces whose packets are dropped: of sandboxes without a function, and of those with no network."""
UPLINK_GROUP: Final = 1
EGRESS_GROUP: Final = 2
FIRST_VPC_GROUP: Final = 3

RESOLVER: Final = "169.254.169.253"
"""Where environments ask for names, as in a VPC of AWS."""

LINK_PREFIX: Final = "lmb"
"""Of the names of the host's interfaces to routers."""
GUARD_TABLE: Final = "lambent_guard"
LINKS_TABLE: Final = "lambent_links"

NEVER: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this host
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's machines have theirs from there: certificates and settings
            "169.254.0.0/16",  # link-local, where clouds have their metadata
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
"""Where no function may connect to, whatever the operator says."""

PRIVATE: Final = tuple(
    map(
        IPv4Network,
        (
            "10.0.0.0/8",  # RFC 1918, as the next two
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",  # carriers (RFC 6598), overlays, metadata of some clouds
            "192.0.0.0/24",  # protocol assignments
            "198.18.0.0/15",  # benchmarking
        ),
    )
)
"""Where a function may connect to only when a subnet of the operator's says so."""

# AWS allows 1,024 descriptors in an environment, so as many connections at once; datagrams to ever new places are
# connections as well. One that has ended counts for as long as it is remembered, two minutes: hence a rate too.
_CONNECTIONS: Final = 1024
_NEW_CONNECTIONS_PER_S: Final = 200
_NEW_CONNECTIONS_BURST: Final = 2048
# Packets: fifty names a second, each with its A and its AAAA. The relay has the agent's event loop, where one costs it
# some 0.1 ms.
_QUERIES_PER_S: Final = 100
_QUERIES_BURST: Final = 200
_ALL_QUERIES_PER_S: Final = 1000

_REFUSE: Final = "reject with icmp admin-prohibited"


def router_rules(
    environments: IPv4Network, denied: Iterable[IPv4Network], neighbours: Iterable[IPv4Network], all_connections: int
) -> str:
    """Rules of the router's namespace.

    Args:
        environments: Addresses of environments.
        denied: What the operator and the cluster add to `NEVER`.
        neighbours: What the host adds to `PRIVATE`: the networks that it is in.
        all_connections: Most connections of all environments together.
    """
    count = environments.num_addresses
    return f"""
table ip lambent {{
    set forbidden {{ type ipv4_addr; flags interval; auto-merge; elements = {_set([*NEVER, environments, *denied])} }}
    set private {{ type ipv4_addr; flags interval; elements = {_set([*PRIVATE, *neighbours])} }}
    set connections {{ type ipv4_addr; flags dynamic; size {count}; }}
    set arrivals {{ type ipv4_addr; flags dynamic, timeout; timeout 1m; size {count}; }}
    set askers {{ type ipv4_addr; flags dynamic, timeout; timeout 1m; size {count}; }}

    # Before anything remembers the packet: who may send at all, and only from the address that leads back to it.
    chain untracked {{
        type filter hook prerouting priority raw; policy accept;
        iifgroup {NOWHERE} drop
        fib saddr . iif oif missing drop
    }}

    # The router itself offers names and nothing else.
    chain offered {{
        type filter hook input priority filter; policy drop;
        iifname lo accept
        iifgroup {UPLINK_GROUP} drop
        ip daddr != {RESOLVER} {_REFUSE}
        update @askers {{ ip saddr limit rate over {_QUERIES_PER_S}/second burst {_QUERIES_BURST} packets }} drop
        limit rate over {_ALL_QUERIES_PER_S}/second burst {_ALL_QUERIES_PER_S} packets drop
        meta l4proto {{ tcp, udp }} th dport 53 accept
        {_REFUSE}
    }}

    chain passing {{
        type filter hook forward priority filter; policy drop;
        iifgroup != {UPLINK_GROUP} oifgroup != {UPLINK_GROUP} {_REFUSE}
        oifgroup {NOWHERE} drop
        ct state established,related accept
        iifgroup {UPLINK_GROUP} drop
        ct state invalid drop
        ip daddr @forbidden {_REFUSE}
        meta l4proto != {{ tcp, udp, icmp }} {_REFUSE}
        update @arrivals {{ ip saddr limit rate over {_NEW_CONNECTIONS_PER_S}/second \
burst {_NEW_CONNECTIONS_BURST} packets }} drop
        add @connections {{ ip saddr ct count over {_CONNECTIONS} }} {_REFUSE}
        ct count over {all_connections} {_REFUSE}
        ct mark set @nh,96,32 comment "the source address: by it an environment's connections are forgotten"
        iifgroup vmap @networks
        {_REFUSE}
    }}

    chain egress {{
        ip daddr @private {_REFUSE}
        accept
    }}
    map networks {{ type devgroup : verdict; elements = {{ {EGRESS_GROUP} : jump egress }} }}

    chain translation {{
        type nat hook postrouting priority srcnat; policy accept;
        oifgroup {UPLINK_GROUP} masquerade
    }}
}}
"""  # noqa: S608 - this is no SQL


def mark_of(environment: IPv4Address) -> int:
    """Give the mark that `router_rules` put on the connections of an environment."""
    return int.from_bytes(environment.packed, sys.byteorder)


def vpc_rules(group: int, choice: NetworkChoice, named: NamedNetworks) -> str:
    """Rules that make a group of the router's interfaces the network of a choice, all of whose names there are."""
    chain = f"vpc_{group}"
    cidrs = _set(cidr for name in choice.subnet_ids for cidr in named.subnets[name])
    lines = [f"add chain ip lambent {chain}", f"add rule ip lambent {chain} ip daddr != {cidrs} {_REFUSE}"]
    lines += [
        f"add rule ip lambent {chain} ip daddr {_set(rule.cidrs)} {_protocol(rule)} accept"
        for name in choice.security_group_ids
        for rule in named.security_groups[name]
    ]
    lines.append(f"add element ip lambent networks {{ {group} : jump {chain} }}")
    return "\n".join(lines)


def host_rules(table: str, link: str, router: IPv4Address) -> str:
    """Rules of the host's namespace for one agent's link; the table ends with the agent.

    Args:
        table: Its name.
        link: The host's interface to the router.
        router: The router's address there, from which all environments' packets come.
    """
    return f"""
table ip {table} {{
    flags owner;

    chain arriving {{
        type filter hook prerouting priority raw; policy accept;
        iifname {link} ip saddr != {router} drop
    }}

    # What the host's own rules have redirected to itself all the same.
    chain offered {{
        type filter hook input priority filter - 5; policy accept;
        iifname {link} {_REFUSE}
    }}

    chain passing {{
        type filter hook forward priority filter - 5; policy accept;
        iifname {link} oifname "{LINK_PREFIX}*" {_REFUSE}
        iifname {link} accept
        oifname {link} ct state established,related accept
        oifname {link} drop
    }}

    chain translation {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {router} masquerade
    }}
}}
"""


def links_rules() -> str:
    """Rules that keep all routers from the host's own addresses. They stay when an agent is killed.

    The kernel takes its link away some milliseconds after its own rules, while its functions still run.
    """
    return f"""
table ip {LINKS_TABLE}
flush table ip {LINKS_TABLE}
table ip {LINKS_TABLE} {{
    # Before the host's own rules translate the destination, as those of containers do with ports of the host.
    chain arriving {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{LINK_PREFIX}*" fib daddr type != unicast {_REFUSE}
    }}
}}
"""


def guard_rules() -> str:
    """Rules that keep a host from routing for others once it forwards for us. They stay for as long as it does."""
    return f"""
table ip {GUARD_TABLE} {{
    chain passing {{
        type filter hook forward priority filter - 10; policy drop;
        iifname "{LINK_PREFIX}*" accept
        oifname "{LINK_PREFIX}*" ct state established,related accept
    }}
}}
"""


def _protocol(rule: AllowRule) -> str:
    if rule.protocol is Protocol.ALL:
        return ""
    if rule.protocol is Protocol.ICMP or rule.ports == ALL_PORTS:
        return f"meta l4proto {rule.protocol.value}"
    return f"{rule.protocol.value} dport {rule.ports.first}-{rule.ports.last}"


def _set(networks: Iterable[IPv4Network]) -> str:
    """Write networks as a set, whose members may not overlap."""
    return "{ " + ", ".join(map(str, collapse_addresses(networks))) + " }"
