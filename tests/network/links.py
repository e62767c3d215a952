"""Waiting for interfaces to go, which the kernel takes down in the background."""

from __future__ import annotations

import errno
import socket

from lambent_node_agent.network.namespaces import entered

RTMGRP_LINK = 1  # linux/rtnetlink.h


class Links:
    """The interfaces of a namespace, watched from now on."""

    def __init__(self, namespace: int) -> None:
        self._namespace = namespace
        with entered(namespace):
            self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            self._events.bind((0, RTMGRP_LINK))
            self._events.settimeout(20)

    def names(self) -> set[str]:
        """Those that there are."""
        with entered(self._namespace):
            return {name for _index, name in socket.if_nameindex()}

    def wait_until(self, expected: set[str]) -> None:
        """Wait until there are these and no others; the kernel takes namespaces down in the background."""
        while self.names() != expected:
            try:
                self._events.recv(65536)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more has happened than is told: as good a reason to look
                    raise

    def close(self) -> None:
        """Watch no more."""
        self._events.close()
