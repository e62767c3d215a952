"""The writing side of a stream: batches, order, credit, turns."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.framing import GRANT_AT_BYTES, INITIAL_CREDIT_BYTES, MAX_FRAME_BYTES, PIECE_BYTES, Body, FrameWriter

Frame = tuple[str, bytes]


class Stream:
    """Takes batches; each write waits until the test lets it pass."""

    def __init__(self) -> None:
        self.batches: list[list[Frame]] = []
        self.gate = asyncio.Semaphore(0)
        self.entered = asyncio.Event()

    async def write(self, frames: list[Frame]) -> None:
        self.batches.append(frames)
        self.entered.set()
        await self.gate.acquire()

    def frames(self) -> list[Frame]:
        return [frame for batch in self.batches for frame in batch]


async def _run_to_end(writer: FrameWriter[Frame], stream: Stream) -> list[Frame]:
    for _ in range(10_000):
        stream.gate.release()
    writer.close()
    async with asyncio.timeout(10):
        await writer.run()
    return stream.frames()


def _body(writer: FrameWriter[Frame], name: str, sent: list[int] | None = None) -> Body[Frame]:
    return Body(writer, lambda piece: (name, piece), sent.append if sent is not None else None)


async def test_frames_that_wait_during_a_write_leave_as_one_message() -> None:
    """Batching needs no timer: it comes from the write in flight."""
    stream = Stream()
    writer: FrameWriter[Frame] = FrameWriter(stream.write)
    running = asyncio.create_task(writer.run())
    writer.send(("a", b""))
    await stream.entered.wait()
    for name in "bcd":
        writer.send((name, b""))
    writer.close()
    stream.gate.release()
    stream.gate.release()
    async with asyncio.timeout(10):
        await running
    assert [[name for name, _ in batch] for batch in stream.batches] == [["a"], ["b", "c", "d"]]


async def test_a_large_body_delays_a_short_frame_by_one_batch_at_most() -> None:
    """A 6 MB payload must not hold up another call."""
    stream = Stream()
    writer: FrameWriter[Frame] = FrameWriter(stream.write)
    body = _body(writer, "large")
    body.push(bytes(INITIAL_CREDIT_BYTES))
    running = asyncio.create_task(writer.run())
    await stream.entered.wait()
    writer.send(("short", b""))
    await _finish(writer, stream, running)
    assert stream.batches[1][0][0] == "short"


async def _finish(writer: FrameWriter[Frame], stream: Stream, running: asyncio.Task[None]) -> list[Frame]:
    for _ in range(1_000):
        stream.gate.release()
    writer.close()
    async with asyncio.timeout(10):
        await running
    return stream.frames()


async def test_a_body_stops_at_its_credit_and_goes_on_when_more_is_given() -> None:
    """A slow reader bounds what its own call has under way, and nothing else."""
    stream = Stream()
    writer: FrameWriter[Frame] = FrameWriter(stream.write)
    sent: list[int] = []
    body = _body(writer, "slow", sent)
    body.push(bytes(2 * INITIAL_CREDIT_BYTES))
    body.finish(("end", b""))
    other = _body(writer, "other")
    other.push(b"x")
    other.finish(("other end", b""))
    frames = await _run_to_end(writer, stream)
    assert sum(sent) == INITIAL_CREDIT_BYTES
    assert ("end", b"") not in frames
    assert ("other end", b"") in frames
    body.grant(INITIAL_CREDIT_BYTES)
    frames = await _run_to_end(writer, stream)
    assert sum(sent) == 2 * INITIAL_CREDIT_BYTES
    assert frames[-1] == ("end", b"")


async def test_an_abandoned_body_sends_nothing_more() -> None:
    """After an END nothing of the call may follow."""
    stream = Stream()
    writer: FrameWriter[Frame] = FrameWriter(stream.write)
    body = _body(writer, "gone")
    body.push(bytes(PIECE_BYTES))
    body.finish(("end", b""))
    body.abandon()
    assert await _run_to_end(writer, stream) == []
    assert body.buffered_bytes == 0


async def test_a_writer_whose_peer_does_not_read_makes_its_producer_wait() -> None:
    """What a peer can make us hold is bounded."""
    stream = Stream()
    writer: FrameWriter[Frame] = FrameWriter(stream.write, high_water_frames=2)
    running = asyncio.create_task(writer.run())
    writer.send(("a", b""))
    await stream.entered.wait()
    for name in "bcde":
        writer.send((name, b""))
    waiting = asyncio.create_task(writer.wait_writable())
    done, _ = await asyncio.wait([waiting], timeout=0)
    assert not done
    await _finish(writer, stream, running)
    async with asyncio.timeout(10):
        await waiting


async def test_the_stream_s_own_error_ends_the_writer() -> None:
    """The owner of the stream learns why it broke."""

    async def broken(frames: list[Frame]) -> None:
        raise ConnectionResetError(len(frames))

    writer: FrameWriter[Frame] = FrameWriter(broken)
    writer.send(("a", b""))
    with pytest.raises(ConnectionResetError):
        await writer.run()


@given(st.lists(st.lists(st.sampled_from([0, 1, PIECE_BYTES, PIECE_BYTES + 1, 200_000]), max_size=4), max_size=4))
def test_every_body_arrives_whole_in_order_and_in_pieces(bodies: list[list[int]]) -> None:
    """Whatever is pushed in whatever portions, each receiver gets exactly its own bytes."""

    async def run() -> None:
        stream = Stream()
        writer: FrameWriter[Frame] = FrameWriter(stream.write)
        expected: dict[str, bytes] = {}
        for index, sizes in enumerate(bodies):
            body = _body(writer, str(index))
            body.grant(1 << 30)
            expected[str(index)] = b""
            for number, size in enumerate(sizes):
                payload = bytes([number + 1]) * size
                expected[str(index)] += payload
                body.push(payload)
            body.finish((f"end {index}", b""))
        frames = await _run_to_end(writer, stream)
        assert all(len(piece) <= PIECE_BYTES for _, piece in frames)
        for name, whole in expected.items():
            assert b"".join(piece for other, piece in frames if other == name) == whole
            assert [other for other, _ in frames if other.endswith(name)][-1] == f"end {name}"

    asyncio.run(run())


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=12))
def test_a_body_of_any_pieces_moves_while_its_receiver_gives_credit_in_halves(sizes: list[int]) -> None:
    """Receivers keep less than half of the credit back; what is left must be enough to go on."""

    async def run() -> None:
        stream = Stream()
        writer: FrameWriter[Frame] = FrameWriter(stream.write)
        consumed = 0

        def take(size: int) -> None:
            nonlocal consumed
            consumed += size
            if consumed >= GRANT_AT_BYTES:
                body.grant(consumed)
                consumed = 0

        body: Body[Frame] = Body(writer, lambda piece: ("piece", piece), take)
        for number, size in enumerate(sizes):
            body.push(bytes([number]) * size)
        body.finish(("end", b""))
        frames = await _run_to_end(writer, stream)
        assert frames[-1] == ("end", b"")
        assert b"".join(piece for _, piece in frames) == b"".join(bytes([n]) * size for n, size in enumerate(sizes))

    asyncio.run(run())


async def test_small_pieces_that_wait_leave_as_one() -> None:
    """A byte at a time without credit would become as many frames, each of which costs as much as a long one."""
    stream = Stream()
    writer: FrameWriter[Frame] = FrameWriter(stream.write)
    body = _body(writer, "data")
    for number in range(10_000):
        body.push(bytes([number % 256]))
    body.finish(("end", b""))
    *pieces, end = await _run_to_end(writer, stream)
    assert end == ("end", b"")
    assert len(pieces) == 3
    assert b"".join(piece for _, piece in pieces) == bytes(number % 256 for number in range(10_000))


async def test_a_body_moves_however_many_short_frames_wait() -> None:
    """Frames of 64 KiB that never end leave room for a piece in each batch."""
    stream = Stream()
    writer: FrameWriter[Frame] = FrameWriter(stream.write)
    body = _body(writer, "body")
    body.push(b"x" * 6 * PIECE_BYTES)
    body.grant(6 * PIECE_BYTES)
    for _ in range(20):
        writer.send(("short", b"y" * MAX_FRAME_BYTES), MAX_FRAME_BYTES)
    await _run_to_end(writer, stream)
    assert all("body" in {name for name, _ in batch} for batch in stream.batches[:2])


async def test_a_body_never_leaves_before_the_opening_of_its_call() -> None:
    """The receiver drops pieces of a call that it does not know yet, and the payload arrives with a hole."""
    stream = Stream()
    writer: FrameWriter[Frame] = FrameWriter(stream.write)
    for number in range(20):
        writer.send((f"open {number}", b""), PIECE_BYTES)
        body = _body(writer, f"piece {number}")
        body.push(b"x")
        body.finish((f"end {number}", b""))
    names = [name for name, _ in await _run_to_end(writer, stream)]
    assert len(names) == 60
    for number in range(20):
        assert names.index(f"open {number}") < names.index(f"piece {number}") < names.index(f"end {number}")
