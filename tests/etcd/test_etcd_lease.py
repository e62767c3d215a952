"""Leases: they lapse, they are kept by a thread, and only etcd's word ends them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from tests.etcd_server import EtcdServer

from lambent_common.etcd import Changes, Delete, EtcdClient, LeaseKeeper

_TTL_S = 1
"""The shortest that etcd grants with the test server's timings."""

_BUSY = """
import asyncio, signal, sys
from lambent_common.credentials import Credentials
from lambent_common.etcd import EtcdClient, LeaseKeeper

endpoint, ttl_s = sys.argv[1], int(sys.argv[2])

async def main():
    released = False
    def release(*_):
        nonlocal released
        released = True
    signal.signal(signal.SIGUSR1, release)
    async with await EtcdClient.connect([endpoint], Credentials()) as client:
        lease_id = await client.grant_lease(ttl_s)
        with LeaseKeeper([endpoint], Credentials(), lease_id, ttl_s, lambda: print("lost", flush=True)):
            await client.put("/l/busy", b"", lease_id=lease_id)
            while not released:  # the event loop is blocked from here on
                sum(range(10_000))

asyncio.run(main())
"""


async def test_a_key_goes_when_its_lease_lapses(client: EtcdClient) -> None:
    """A dead node leaves the pool by itself."""
    async with asyncio.timeout(20):
        lease_id = await client.grant_lease(_TTL_S)
        await client.put("/l/node", b"", lease_id=lease_id)
        await _gone(client, "/l/node")


async def test_a_blocked_event_loop_does_not_lose_the_lease(server: EtcdServer, client: EtcdClient) -> None:
    """A node that computes is alive: renewal has a thread of its own.

    Another lease, four times as long and renewed by nobody, tells when enough time has passed.
    """
    async with asyncio.timeout(40), _busy_process(server.endpoints[0]) as process:
        batches = client.watch("/l/busy")
        first = await anext(batches)
        if isinstance(first, Changes) or not first.items:
            await anext(batches)
        clock = await client.grant_lease(4 * _TTL_S)
        await client.put("/clock", b"", lease_id=clock)
        await _gone(client, "/clock")
        assert await client.get("/l/busy") is not None
        process.send_signal(signal.SIGUSR1)
        output, _ = await process.communicate()
    assert (process.returncode, output) == (0, b"")


async def test_the_keeper_tells_when_the_lease_is_gone(server: EtcdServer, client: EtcdClient) -> None:
    """A scheduler without a lease must stop giving orders."""
    lease_id = await client.grant_lease(_TTL_S)
    lost = asyncio.Event()
    with _keeper(server, lease_id, lost):
        await client.revoke_lease(lease_id)
        async with asyncio.timeout(10):
            await lost.wait()


async def test_an_etcd_that_is_away_for_longer_than_the_lease_does_not_end_it(
    server: EtcdServer, client: EtcdClient, events: asyncio.Queue[str]
) -> None:
    """Running functions keep serving while etcd is away; it counts no time then, and the lease goes on after it."""
    lease_id = await client.grant_lease(_TTL_S)
    await client.put("/l/node", b"", lease_id=lease_id)
    lost = asyncio.Event()
    async with asyncio.timeout(40):
        with _keeper(server, lease_id, lost):
            await server.kill()
            await _logged(events, "lease_overdue")
            await server.start()
            await _logged(events, "lease_renewed_again")
        assert not lost.is_set()
        assert await client.get("/l/node") is not None


async def test_closing_the_keeper_does_not_wait_for_a_silent_server(server: EtcdServer, client: EtcdClient) -> None:
    """A daemon told to stop stops, whatever etcd does."""
    lease_id = await client.grant_lease(30)
    keeper = _keeper(server, lease_id, asyncio.Event()).start()
    server.freeze()
    async with asyncio.timeout(5):
        await asyncio.to_thread(keeper.close)
    server.thaw()


@pytest.fixture
async def events() -> AsyncIterator[asyncio.Queue[str]]:
    """Names of logged events, also of those that other threads log."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def forward(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        loop.call_soon_threadsafe(queue.put_nowait, event["event"])
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[forward], cache_logger_on_first_use=False)
    yield queue
    structlog.configure(**before)


def _keeper(server: EtcdServer, lease_id: int, lost: asyncio.Event) -> LeaseKeeper:
    loop = asyncio.get_running_loop()

    def on_lost() -> None:
        loop.call_soon_threadsafe(lost.set)

    return LeaseKeeper(server.endpoints, server.credentials, lease_id, _TTL_S, on_lost)


async def _logged(events: asyncio.Queue[str], name: str) -> None:
    while await events.get() != name:
        pass


async def _gone(client: EtcdClient, key: str) -> None:
    """Wait until the key is not there."""
    async for batch in client.watch(key):
        if not isinstance(batch, Changes):
            if not batch.items:
                return
        elif any(isinstance(event, Delete) for event in batch.events):
            return


@contextlib.asynccontextmanager
async def _busy_process(endpoint: str) -> AsyncIterator[asyncio.subprocess.Process]:
    root = Path(__file__).parents[2]
    path = os.pathsep.join(str(root / part) for part in ("sdk", "common"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _BUSY, endpoint, str(_TTL_S)),
        env={**os.environ, "PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
