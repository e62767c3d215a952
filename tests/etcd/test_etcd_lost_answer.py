"""Writes that etcd does and whose answers never arrive: a proxy swallows them, then cuts the connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import TypeVar

import pytest
from tests.etcd_server import EtcdServer

from lambent_common.credentials import Credentials
from lambent_common.etcd import EtcdClient, EtcdUnavailableError, mod_revision_is, put_op

_Result = TypeVar("_Result")


class _Proxy:
    """Relays to the server; while `is_mute`, what the server answers is thrown away."""

    def __init__(self, port: int) -> None:
        self.is_mute = False
        self.endpoint = ""
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, up_writer]
        self._tasks += [
            asyncio.create_task(self._relay(reader, up_writer, is_answer=False)),
            asyncio.create_task(self._relay(up_reader, writer, is_answer=True)),
        ]

    async def cut(self) -> None:
        """Close every connection; new ones are relayed whole."""
        self.is_mute = False
        writers, self._writers = self._writers, []
        tasks, self._tasks = self._tasks, []
        for writer in writers:
            writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                if not (is_answer and self.is_mute):
                    writer.write(piece)
                    await writer.drain()


@pytest.fixture
async def proxy(server: EtcdServer) -> AsyncIterator[_Proxy]:
    proxy = _Proxy(server.client_port)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.endpoint = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.cut()


async def test_a_put_that_may_have_been_done_is_not_sent_again(client: EtcdClient, proxy: _Proxy) -> None:
    """A second put could overwrite what somebody else wrote in between."""
    async with asyncio.timeout(20), await EtcdClient.connect([proxy.endpoint], Credentials()) as cut_off:
        writing = await _lose_the_answer(client, proxy, cut_off.put("/a", b"1"))
        with pytest.raises(EtcdUnavailableError) as lost:
            await writing
        item = await client.get("/a")
    assert lost.value.dispatched
    assert item is not None
    assert item.create_revision == item.mod_revision


async def test_a_comparing_transaction_is_sent_again_and_says_so(client: EtcdClient, proxy: _Proxy) -> None:
    """It cannot happen twice; whoever sent it reads to see whether it was its own first sending that won."""
    async with asyncio.timeout(20), await EtcdClient.connect([proxy.endpoint], Credentials()) as cut_off:
        transaction = cut_off.txn([mod_revision_is("/a", 0)], [put_op("/a", b"1")])
        result = await (await _lose_the_answer(client, proxy, transaction))
        item = await client.get("/a")
    assert (result.succeeded, result.resent) == (False, True)
    assert item is not None
    assert item.create_revision == item.mod_revision


async def _lose_the_answer(
    client: EtcdClient, proxy: _Proxy, write: Coroutine[None, None, _Result]
) -> asyncio.Task[_Result]:
    """Begin a write through the proxy and cut it off once etcd has done it."""
    batches = client.watch("/a")
    await anext(batches)
    proxy.is_mute = True
    writing = asyncio.create_task(write)
    await anext(batches)
    await proxy.cut()
    return writing
