"""Orders and answers between the node agent, its zygotes and the reapers: one JSON object a SOCK_SEQPACKET message."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_MESSAGE_BYTES = 128 * 1024
"""An order to start a runtime holds the function's variables: at most 4 KiB as the caller wrote them (AWS Lambda
quotas) and a few platform ones; the rest is room."""
MAX_DESCRIPTORS = 16
"""A fork order carries a control socket, the slot's mounts and a descriptor for each cgroup hierarchy."""


def pack(message: dict[str, object]) -> bytes:
    """Return a message as bytes.

    Raises:
        ValueError: It is over `MAX_MESSAGE_BYTES`.
    """
    data = json.dumps(message).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"message of {len(data)} bytes, more than {MAX_MESSAGE_BYTES}")
    return data


def unpack(data: bytes) -> dict[str, object]:
    """Return the message in `data`.

    Raises:
        ValueError: It is not a JSON object.
    """
    try:
        message = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - for the caller it is a bad value like any other bad JSON
    return message


def send(connection: socket.socket, message: dict[str, object], descriptors: Sequence[int] = ()) -> None:
    """Send one message with descriptors attached.

    Raises:
        OSError: The peer is gone, or the socket is nonblocking and full.
    """
    data = pack(message)
    if descriptors:
        socket.send_fds(connection, [data], descriptors)
    else:
        connection.send(data)


def receive(connection: socket.SocketType) -> tuple[dict[str, object] | None, list[int]]:
    """Receive one message and its descriptors; (None, []) when the peer has closed.

    Raises:
        OSError: Nothing is there on a nonblocking socket.
        ValueError: The message is not a JSON object.
    """
    data, descriptors, _flags, _address = socket.recv_fds(
        cast("socket.socket", connection), MAX_MESSAGE_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    if not data:
        return None, descriptors
    return unpack(data), descriptors
