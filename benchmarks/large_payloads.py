"""Two clients that send 6 MB payloads for as long as this process lives. Prints a line once both have an answer."""

from __future__ import annotations

import asyncio
import sys

from lambent import AsyncClient

_PAYLOAD = b'"' + b"x" * (6 * 1024 * 1024 - 2) + b'"'


async def _send(data_dir: str, started: asyncio.Barrier) -> None:
    async with AsyncClient(data_dir=data_dir) as client:
        await client.invoke("large", _PAYLOAD, timeout_s=60)
        await started.wait()
        while True:
            await client.invoke("large", _PAYLOAD, timeout_s=60)


async def _main(data_dir: str) -> None:
    started = asyncio.Barrier(3)
    async with asyncio.TaskGroup() as clients:
        for _ in range(2):
            clients.create_task(_send(data_dir, started))
        await started.wait()
        print("started", flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
