"""The agent's end of a runtime's channel, against anything that function code may write to it."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from lambent_node_agent.environment.channel import RuntimeChannel
from lambent_runtime.channel import FROM_RUNTIME, HEADER, MAX_RESULT_BYTES, Kind


class Pipe(asyncio.Transport):
    """A transport that notes what is written, and that it was closed.

    Args:
        narrow: It is full after each piece.
    """

    def __init__(self, *, narrow: bool = False) -> None:
        super().__init__()
        self.aborted = False
        self.narrow = narrow
        self.protocol: RuntimeChannel | None = None
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))
        assert self.protocol is not None
        if self.narrow:
            self.protocol.pause_writing()

    def take(self) -> None:
        """Let the other end read all."""
        assert self.protocol is not None
        self.protocol.resume_writing()

    def abort(self) -> None:
        self.aborted = True


class Ear:
    """Notes what the channel says."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, bytes] | str] = []

    def frame_received(self, kind: int, body: bytes) -> None:
        self.heard.append((kind, body))

    def result_too_large(self) -> None:
        self.heard.append("too large")

    def protocol_violated(self, what: str) -> None:
        self.heard.append(what)

    def channel_ended(self) -> None:
        self.heard.append("ended")


def connected(*, narrow: bool = False) -> tuple[RuntimeChannel, Ear, Pipe]:
    ear, pipe = Ear(), Pipe(narrow=narrow)
    channel = RuntimeChannel(ear)
    channel.connection_made(pipe)
    pipe.protocol = channel
    return channel, ear, pipe


def encode_frame(kind: Kind, body: bytes) -> bytes:
    return HEADER.pack(len(body), kind) + body


FRAMES = st.lists(st.tuples(st.sampled_from([Kind.RESULT, Kind.CHUNK, Kind.ERROR]), st.binary(max_size=40)), max_size=8)


@given(FRAMES, st.lists(st.integers(1, 30), min_size=1))
def test_frames_do_not_depend_on_how_they_arrive(frames: list[tuple[Kind, bytes]], sizes: list[int]) -> None:
    """A socket cuts and joins as it likes."""
    channel, ear, _ = connected()
    stream = b"".join(encode_frame(kind, body) for kind, body in frames)
    position = turn = 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        channel.data_received(stream[position : position + size])
        position += size
        turn += 1
    assert ear.heard == frames


@given(st.binary(min_size=5, max_size=200))
def test_garbage_is_refused_or_waits_within_its_bound(data: bytes) -> None:
    """Function code writes what it likes; the agent neither fails nor buffers beyond a frame's bound."""
    channel, ear, pipe = connected()
    channel.data_received(data)
    length, kind = HEADER.unpack_from(data)
    if kind not in FROM_RUNTIME or (length > FROM_RUNTIME[kind] and kind != Kind.RESULT):
        assert pipe.aborted
        assert isinstance(ear.heard[-1], str)


@given(st.integers(1, 70_000))
def test_a_result_over_the_limit_is_thrown_away_and_the_next_frame_is_read(piece: int) -> None:
    """An honest mistake of the function: the runtime may go on, and 4 GiB are not kept to find that out."""
    channel, ear, _ = connected()
    body = bytes(MAX_RESULT_BYTES + 1)
    stream = encode_frame(Kind.RESULT, body[:-1] + b"x") + encode_frame(Kind.RESULT, b"next")
    step = max(piece, 20_000)
    for start in range(0, len(stream), step):
        channel.data_received(stream[start : start + step])
        assert len(channel._buffer) <= step
    assert ear.heard == ["too large", (Kind.RESULT, b"next")]


def test_nothing_is_heard_after_a_violation() -> None:
    """What follows garbage is garbage."""
    channel, ear, _ = connected()
    channel.data_received(encode_frame(Kind.CHUNK, b"a") + b"\0\0\0\1\x63zz" + encode_frame(Kind.RESULT, b"b"))
    assert ear.heard == [(Kind.CHUNK, b"a"), "frame of unknown kind 99"]


def test_a_long_frame_is_written_as_fast_as_it_is_taken() -> None:
    """What the runtime does not read yet stays in pieces."""
    channel, _, pipe = connected(narrow=True)
    channel.send([b"1", b"2", b"3"])
    channel.send([b"4"])
    assert pipe.written == [b"1"]
    for count in (2, 3, 4, 4):
        pipe.take()
        assert pipe.written == [b"1", b"2", b"3", b"4"][:count]


def test_a_channel_that_is_closed_writes_no_more() -> None:
    """What the runtime had not read is dropped with it."""
    channel, _, pipe = connected(narrow=True)
    channel.send([b"1", b"2"])
    channel.close()
    channel.send([b"3"])
    pipe.take()
    assert pipe.written == [b"1"]


def test_a_channel_whose_other_end_is_closed_holds_nothing() -> None:
    """The agent hears of the process's end later; until then it would keep an event of 6 MiB."""
    channel, ear, _ = connected(narrow=True)
    channel.send([b"1", b"2"])
    channel.connection_lost(None)
    channel.send([b"3"])
    assert ear.heard == ["ended"]
    assert not channel._unsent


async def test_other_work_is_done_between_the_pieces_of_a_long_frame() -> None:
    """A whole event of 6 MiB at once would keep the agent from all other calls for a millisecond."""
    channel, _, pipe = connected()
    pieces = [bytes([number]) for number in range(20)]
    channel.send(pieces)
    seen = [len(pipe.written)]
    while seen[-1] < len(pieces):
        await asyncio.sleep(0)
        seen.append(len(pipe.written))
    assert pipe.written == pieces
    assert len(set(seen)) >= 5
