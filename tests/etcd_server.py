"""A real etcd for tests: free ports, its own directory, gone when the block ends."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lambent_common.credentials import Credentials
from lambent_common.etcd import EtcdClient
from lambent_supervisor.ports import free_port
from tests.etcd_certificates import Certificates, make_certificates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_READY = (b"ready to serve client requests", b"serving client traffic", b"serving insecure client requests")

_START_TIMEOUT_S = 20


@dataclass
class EtcdServer:
    """A server that can be killed, frozen and started again on the same directory and ports.

    Attributes:
        endpoints: URLs for clients.
        credentials: What a client needs: nothing, or a certificate when the server asks for one.
    """

    directory: Path
    client_port: int
    peer_port: int
    process: asyncio.subprocess.Process | None = None
    certificates: Certificates | None = None
    _drain: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def endpoints(self) -> list[str]:
        """URLs of the server."""
        return [f"{'https' if self.certificates else 'http'}://127.0.0.1:{self.client_port}"]

    @property
    def credentials(self) -> Credentials:
        """What the server asks of a client."""
        return self.certificates.client if self.certificates else Credentials()

    async def start(self) -> None:
        """Start, and return when it serves."""
        client, peer = self.endpoints[0], f"http://127.0.0.1:{self.peer_port}"
        self.process = await asyncio.create_subprocess_exec(
            "etcd",
            *("--data-dir", str(self.directory), "--name", "test", "--log-outputs", "stderr"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"test={peer}"),
            # An election in 0.1 s instead of 1 s makes a start quick, and allows leases of 1 s.
            *("--heartbeat-interval", "10", "--election-timeout", "100"),
            *(self.certificates.server_flags if self.certificates else ()),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
        assert self.process.stderr is not None
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await _wait_until_ready(self.process.stderr)
        except BaseException:
            await self.kill()
            raise
        self._drain = asyncio.create_task(_discard(self.process.stderr))

    async def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        if self._drain is not None:
            await self._drain
            self._drain = None

    def freeze(self) -> None:
        """Stop it without closing its connections, as a machine that hangs does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Lose the data; only while it does not run."""
        shutil.rmtree(self.directory)

    async def connect(self) -> EtcdClient:
        """Make a client."""
        return await EtcdClient.connect(self.endpoints, self.credentials)


@contextlib.asynccontextmanager
async def etcd_server(*, tls: bool = False) -> AsyncIterator[EtcdServer]:
    """Run a server inside the block; with `tls` it asks for a client certificate."""
    with tempfile.TemporaryDirectory() as directory:
        certificates = make_certificates(Path(directory)) if tls else None
        server = EtcdServer(Path(directory) / "etcd", free_port(), free_port(), certificates=certificates)
        await server.start()
        try:
            yield server
        finally:
            await server.kill()


async def _wait_until_ready(log: asyncio.StreamReader) -> None:
    seen: list[bytes] = []
    while line := await log.readline():
        if any(ready in line for ready in _READY):
            return
        seen = [*seen[-9:], line]
    raise RuntimeError("etcd ended before it was ready: " + b"".join(seen).decode(errors="replace"))


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 16):
        pass
