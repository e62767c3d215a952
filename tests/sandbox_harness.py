"""Real sandboxes for tests: a host per test module, and functions given as source text."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lambent_node_agent.network import NO_NETWORK, NetworkChoice, NetworkSettings
from lambent_node_agent.sandbox import RuntimeProcess, Sandbox, SandboxConfig, SandboxHost
from lambent_node_agent.sandbox.zygote_client import Zygote
from lambent_runtime import channel
from tests.patience import PATIENCE

REQUEST_ID = "11111111-2222-4333-8444-555555555555"
ARN = "arn:aws:lambda:local:000000000000:function:f"
TIMEOUT_S = 30 * PATIENCE
OWN_RUNTIME = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def config(directory: Path, owner: str, pool_size: int = 0) -> SandboxConfig:
    """Return a configuration whose marks and locks are this test run's alone."""
    return SandboxConfig(directory / "state", f"{owner}-{os.getpid()}", pool_size=pool_size)


@dataclass
class Function:
    """One environment: its sandbox, its runtime process, what it printed, and the key of its last frame."""

    sandbox: Sandbox
    process: RuntimeProcess
    received: bytearray = field(default_factory=bytearray)
    key: bytes = channel.NO_KEY

    async def frame(self) -> tuple[channel.Kind, bytes]:
        """Wait for the next frame; EOFError when the runtime has closed the channel."""
        length, kind, self.key = channel.HEADER.unpack(await self._receive(channel.HEADER.size))
        assert length <= channel.FROM_RUNTIME[kind]
        return channel.Kind(kind), await self._receive(length)

    async def _receive(self, size: int) -> bytes:
        while len(self.received) < size:
            data = await asyncio.get_running_loop().sock_recv(self.process.channel, 1 << 16)
            if not data:
                raise EOFError
            self.received += data
        taken = bytes(self.received[:size])
        del self.received[:size]
        return taken

    async def send(self, event: object = None, **header: Any) -> None:
        """Send an invocation; bytes go as they are."""
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        values = {"request_id": REQUEST_ID, "deadline_ms": int(time.time() * 1000) + 3000, "invoked_function_arn": ARN}
        frame = b"".join(channel.encode_invoke(channel.InvokeHeader(**{**values, **header}), body))
        await asyncio.get_running_loop().sock_sendall(self.process.channel, frame)

    async def invoke(self, event: object = None, **header: Any) -> Any:
        """Invoke, and return the result; an error payload becomes an AssertionError."""
        await self.send(event, **header)
        kind, body = await self.frame()
        assert kind is channel.Kind.RESULT, body
        return json.loads(body)

    async def fail(self, event: object = None, **header: Any) -> Any:
        """Invoke, and return the error payload."""
        await self.send(event, **header)
        kind, body = await self.frame()
        assert kind is channel.Kind.ERROR, body
        return json.loads(body)

    def output(self) -> str:
        """Return what has been printed since the last call."""
        pieces = []
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.process.log_fd, 1 << 16):
                pieces.append(piece)
        return b"".join(pieces).decode()

    def close(self) -> None:
        """Close what start_runtime gave."""
        self.process.channel.close()
        os.close(self.process.log_fd)


@dataclass
class Lab:
    """A host and a place for code."""

    host: SandboxHost
    directory: Path
    count: int = 0

    def write(self, code: str | Mapping[str, str]) -> Path:
        """Write a function's code; a text is `handler.py`."""
        self.count += 1
        target = self.directory / f"code-{self.count}"
        for name, text in ({"handler.py": code} if isinstance(code, str) else code).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_text(text)
        return target

    @contextlib.asynccontextmanager
    async def sandbox(
        self,
        code: str | Mapping[str, str],
        *,
        runtime: str = OWN_RUNTIME,
        memory_mib: int = 256,
        storage_mib: int = 512,
        network: NetworkChoice = NO_NETWORK,
    ) -> AsyncIterator[Sandbox]:
        """Make a sandbox with this code in it."""
        made = await self.host.create(runtime)
        try:
            await made.specialise(self.write(code), memory_mib, 1000, storage_mib, network)
            yield made
        finally:
            await made.close()

    @contextlib.asynccontextmanager
    async def start(
        self, sandbox: Sandbox, handler: str = "handler.handler", environment: Mapping[str, str] | None = None
    ) -> AsyncIterator[Function]:
        """Start a runtime process without waiting for it."""
        function = Function(sandbox, await sandbox.start_runtime(handler, environment or {"PATH": "/usr/bin"}))
        try:
            yield function
        finally:
            function.close()

    @contextlib.asynccontextmanager
    async def function(
        self,
        code: str | Mapping[str, str],
        *,
        handler: str = "handler.handler",
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> AsyncIterator[Function]:
        """Make an environment and wait until its init is done."""
        async with (
            asyncio.timeout(TIMEOUT_S),
            self.sandbox(code, **options) as sandbox,
            self.start(sandbox, handler, environment) as function,
        ):
            kind, body = await function.frame()
            assert kind is channel.Kind.READY, body
            yield function

    async def init_error(self, code: str | Mapping[str, str], handler: str = "handler.handler") -> tuple[Any, str, int]:
        """Return error payload, output and exit status of an init that fails."""
        async with asyncio.timeout(TIMEOUT_S), self.sandbox(code) as sandbox, self.start(sandbox, handler) as function:
            kind, body = await function.frame()
            assert kind is channel.Kind.INIT_ERROR, body
            status = await function.process.exit_status
            assert status.code is not None
            return json.loads(body), function.output(), status.code


@contextlib.asynccontextmanager
async def lab(
    directory: Path, owner: str, pool_size: int = 0, network: NetworkSettings | None = None
) -> AsyncIterator[Lab]:
    """Run a host; at the end nothing of it may be left."""
    settings = replace(config(directory, owner, pool_size), network=network or NetworkSettings())
    async with SandboxHost(settings) as host:
        async with asyncio.timeout(TIMEOUT_S):
            await host.wait_until_filled()
        yield Lab(host, directory)


async def until(condition: Callable[[], object]) -> None:
    """Let others run until it holds; the test's own deadline bounds it."""
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)


def processes_of(sandbox: Sandbox) -> list[int]:
    """Return the processes in a sandbox's groups."""
    texts = [(directory / "cgroup.procs").read_text() for directory in sandbox._slot.group._directories.values()]
    return sorted({int(pid) for text in texts for pid in text.split()})


def used_memory_bytes(sandbox: Sandbox) -> int:
    """Return the memory that is charged to a sandbox."""
    memory = sandbox._slot.group._memory
    assert memory is not None
    return memory.used_bytes()


def zygote_of(host: SandboxHost) -> Zygote:
    """Return the running zygote of our own interpreter."""
    zygote = host._supplies[OWN_RUNTIME]._zygote
    assert zygote is not None
    return zygote


def pool_of(host: SandboxHost) -> list[Sandbox]:
    """Return the blank sandboxes that wait for functions of our own interpreter."""
    return list(host._supplies[OWN_RUNTIME]._pool)


__all__ = [
    "ARN",
    "OWN_RUNTIME",
    "REQUEST_ID",
    "TIMEOUT_S",
    "Function",
    "Lab",
    "config",
    "lab",
    "pool_of",
    "processes_of",
    "until",
    "used_memory_bytes",
    "zygote_of",
]


def require_disk(directory: Path) -> None:
    """Skip where the disk is memory, as /tmp of some machines is: what is written to it is memory of who writes."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True).stdout
    if kind.strip() == "tmpfs":
        pytest.skip(f"{directory} is memory")
