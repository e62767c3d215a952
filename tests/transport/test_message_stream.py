"""Length-prefixed messages over TCP: order, bounds, backpressure, and how a connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent import message_stream
from lambent.framing import MAX_MESSAGE_BYTES
from lambent.message_stream import MessageStream, MessageStreamError, connect
from lambent.v1 import frame_pb2, invocation_pb2, node_pb2
from lambent_common.message_server import MessageServer

Client = MessageStream[node_pb2.NodeOrder, node_pb2.EventBatch]
Server = MessageStream[node_pb2.NodeEvent, node_pb2.OrderBatch]
Serve = Callable[[Server], Awaitable[None]]


def _orders(size: int) -> node_pb2.OrderBatch:
    return node_pb2.OrderBatch(orders=[node_pb2.NodeOrder(hello=node_pb2.Hello(scheduler_id="x" * size))])


def _sizes(batch: node_pb2.OrderBatch) -> list[int]:
    return [len(order.hello.scheduler_id) for order in batch.orders]


def _raw(batch: node_pb2.OrderBatch) -> bytes:
    body = batch.SerializeToString()
    return len(body).to_bytes(4, "big") + body


@contextlib.asynccontextmanager
async def _server(serve: Serve) -> AsyncIterator[tuple[str, MessageServer[node_pb2.NodeEvent, node_pb2.OrderBatch]]]:
    server = MessageServer(node_pb2.OrderBatch.FromString, serve)
    port = await server.start("127.0.0.1:0")
    try:
        async with asyncio.timeout(20):
            yield f"127.0.0.1:{port}", server
    finally:
        await server.stop()


async def _connect(address: str) -> Client:
    return await connect(address, node_pb2.EventBatch.FromString, timeout_s=5)


class Collector:
    """Serves by reading to the end."""

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.max_message_bytes = max_message_bytes
        self.sizes: list[int] = []
        self.error: MessageStreamError | None = None
        self.received = asyncio.Event()
        self.ended = asyncio.Event()

    async def serve(self, stream: Server) -> None:
        """Note the size of each message, and how the connection ended."""
        stream.max_message_bytes = self.max_message_bytes
        try:
            while (batch := await stream.read()) is not None:
                self.sizes += _sizes(batch) or [0]
                self.received.set()
        except MessageStreamError as error:
            self.error = error
        self.ended.set()


async def test_messages_of_every_size_arrive_in_order() -> None:
    """From an empty one to one of several mebibytes."""
    collector = Collector()
    sizes = [0, 1, 100, 70_000, 5, 3_000_000, 2, 0]
    async with _server(collector.serve) as (address, _):
        client = await _connect(address)
        for size in sizes:
            await client.write(_orders(size).orders if size else ())
        client.close()
        await collector.ended.wait()
    assert collector.sizes == sizes
    assert collector.error is None


_SIZES = st.lists(st.one_of(st.integers(0, 300), st.sampled_from([16_381, 16_383, 16_384, 2_097_151, 2_097_152])))


@pytest.mark.parametrize(
    ("batch", "field", "frame"),
    [
        (node_pb2.OrderBatch, "orders", node_pb2.NodeOrder),
        (node_pb2.EventBatch, "events", node_pb2.NodeEvent),
        (invocation_pb2.SessionRequest, "frames", invocation_pb2.SessionRequestFrame),
        (invocation_pb2.SessionResponse, "frames", invocation_pb2.SessionResponseFrame),
    ],
)
@given(sizes=_SIZES)
def test_a_batch_is_what_protobuf_makes_of_its_frames(batch: Any, field: str, frame: Any, sizes: list[int]) -> None:
    """Frames of every size, so that their lengths take one to four bytes."""
    frames = [frame(call_id=size, data=frame_pb2.Data(payload=b"x" * size)) for size in sizes]
    assert message_stream.batch_bytes(frames) == batch(**{field: frames}).SerializeToString()


async def test_a_message_may_arrive_byte_by_byte() -> None:
    """TCP keeps no borders."""
    collector = Collector()
    async with _server(collector.serve) as (address, _):
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        for byte in _raw(_orders(3)) + _raw(_orders(7)):
            writer.write(bytes((byte,)))
            await writer.drain()
        writer.close()
        await collector.ended.wait()
    assert collector.sizes == [3, 7]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"), f"a message of {MAX_MESSAGE_BYTES + 1} bytes"),
        (b"\0\0\0\x03\xff\xff\xff", "3 bytes that are no message"),
    ],
)
async def test_what_is_no_message_ends_the_connection(sent: bytes, said: str) -> None:
    """A length over the bound is refused before its body comes."""
    collector = Collector()
    async with _server(collector.serve) as (address, _):
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(_raw(_orders(2)) + sent)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        await collector.ended.wait()
        writer.close()
    assert collector.sizes == [2], "what came before it is read"
    assert said in str(collector.error)


async def test_a_stranger_may_send_little() -> None:
    """Until the server trusts a peer, 4 KiB are enough for its name and token."""
    collector = Collector(max_message_bytes=0)

    async def serve(stream: Server) -> None:
        collector.max_message_bytes = stream.max_message_bytes
        await collector.serve(stream)

    async with _server(serve) as (address, _):
        client = await _connect(address)
        await client.write(_orders(5_000).orders)
        await collector.ended.wait()
        client.abort()
    assert collector.sizes == []
    assert "the largest is 4096" in str(collector.error)


async def test_silent_strangers_keep_nobody_out() -> None:
    """However many connect and say nothing, one that speaks is served."""
    collector = Collector()

    async def serve(stream: Server) -> None:
        first = await stream.read()
        if first is not None:
            collector.sizes += _sizes(first)
            collector.received.set()

    async with _server(serve) as (address, _):
        silent = [await _connect(address) for _ in range(300)]
        client = await _connect(address)
        await client.write(_orders(7).orders)
        await collector.received.wait()
        for stream in (*silent, client):
            stream.abort()
    assert collector.sizes == [7]


async def test_a_reader_that_stops_stops_the_writer() -> None:
    """Neither side holds more than a few messages and what TCP's own buffers take."""
    go_on = asyncio.Event()
    collector = Collector()

    async def serve(stream: Server) -> None:
        stream.max_message_bytes = MAX_MESSAGE_BYTES
        await go_on.wait()
        await collector.serve(stream)

    written = 0
    async with _server(serve) as (address, _):
        client = await _connect(address)

        async def write() -> None:
            nonlocal written
            for _ in range(100):
                await client.write(_orders(1_000_000).orders)
                written += 1

        writing = asyncio.create_task(write())
        before = -1
        while written != before:  # until no further turn of the loop writes anything
            before = written
            for _ in range(1_000):
                await asyncio.sleep(0)
        assert written < 60
        go_on.set()
        await writing
        client.close()
        await collector.ended.wait()
    assert collector.sizes == [1_000_000] * 100


async def test_a_reset_connection_is_an_error_on_both_halves() -> None:
    """What had arrived before can still be read."""
    collector = Collector()
    async with _server(collector.serve) as (address, _):
        host, _, port = address.rpartition(":")
        raw = socket.create_connection((host, int(port)))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        raw.sendall(_raw(_orders(9)))
        await collector.received.wait()
        raw.close()
        await collector.ended.wait()
    assert collector.sizes == [9]
    assert "lost" in str(collector.error)


async def test_writing_after_the_end_is_an_error() -> None:
    """Nobody waits for what cannot leave."""

    async def serve(stream: Server) -> None:
        await stream.read()

    async with _server(serve) as (address, _):
        client = await _connect(address)
        await client.write(_orders(1).orders)
        assert await client.read() is None
        with pytest.raises(MessageStreamError):
            await client.write(_orders(1).orders)


async def test_an_address_where_nobody_listens_is_an_error() -> None:
    """It names the address."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(MessageStreamError, match=address):
            await _connect(address)


async def test_a_stopped_server_ends_its_connections() -> None:
    """And whoever serves them is cancelled."""
    collector = Collector()
    async with _server(collector.serve) as (address, server):
        client = await _connect(address)
        await client.write(_orders(1).orders)
        await collector.received.wait()
        await server.stop()
        assert await client.read() is None
        with pytest.raises(MessageStreamError):
            await _connect(address)


@pytest.mark.parametrize("patient", [True, False])
async def test_who_does_not_read_is_cut_off_unless_the_stream_is_patient(
    patient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's program may compute for a minute between two reads; a daemon that does is lost."""
    monkeypatch.setattr(message_stream, "_UNACKNOWLEDGED_MS", 200)
    monkeypatch.setattr(message_stream, "_SILENT_S", 0.2)
    monkeypatch.setattr(message_stream, "_LOOK_S", 0.05)
    looks = asyncio.Semaphore(0)
    look = MessageStream._look_at_silence

    def counted(stream: MessageStream[Any, Any], connection: socket.socket) -> None:
        look(stream, connection)
        looks.release()

    monkeypatch.setattr(MessageStream, "_look_at_silence", counted)
    written = 0

    async def serve(stream: Server) -> None:
        nonlocal written
        while True:
            await stream.write([node_pb2.NodeEvent(data=frame_pb2.Data(payload=bytes(60_000)))])
            written += 1

    server = MessageServer(node_pb2.OrderBatch.FromString, serve, patient=patient)
    address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
    try:
        async with asyncio.timeout(20):
            client: Client = await connect(address, node_pb2.EventBatch.FromString, timeout_s=5, patient=patient)
            await client.read()
            if patient:
                for _ in range(2 * 20):  # Both ends look, for 1 s in all.
                    await looks.acquire()
                full = written
                while written < 2 * full:
                    await client.read()
            else:
                await asyncio.wait(tuple(server._connections))
            client.abort()
    finally:
        await server.stop()


async def test_the_address_of_a_peer_that_is_gone_at_once_is_an_error() -> None:
    """It may reset the connection while it is set up; then the system knows no other end any more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        stream: Client = MessageStream(node_pb2.EventBatch.FromString)
        await asyncio.get_running_loop().create_connection(lambda: stream, sock=ours)
        with pytest.raises(MessageStreamError):
            _ = stream.peer_address
        stream.abort()


@pytest.mark.parametrize("closed", [False, True])
def test_a_patient_stream_finds_out_that_the_peer_s_machine_is_dead(closed: bool) -> None:
    """Its network falls silent while something is on its way, or while its window is closed since nobody reads."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    script = """
import asyncio, fcntl, socket, struct, sys
from lambent import message_stream
from lambent.message_stream import MessageStreamError, connect

def set_loopback(flags):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        fcntl.ioctl(device, 0x8914, struct.pack("16sh22x", b"lo", flags))  # SIOCSIFFLAGS

class Message:
    def SerializeToString(self):
        return bytes(60_000)

async def fill(stream):
    while True:
        await stream.write([Message()])

async def main(closed):
    message_stream._SILENT_S, message_stream._LOOK_S = 0.5, 0.1
    set_loopback(1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = await connect(f"127.0.0.1:{listener.getsockname()[1]}", bytes, timeout_s=5, patient=True)
        with listener.accept()[0]:
            if closed:
                await asyncio.wait((asyncio.create_task(fill(stream)),), timeout=1)
            set_loopback(0)
            try:
                await fill(stream)
            except MessageStreamError as error:
                print(error)

asyncio.run(asyncio.wait_for(main(sys.argv[1] == "True"), 20))
"""
    command = ["unshare", "--net", sys.executable, "-c", script, str(closed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "the peer's machine has acknowledged nothing for" in done.stdout, done.stderr
