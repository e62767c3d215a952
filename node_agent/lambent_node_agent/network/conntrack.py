"""Forgetting of tracked connections over nfnetlink."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Final, Self

from .errors import NetworkError

if TYPE_CHECKING:
    from types import TracebackType

# linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM_CONNTRACK: Final = 1
_DELETE: Final = 2
_MARK: Final = 8
_MARK_MASK: Final = 21
_REQUEST_WITH_ANSWER: Final = 0x1 | 0x4
_HEADER: Final = struct.Struct("=IHHII")
_FAMILY: Final = struct.Struct("!BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ALL_BITS: Final = 0xFFFF_FFFF


class ConnectionTable:
    """The connections that are tracked in one network namespace: the one that the thread is in when it is made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)

    def __enter__(self) -> Self:
        """Give it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self._socket.close()

    def forget(self, mark: int) -> None:
        """Forget all connections that bear a mark.

        Raises:
            NetworkError: The kernel refused.
        """
        attributes = b"".join(
            _ATTRIBUTE.pack(_ATTRIBUTE.size + 4, kind) + struct.pack("!I", value)
            for kind, value in ((_MARK, mark), (_MARK_MASK, _ALL_BITS))
        )
        body = _FAMILY.pack(socket.AF_INET, 0, 0) + attributes
        kind = _SUBSYSTEM_CONNTRACK << 8 | _DELETE
        try:
            self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_WITH_ANSWER, 0, 0) + body)
            answer = self._socket.recv(4096)
        except OSError as error:
            raise NetworkError(f"conntrack: {error}") from error
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if number:
            raise NetworkError(f"forgetting of connections: {os.strerror(number)}")
