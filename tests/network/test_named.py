"""The operator's file is read as it is meant, and what has no meaning is named."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.errors import InvalidParameterError
from lambent.v1 import function_pb2, node_pb2
from lambent_node_agent.environment.network_choice import network_choice
from lambent_node_agent.network import Mode, NetworkChoice, parse_networks
from lambent_node_agent.network.model import ALL_PORTS, AllowRule, PortRange, Protocol
from lambent_node_agent.network.rules import NEVER, PRIVATE, mark_of, router_rules, vpc_rules
from lambent_node_agent.network_settings import network_labels, read_network_settings

RULE = "[security_groups.sg-a]\nallow = [{{ {} }}]"


def test_a_file_is_read() -> None:
    """Protocols and ports are optional, as on AWS."""
    named = parse_networks(
        """
[subnets.subnet-a]
cidrs = ["10.0.0.0/8", "192.0.2.1"]
[security_groups.sg-B1]
allow = [
    { protocol = "tcp", ports = "443", cidrs = ["10.1.0.0/16"] },
    { protocol = "udp", ports = "1000-2000", cidrs = ["10.1.0.0/16"] },
    { cidrs = ["10.2.0.0/16"] },
]
"""
    )
    assert named.subnets["subnet-a"] == (IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.1/32"))
    ten = (IPv4Network("10.1.0.0/16"),)
    assert named.security_groups["sg-B1"] == (
        AllowRule(Protocol.TCP, PortRange(443, 443), ten),
        AllowRule(Protocol.UDP, PortRange(1000, 2000), ten),
        AllowRule(Protocol.ALL, ALL_PORTS, (IPv4Network("10.2.0.0/16"),)),
    )
    assert network_labels(named) == {"network:sg-B1": "", "network:subnet-a": ""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("subnets = 1", "subnets must be a table"),
        ("[subnet.subnet-a]", "'subnet' is unknown; known are security_groups, subnets"),
        ("[subnets.lan]\ncidrs = ['10.0.0.0/8']", r"subnets.lan: a name must match subnet-\[0-9a-z\]\+"),
        ("[subnets.subnet-a]", "cidrs must be a list of networks"),
        ("[subnets.subnet-a]\ncidrs = ['10.0.0.1/8']", "'10.0.0.1/8' is no IPv4 network: .* has host bits set"),
        ("[subnets.subnet-a]\ncidrs = ['fd00::/8']", "'fd00::/8' is no IPv4 network"),
        (RULE.format('protocol = "sctp", cidrs = ["10.0.0.0/8"]'), "protocol 'sctp' is none of 'tcp'"),
        (RULE.format('protocol = "icmp", ports = "1", cidrs = ["10.0.0.0/8"]'), "only rules for tcp and udp have"),
        (RULE.format('protocol = "tcp", ports = "9-1", cidrs = ["10.0.0.0/8"]'), "'9-1' is neither a port nor"),
        (RULE.format('protocol = "tcp", ports = "65536", cidrs = ["10.0.0.0/8"]'), "'65536' is neither a port nor"),
        (RULE.format('protocol = "tcp", port = "1", cidrs = ["10.0.0.0/8"]'), r"allow\[0\]: 'port' is unknown"),
        ("[", "this is no TOML"),
    ],
)
def test_what_has_no_meaning_is_named(text: str, said: str) -> None:
    """With its place in the file."""
    with pytest.raises(InvalidParameterError, match=said):
        parse_networks(text)


@given(st.text(alphabet="[]subnet-acidr_gpo=\"'10./8\n{},", max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Never with another error."""
    try:
        named = parse_networks(text)
    except InvalidParameterError:
        return
    assert set(network_labels(named)) == {f"network:{name}" for name in named.names}


def test_the_stores_and_what_the_operator_denies_are_denied() -> None:
    """Whatever network a function has."""
    settings = read_network_settings(
        addresses="10.99.0.0/16",
        denied="192.0.2.0/24,198.51.100.1",
        networks=None,
        stores=["http://127.0.0.1:2379", "nats://localhost:4222"],
    )
    expected = ("192.0.2.0/24", "198.51.100.1/32", "127.0.0.1/32", "127.0.0.1/32")
    assert settings.denied == tuple(map(IPv4Network, expected))
    assert settings.addresses == IPv4Network("10.99.0.0/16")


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"denied": "nowhere"}, "--network-deny: 'nowhere' is no IPv4 network"),
        ({"addresses": "10.0.0.0/33"}, "--network-range: '10.0.0.0/33' is no IPv4 network"),
        ({"networks": Path("/nonexistent/networks.toml")}, "--networks /nonexistent/networks.toml: .* No such file"),
        ({"stores": ["http://no.such.name.invalid:1"]}, "no.such.name.invalid leads nowhere"),
    ],
)
def test_a_bad_flag_names_itself(given_: dict[str, object], said: str) -> None:
    """Before anything is started."""
    values: dict[str, object] = {"addresses": None, "denied": "", "networks": None, "stores": []}
    with pytest.raises(InvalidParameterError, match=said):
        read_network_settings(**(values | given_))  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize(
    ("order", "chosen"),
    [
        (node_pb2.StartEnvironment(), NetworkChoice(Mode.EGRESS)),
        (node_pb2.StartEnvironment(network_mode=function_pb2.NETWORK_MODE_NONE), NetworkChoice(Mode.NONE)),
        (node_pb2.StartEnvironment(network_mode=function_pb2.NETWORK_MODE_EGRESS), NetworkChoice(Mode.EGRESS)),
        (
            node_pb2.StartEnvironment(
                vpc_config=function_pb2.VpcConfig(subnet_ids=["subnet-a"], security_group_ids=["sg-a"])
            ),
            NetworkChoice(Mode.VPC, ("subnet-a",), ("sg-a",)),
        ),
    ],
)
def test_an_order_says_which_network(order: node_pb2.StartEnvironment, chosen: NetworkChoice) -> None:
    """An order of a scheduler that knows of no networks means what is the default."""
    assert network_choice(order) == chosen


networks = st.builds(
    lambda address, prefix: IPv4Network((address, prefix), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)


@given(st.lists(networks, max_size=6), st.lists(networks, max_size=6))
def test_the_rules_hold_everything_denied(denied: list[IPv4Network], neighbours: list[IPv4Network]) -> None:
    """Whatever overlaps: the sets of the rules are the same addresses, each once."""
    text = router_rules(IPv4Network("198.18.0.0/20"), denied, neighbours, 1000)
    for name, members in (("forbidden", [*NEVER, *denied]), ("private", [*PRIVATE, *neighbours])):
        line = next(line for line in text.splitlines() if f"set {name} " in line)
        written = [IPv4Network(one.strip()) for one in line.rpartition("{")[2].partition("}")[0].split(",")]
        assert all(any(member.subnet_of(one) for one in written) for member in members)
        assert not any(one.overlaps(other) for one in written for other in written if one is not other)


def test_the_mark_of_an_address_is_what_the_kernel_makes_of_it() -> None:
    """The kernel copies the four bytes into a number of its own order."""
    mark = mark_of(IPv4Network("198.18.0.5").network_address)
    assert mark.to_bytes(4, "little") == bytes((198, 18, 0, 5)) or mark.to_bytes(4) == bytes((198, 18, 0, 5))


def test_rules_of_a_network_name_it_last() -> None:
    """Packets of its group come to a chain that is whole."""
    named = parse_networks(
        '[subnets.subnet-a]\ncidrs=["10.0.0.0/8"]\n'
        '[security_groups.sg-a]\nallow=[{protocol="icmp", cidrs=["10.0.0.0/8"]}]'
    )
    lines = vpc_rules(7, NetworkChoice(Mode.VPC, ("subnet-a",), ("sg-a",)), named).splitlines()
    assert lines[0] == "add chain ip lambent vpc_7"
    assert lines[-1] == "add element ip lambent networks { 7 : jump vpc_7 }"
    assert any("meta l4proto icmp accept" in line for line in lines)
