"""Ports for servers that are told theirs."""

from __future__ import annotations

import socket

import pytest

from lambent_supervisor.ports import LOOPBACK, free_port


def test_a_free_port_is_never_one_of_an_outgoing_connection() -> None:
    """The kernel gives those away at any time, also while the server is down for a moment."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as limits:
        lowest, highest = map(int, limits.read().split())
    if lowest <= 10_000:
        pytest.skip(f"outgoing connections begin at port {lowest} here, and leave none to servers alone")
    assert not [port for port in (free_port() for _ in range(100)) if lowest <= port <= highest]


def test_a_free_port_can_be_listened_on() -> None:
    """One server each."""
    with (
        socket.create_server((LOOPBACK, first := free_port())),
        socket.create_server((LOOPBACK, second := free_port())),
    ):
        assert first != second
