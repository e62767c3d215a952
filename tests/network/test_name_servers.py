"""What is read of a resolv.conf(5)."""

from __future__ import annotations

import os
import socket
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lambent_node_agent.network.names import NameServers, parse_servers


def test_the_file_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    """And looked at once a second at most."""
    path = tmp_path / "resolv.conf"
    servers = NameServers(path)
    assert servers.at(0.0) == ()
    path.write_text("nameserver 192.0.2.53\n")
    assert servers.at(0.5) == ()
    assert servers.at(1.0) == ("192.0.2.53",)
    path.write_text("nameserver ::1\nnameserver 192.0.2.54\n")
    os.utime(path, ns=(0, 1))
    assert servers.at(2.5) == ("::1", "192.0.2.54")


@given(st.text(), st.lists(st.ip_addresses(), max_size=5))
def test_servers_are_addresses_whatever_the_file_says(noise: str, addresses: list[IPv4Address | IPv6Address]) -> None:
    """At most three, in order."""
    lines = [f"nameserver {address}" for address in addresses]
    expected = tuple(map(str, addresses[:3])) or ("127.0.0.1",)
    assert parse_servers("\n".join(["# nameserver 1.2.3.4", *lines])) == expected
    for server in parse_servers(noise):
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        socket.inet_pton(family, server.partition("%")[0])
