"""Ports on the loopback address."""

from __future__ import annotations

import socket

from .errors import PortTakenError

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on now; somebody may before it is used."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def check_free(port: int, flag: str) -> None:
    """Look whether a port that the operator asked for can be had; 0 always can.

    Raises:
        PortTakenError: Another process listens on it, or the number is reserved.
    """
    with socket.socket() as probe:
        # A port in TIME_WAIT is free for a server; gRPC's SO_REUSEPORT would share even one that is in use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError as error:
            raise PortTakenError(
                f"port {port} on {LOOPBACK} is taken ({error.strerror})",
                help_=f"Name another by {flag}, or {flag} 0 for any free one.",
            ) from error
