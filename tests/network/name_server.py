"""A name server that knows one address, and answers `long.*` over TCP alone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from lambent_node_agent.network.namespaces import entered

_TRUNCATED = 0x02


@dataclass
class NameServer:
    """What it is asked.

    Attributes:
        answer: The address that every name has.
        asked: Names, each with the protocol.
        silent: True to answer no datagram.
    """

    answer: str
    silent: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)

    def reply(self, query: bytes, protocol: str) -> bytes:
        """Answer a query of type A with the address, and any other with nothing."""
        name, end = _read_name(query)
        self.asked.append((protocol, name))
        is_address = query[end : end + 2] == b"\0\1"
        truncated = protocol == "udp" and name.startswith("long.")
        records = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(self.answer)
        has_answer = is_address and not truncated
        flags = bytes((0x81 | (_TRUNCATED if truncated else 0), 0x80))
        head = query[:2] + flags + b"\0\1" + (b"\0\1" if has_answer else b"\0\0") + b"\0\0\0\0"
        return head + query[12 : end + 4] + (records if has_answer else b"")


def _read_name(query: bytes) -> tuple[str, int]:
    labels, position = [], 12
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode())
        position += 1 + length
    return ".".join(labels), position + 1


@contextlib.asynccontextmanager
async def name_server(namespace: int, address: str, answer: str) -> AsyncIterator[NameServer]:
    """Serve names at an address of a namespace."""
    loop = asyncio.get_running_loop()
    server = NameServer(answer)
    with entered(namespace):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind((address, 53))
        datagrams.setblocking(False)
        listening = socket.create_server((address, 53))

    def read() -> None:
        query, asker = datagrams.recvfrom(4096)
        reply = server.reply(query, "udp")
        if not server.silent:
            datagrams.sendto(reply, asker)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                answer = server.reply(await reader.readexactly(int.from_bytes(await reader.readexactly(2))), "tcp")
                writer.write(len(answer).to_bytes(2) + answer)
        writer.close()

    loop.add_reader(datagrams, read)
    try:
        async with await asyncio.start_server(serve, sock=listening):
            yield server
    finally:
        loop.remove_reader(datagrams)
        datagrams.close()
