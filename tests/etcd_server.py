"""A real etcd for tests: free ports, its own directory, gone when the block ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lambent_common.credentials import Credentials
from lambent_common.etcd import EtcdClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_READY = b"ready to serve client requests"


@dataclass
class EtcdServer:
    """A running server.

    Attributes:
        endpoints: URLs for clients.
        credentials: What a client needs: nothing, here.
    """

    directory: Path
    client_port: int
    peer_port: int
    process: asyncio.subprocess.Process | None = None

    @property
    def endpoints(self) -> list[str]:
        """URLs of the server."""
        return [f"http://127.0.0.1:{self.client_port}"]

    @property
    def credentials(self) -> Credentials:
        """None are needed."""
        return Credentials()

    async def start(self) -> None:
        """Start, and return when it serves."""
        client, peer = self.endpoints[0], f"http://127.0.0.1:{self.peer_port}"
        self.process = await asyncio.create_subprocess_exec(
            "etcd",
            *("--data-dir", str(self.directory), "--name", "test"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"test={peer}"),
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            while line := await self.process.stderr.readline():
                if _READY in line:
                    break
            else:
                raise RuntimeError("etcd ended before it was ready")
        self._drain = asyncio.create_task(_discard(self.process.stderr))

    async def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
            await self._drain

    async def connect(self) -> EtcdClient:
        """Make a client."""
        return await EtcdClient.connect(self.endpoints, self.credentials)


@contextlib.asynccontextmanager
async def etcd_server() -> AsyncIterator[EtcdServer]:
    """Run a server inside the block."""
    with tempfile.TemporaryDirectory() as directory:
        server = EtcdServer(Path(directory) / "etcd", free_port(), free_port())
        await server.start()
        try:
            yield server
        finally:
            await server.kill()


def free_port() -> int:
    """Give a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 16):
        pass
