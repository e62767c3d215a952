"""The few messages of rtnetlink(7) that are sent here: links, addresses and routes.

A message is bytes, made once and sent as often as needed; several go to the kernel in one system call.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, Self

from .errors import NetworkError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network
    from types import TracebackType

# linux/netlink.h, linux/rtnetlink.h
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 0x1
_NLM_F_ACK: Final = 0x4
_NLM_F_REPLACE: Final = 0x100
_NLM_F_EXCL: Final = 0x200
_NLM_F_CREATE: Final = 0x400
_NLA_F_NESTED: Final = 0x8000
_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_SETLINK: Final = 19
_RTM_NEWADDR: Final = 20
_RTM_NEWROUTE: Final = 24
_RT_TABLE_MAIN: Final = 254
_RTPROT_STATIC: Final = 4
_RT_SCOPE_UNIVERSE: Final = 0
_RT_SCOPE_LINK: Final = 253
_RTN_UNICAST: Final = 1
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5

# linux/if_link.h, linux/if.h, linux/if_addr.h, linux/veth.h
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_LINKINFO: Final = 18
_IFLA_GROUP: Final = 27
_IFLA_NET_NS_FD: Final = 28
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_VETH_INFO_PEER: Final = 1
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFF_UP: Final = 0x1
_IFF_NOARP: Final = 0x80

_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR: Final = struct.Struct("=i")
_RECEIVE_BYTES: Final = 65_536

ANY_INDEX: Final = 0
"""The kernel chooses."""
LOOPBACK_INDEX: Final = 1
"""Of `lo`, the first interface of every network namespace."""

# No ARP: both ends of a pair have this address, so that each frame is addressed to whom it reaches, and no table of
# neighbours, which all namespaces of the machine share the size of, can fill.
_LINK_ADDRESS: Final = bytes.fromhex("020000000001")


class RouteSocket:
    """A socket to the kernel's view of one network namespace: the one that the calling thread is in when it is made.

    Threads may share it; one waits for the other.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    def __enter__(self) -> Self:
        """Give the socket."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; nothing of what it did ends with that."""
        self._socket.close()

    def send(self, *messages: bytes) -> None:
        """Have the kernel act on messages in order, all in one system call; returns when it has.

        Raises:
            NetworkError: One was refused; those after it were tried all the same.
        """
        try:
            with self._turn:
                self._socket.send(b"".join(messages))
                refused = [number for number in self._acknowledgements(len(messages)) if number]
        except OSError as error:
            raise NetworkError(f"rtnetlink: {error}") from error
        if refused:
            kinds = ", ".join(str(_HEADER.unpack_from(message)[1]) for message in messages)
            raise NetworkError(f"rtnetlink messages of types {kinds}: {os.strerror(-refused[0])}")

    def _acknowledgements(self, count: int) -> list[int]:
        found: list[int] = []
        while len(found) < count:
            data = self._socket.recv(_RECEIVE_BYTES)
            offset = 0
            while offset < len(data):
                length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data, offset)
                if kind == _NLMSG_ERROR:
                    found.append(_ERROR.unpack_from(data, offset + _HEADER.size)[0])
                offset += _aligned(length)
        return found


def new_pair(index: int, name: str, *, group: int, peer_index: int, peer_name: str, peer_namespace: int) -> bytes:
    """Make a pair of virtual interfaces: one here, up, and one in another namespace, down.

    Args:
        index: Of the interface here; free, or `ANY_INDEX`.
        name: Of the interface here, at most 15 characters.
        group: Of the interface here; nftables knows it as `iifgroup`.
        peer_index: Of the other; free there.
        peer_name: Of the other.
        peer_namespace: Descriptor of the other's namespace.
    """
    peer = _LINK.pack(socket.AF_UNSPEC, 0, peer_index, _IFF_NOARP, _IFF_NOARP)
    peer += _attribute(_IFLA_IFNAME, peer_name.encode() + b"\0")
    peer += _attribute(_IFLA_ADDRESS, _LINK_ADDRESS)
    peer += _attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_namespace))
    kind = _attribute(_IFLA_INFO_KIND, b"veth")
    data = _attribute(_NLA_F_NESTED | _IFLA_INFO_DATA, _attribute(_NLA_F_NESTED | _VETH_INFO_PEER, peer))
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, _IFF_UP | _IFF_NOARP, _IFF_UP | _IFF_NOARP)
    body += _attribute(_IFLA_IFNAME, name.encode() + b"\0")
    body += _attribute(_IFLA_ADDRESS, _LINK_ADDRESS)
    body += _attribute(_IFLA_GROUP, struct.pack("=I", group))
    body += _attribute(_NLA_F_NESTED | _IFLA_LINKINFO, kind + data)
    return _message(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, body)


def set_up(index: int) -> bytes:
    """Raise an interface."""
    return _message(_RTM_SETLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP))


def set_down(index: int) -> bytes:
    """Lower an interface; its routes go."""
    return _message(_RTM_SETLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, _IFF_UP))


def set_group(index: int, group: int) -> bytes:
    """Put an interface into a group."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + _attribute(_IFLA_GROUP, struct.pack("=I", group))
    return _message(_RTM_SETLINK, 0, body)


def delete_link(index: int) -> bytes:
    """Delete an interface, and with it the other end of its pair."""
    return _message(_RTM_DELLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0))


def new_address(index: int, address: IPv4Address, *, peer: IPv4Address | None = None) -> bytes:
    """Give an interface an address of its own alone (/32); with `peer`, that one is reached over it."""
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, _RT_SCOPE_UNIVERSE, index)
    body += _attribute(_IFA_LOCAL, address.packed)
    body += _attribute(_IFA_ADDRESS, (peer or address).packed)
    return _message(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_EXCL, body)


def new_route(index: int, to: IPv4Network, *, gateway: IPv4Address | None = None) -> bytes:
    """Reach a network over an interface, in place of what reached it before."""
    scope = _RT_SCOPE_LINK if gateway is None else _RT_SCOPE_UNIVERSE
    body = struct.pack(
        "=BBBBBBBBI",
        socket.AF_INET, to.prefixlen, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, scope, _RTN_UNICAST, 0,
    )  # fmt: skip
    body += _attribute(_RTA_DST, to.network_address.packed) + _attribute(_RTA_OIF, struct.pack("=i", index))
    if gateway is not None:
        body += _attribute(_RTA_GATEWAY, gateway.packed)
    return _message(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_REPLACE, body)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    # The kernel answers in the order of the messages: they need no numbers.
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
