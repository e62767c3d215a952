"""The resolver that environments see: a relay of DNS messages (RFC 1035) to the name servers of the host.

It listens in the router's namespace and asks from the host's, so that servers on the host's loopback work too. It looks
at no message but for its number; what a name server may be asked is for the host to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import structlog

from .errors import NetworkError
from .namespaces import entered
from .rules import RESOLVER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path
    from typing import Any, TypeAlias

    Ask: TypeAlias = Callable[[str, bytes], Awaitable[bytes]]

log = structlog.get_logger(__name__)

_PORT: Final = 53
_HEADER_BYTES: Final = 12
_LARGEST_MESSAGE: Final = 65_535
_LARGEST_QUERY: Final = 4_096
"""What clients that speak EDNS (RFC 6891) announce; a query of one name has some hundred bytes."""
_ANSWER_BIT: Final = 0x80
_SERVER_FAILURE: Final = bytes((0x80 | 0x01, 0x80 | 2))
"""Of a header, the flags: an answer, recursion wanted and to be had, no answer found."""

# Resolvers wait for 5 s before they ask again.
_ASK_TIMEOUT_S: Final = 2.0
_MAX_SERVERS: Final = 3  # as resolv.conf(5)
_IDLE_TIMEOUT_S: Final = 10.0
# Of one environment, and of all: what a name server that does not answer can make pile up.
_IN_FLIGHT_EACH: Final = 64
_IN_FLIGHT: Final = 1024
# Datagrams read in one turn of the event loop.
_AT_ONCE: Final = 16
_REREAD_S: Final = 1.0


class NameServers:
    """The host's name servers, as a file like `/etc/resolv.conf` names them; read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked_at = -_REREAD_S
        self._changed_ns = -1
        self._servers: tuple[str, ...] = ()

    def at(self, now: float) -> tuple[str, ...]:
        """Give their addresses, in order of preference; the file is looked at once a second at most."""
        if now - self._looked_at >= _REREAD_S:
            self._looked_at = now
            try:
                changed_ns = self._path.stat().st_mtime_ns
                if changed_ns != self._changed_ns:
                    self._servers = parse_servers(self._path.read_text(errors="replace"))
                    self._changed_ns = changed_ns
            except OSError as error:
                log.warning("name_servers_unknown", path=str(self._path), error=str(error))
        return self._servers


def parse_servers(text: str) -> tuple[str, ...]:
    """Read the name servers of a resolv.conf(5): the first three that are addresses, or the loopback where none is."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                found.append(str(ip_address(words[1])))
    return tuple(found[:_MAX_SERVERS]) or ("127.0.0.1",)


class NameRelay:
    """Answers the queries of environments.

    Args:
        resolv_conf: The host's, or one like it.
    """

    def __init__(self, resolv_conf: Path) -> None:
        self._servers = NameServers(resolv_conf)
        self._in_flight: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, namespace: int) -> None:
        """Listen in the router's namespace.

        Raises:
            NetworkError: The kernel refused.
        """
        self._loop = asyncio.get_running_loop()
        try:
            with entered(namespace):
                self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._datagrams.setblocking(False)
                self._datagrams.bind((RESOLVER, _PORT))
                listening = socket.create_server((RESOLVER, _PORT))
            self._loop.add_reader(self._datagrams.fileno(), self._read)
            self._server = await asyncio.start_server(
                self._serve_connection, sock=listening, limit=_LARGEST_MESSAGE + 2
            )
        except OSError as error:
            raise NetworkError(f"resolver of environments: {error}") from error

    async def close(self) -> None:
        """Answer nothing more."""
        self._loop.remove_reader(self._datagrams.fileno())
        self._datagrams.close()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                query, asker = self._datagrams.recvfrom(_LARGEST_QUERY + 1)
            except OSError:
                return  # none left; or an environment that is gone has refused an answer
            if _is_query(query):
                self._spawn(asker[0], self._answer_datagram(query, asker))

    def _spawn(self, asker: str, answering: Coroutine[Any, Any, None]) -> bool:
        """Do it; False when the environment, or all together, have too much in flight."""
        if self._in_flight[asker] >= _IN_FLIGHT_EACH or len(self._tasks) >= _IN_FLIGHT:
            answering.close()
            return False
        self._in_flight[asker] += 1
        task = self._loop.create_task(answering)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(asker, done))
        return True

    def _ended(self, asker: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._in_flight[asker] -= 1
        if not self._in_flight[asker]:
            del self._in_flight[asker]

    async def _answer_datagram(self, query: bytes, asker: tuple[str, int]) -> None:
        answer = await self._ask(query, _ask_by_datagram)
        with contextlib.suppress(OSError):  # its environment may have ended
            self._datagrams.sendto(answer, asker)

    def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._spawn(writer.get_extra_info("peername")[0], self._answer_connection(reader, writer)):
            writer.close()

    async def _answer_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the queries of a connection one after the other."""
        try:
            while True:
                async with asyncio.timeout(_IDLE_TIMEOUT_S):
                    query = await _read_message(reader)
                if not _is_query(query):
                    return
                answer = await self._ask(query, _ask_by_connection)
                writer.write(len(answer).to_bytes(2) + answer)
                async with asyncio.timeout(_IDLE_TIMEOUT_S):
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _ask(self, query: bytes, ask: Ask) -> bytes:
        for server in self._servers.at(self._loop.time()):
            try:
                async with asyncio.timeout(_ASK_TIMEOUT_S):
                    return await ask(server, query)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                continue
        return query[:2] + _SERVER_FAILURE + query[4:]


async def _ask_by_datagram(server: str, query: bytes) -> bytes:
    """Ask from a port of its own, which is hard to guess, and take nothing but the answer to this query."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.setblocking(False)
        made.connect((server, _PORT))
        made.send(query)
        while True:
            answer = await loop.sock_recv(made, _LARGEST_MESSAGE)
            if len(answer) >= _HEADER_BYTES and answer[:2] == query[:2] and answer[2] & _ANSWER_BIT:
                return answer


async def _ask_by_connection(server: str, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(server, _PORT)
    try:
        writer.write(len(query).to_bytes(2) + query)
        return await _read_message(reader)
    finally:
        writer.close()


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))


def _is_query(message: bytes) -> bool:
    return _HEADER_BYTES <= len(message) <= _LARGEST_QUERY and not message[2] & _ANSWER_BIT
