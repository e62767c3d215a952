"""The resolver that environments see: a relay of DNS messages (RFC 1035) to the name servers of the host.

It listens in the router's namespace and asks from the host's, so that servers on the host's loopback work too. It lets
standard queries through and nothing that would change a zone, which name servers may let the host do; what they may be
asked is for the host to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
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
_OPERATION: Final = 0x78
"""Of the same byte: 0 for a standard query; others are updates of zones, and notices of such."""
_SERVER_FAILURE: Final = bytes((0x80 | 0x01, 0x80 | 2))
"""Of a header, the flags: an answer, recursion wanted and to be had, no answer found."""

# Resolvers wait for 5 s before they ask again.
_ASK_TIMEOUT_S: Final = 2.0
_MAX_SERVERS: Final = 3  # as resolv.conf(5)
_IDLE_TIMEOUT_S: Final = 10.0
# What a name server that does not answer can make pile up of one environment, and of all before each has the least: a
# name's A and AAAA, so that those who ask much keep nobody from asking.
_IN_FLIGHT_EACH: Final = 64
_IN_FLIGHT_LEAST: Final = 2
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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}
        self._in_flight = 0

    async def open(self, namespace: int) -> None:
        """Listen in the router's namespace.

        Raises:
            NetworkError: The kernel refused.
        """
        loop = asyncio.get_running_loop()
        try:
            with entered(namespace):
                self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._datagrams.setblocking(False)
                self._datagrams.bind((RESOLVER, _PORT))
                listening = socket.create_server((RESOLVER, _PORT))
            self._server = await asyncio.start_server(
                self._serve_connection, sock=listening, limit=_LARGEST_MESSAGE + 2
            )
        except OSError as error:
            raise NetworkError(f"resolver of environments: {error}") from error
        loop.add_reader(self._datagrams.fileno(), self._read)
        self._loop = loop

    async def close(self) -> None:
        """Answer nothing more."""
        assert self._loop is not None
        self._loop.remove_reader(self._datagrams.fileno())
        self._loop = None
        self._datagrams.close()
        self._server.close()
        tasks = [task for asked in self._tasks.values() for task in asked]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self, asker: str) -> None:
        """Answer nothing that came from an address so far: the next environment that has it shall not hear it.

        From any thread. In force before anything that the event loop is given to do afterwards.
        """
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._forget, asker)

    def _forget(self, asker: str) -> None:
        if self._loop is not None:
            while self._read():
                continue
            for task in self._tasks.get(asker, ()):
                task.cancel()

    def _read(self) -> bool:
        """Take what was asked; True when there may be more."""
        for _ in range(_AT_ONCE):
            try:
                query, asker = self._datagrams.recvfrom(_LARGEST_QUERY + 1)
            except OSError:
                return False  # none left; or an environment that is gone has refused an answer
            if _is_query(query):
                self._spawn(asker[0], self._answer_datagram(query, asker))
        return True

    def _spawn(self, asker: str, answering: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Do it; None when the environment has too much in flight, for itself or where all together have."""
        allowed = _IN_FLIGHT_EACH if self._in_flight < _IN_FLIGHT else _IN_FLIGHT_LEAST
        if len(self._tasks.get(asker, ())) >= allowed:
            answering.close()
            return None
        task = asyncio.create_task(answering)
        self._in_flight += 1
        self._tasks.setdefault(asker, set()).add(task)
        task.add_done_callback(lambda done: self._ended(asker, done))
        return task

    def _ended(self, asker: str, task: asyncio.Task[None]) -> None:
        self._in_flight -= 1
        self._tasks[asker].discard(task)
        if not self._tasks[asker]:
            del self._tasks[asker]

    async def _answer_datagram(self, query: bytes, asker: tuple[str, int]) -> None:
        answer = await self._ask(query, _ask_by_datagram)
        with contextlib.suppress(OSError):  # its environment may have ended
            self._datagrams.sendto(answer, asker)

    def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._spawn(writer.get_extra_info("peername")[0], self._answer_connection(reader, writer))
        if task is None:
            writer.close()
        else:
            task.add_done_callback(lambda _done: writer.close())  # also of one that is cancelled before it begins

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

    async def _ask(self, query: bytes, ask: Ask) -> bytes:
        for server in self._servers.at(asyncio.get_running_loop().time()):
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
    return _HEADER_BYTES <= len(message) <= _LARGEST_QUERY and not message[2] & (_ANSWER_BIT | _OPERATION)
