"""An execution environment without a cluster: a sandbox with a function that answers, driven as the agent drives it."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from lambent_node_agent.sandbox import RuntimeProcess, Sandbox, SandboxHost
from lambent_runtime.channel import HEADER, InvokeHeader, Kind, encode_invoke

RUNTIME = f"python{sys.version_info[0]}.{sys.version_info[1]}"
EVENT = b'{"key": "' + b"x" * 88 + b'"}'
"""100 bytes."""

_TIMEOUT_S = 30.0
_HEADER = InvokeHeader("11111111-2222-4333-8444-555555555555", 1 << 42, "arn:aws:lambda:local:000000000000:function:f")
_FRAME = b"".join(encode_invoke(_HEADER, EVENT))


def write_function(directory: Path) -> Path:
    """Write the code of a function that does nothing, where every user may read it."""
    code = directory / "code"
    code.mkdir()
    (code / "handler.py").write_text("def handler(event, context):\n    return None\n")
    directory.chmod(0o755)
    return code


@dataclass(frozen=True)
class Environment:
    """A sandbox whose function has been started."""

    sandbox: Sandbox
    process: RuntimeProcess

    @classmethod
    async def start(cls, host: SandboxHost, code: Path, memory_mib: int = 128, cpu_millis: int = 72) -> Environment:
        """Make the sandbox and wait until its function is ready."""
        sandbox = await host.create(RUNTIME)
        await sandbox.specialise(code, memory_mib, cpu_millis, ephemeral_storage_mib=512)
        process = await sandbox.start_runtime("handler.handler", {"PATH": "/usr/bin:/bin"})
        environment = cls(sandbox, process)
        async with asyncio.timeout(_TIMEOUT_S):
            await environment._expect(Kind.READY)
        sandbox.limit_cpu()
        return environment

    async def invoke(self) -> None:
        """Call the function once."""
        await asyncio.get_running_loop().sock_sendall(self.process.channel, _FRAME)
        await self._expect(Kind.RESULT)

    async def close(self) -> None:
        """End it, and give everything back."""
        self.process.channel.close()
        os.close(self.process.log_fd)
        await self.sandbox.close()

    async def _expect(self, kind: Kind) -> None:
        received = b""
        while len(received) < HEADER.size or len(received) < HEADER.size + HEADER.unpack_from(received)[0]:
            data = await asyncio.get_running_loop().sock_recv(self.process.channel, 1 << 16)
            assert data, "the runtime has ended"
            received += data
        _length, received_kind, _key = HEADER.unpack_from(received)
        assert received_kind == kind, received
