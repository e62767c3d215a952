"""Ports on the loopback address."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from .errors import PortTakenError

LOOPBACK = "127.0.0.1"

_OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""From which port to which the kernel gives outgoing connections theirs."""

_LOWEST_PORT = 10_000
"""Above the ports that well-known services and `lambent up` itself have."""

_PROBES = 32


def free_port() -> int:
    """A port that nobody has now, for a server that is told its port and may be started again on it.

    It is below those of outgoing connections: one of the kernel's own choice is soon given to the next that connects
    anywhere, and then the server finds it taken.
    """
    below = int(_OUTGOING_PORTS.read_text().split()[0])
    for _ in range(_PROBES if below > _LOWEST_PORT else 0):
        port = random.randrange(_LOWEST_PORT, below)  # noqa: S311 - no secret
        if _taken(port) is None:
            return port
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def check_free(port: int, flag: str) -> None:
    """Look whether a port that the operator asked for can be had; 0 always can.

    Raises:
        PortTakenError: Another process listens on it, or the number is reserved.
    """
    if (error := _taken(port)) is not None:
        raise PortTakenError(
            f"port {port} on {LOOPBACK} is taken ({error.strerror})",
            help_=f"Name another by {flag}, or {flag} 0 for any free one.",
        ) from error


def _taken(port: int) -> OSError | None:
    """Why nobody can listen on a port now; None when one can."""
    with socket.socket() as probe:
        # A port in TIME_WAIT is free for a server; gRPC's SO_REUSEPORT would share even one that is in use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError as error:
            return error
    return None
