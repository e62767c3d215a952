"""The agent's end of a runtime's channel, against anything that function code may write to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from lambent_node_agent.environment.channel import FRAMES_A_TURN, FRAMES_A_WINDOW, RuntimeChannel
from lambent_node_agent.environment.turns import INTERVAL_S, WINDOW_S, Allowance, Turns
from lambent_runtime.channel import FROM_RUNTIME, HEADER, MAX_RESULT_BYTES, NO_KEY, Kind

KEY = b"this one"
OTHER = b"that one"


class Pipe(asyncio.Transport):
    """A transport that notes what is written, and that it was closed.

    Args:
        narrow: It is full after each piece.
    """

    def __init__(self, *, narrow: bool = False) -> None:
        super().__init__()
        self.aborted = False
        self.narrow = narrow
        self.reading = True
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

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Timers:
    """What is to be called later, without a clock."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        assert delay_s == INTERVAL_S
        self.due.append(call)

    def fire(self) -> None:
        """Let the one that waits be due."""
        [call] = self.due
        self.due.clear()
        call()


class Ear:
    """Notes what the channel says."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, bytes] | str] = []

    def frame_received(self, kind: int, body: bytes) -> None:
        self.heard.append((kind, body))

    def result_too_large(self) -> None:
        self.heard.append("too large")

    def stray_frame(self, kind: int) -> None:
        self.heard.append(f"stray {Kind(kind).name}")

    def protocol_violated(self, what: str) -> None:
        self.heard.append(what)

    def channel_ended(self) -> None:
        self.heard.append("ended")


def connected(*, narrow: bool = False, timers: Timers | None = None) -> tuple[RuntimeChannel, Ear, Pipe]:
    """A channel whose runtime has got an INVOKE with `KEY`."""
    ear, pipe = Ear(), Pipe(narrow=narrow)
    channel = RuntimeChannel(ear, Turns((timers or Timers()).call_later))
    channel.connection_made(pipe)
    pipe.protocol = channel
    channel.send([], KEY)
    return channel, ear, pipe


def encode_frame(kind: Kind, body: bytes, key: bytes = KEY) -> bytes:
    return HEADER.pack(len(body), kind, key) + body


def joined(frames: list[tuple[int, bytes] | str]) -> list[tuple[int, bytes] | str]:
    """The same with CHUNKs that follow one another as one."""
    made: list[tuple[int, bytes] | str] = []
    for frame in frames:
        last = made[-1] if made else ""
        if isinstance(frame, tuple) and isinstance(last, tuple) and frame[0] == last[0] == Kind.CHUNK:
            made[-1] = (Kind.CHUNK, last[1] + frame[1])
        else:
            made.append(frame)
    return made


KINDS = st.sampled_from([Kind.RESULT, Kind.CHUNK, Kind.CHUNK, Kind.ERROR])
FRAMES = st.lists(st.tuples(KINDS, st.binary(max_size=40), st.sampled_from([KEY, KEY, OTHER])), max_size=8)


@given(FRAMES, st.lists(st.integers(1, 30), min_size=1))
def test_frames_do_not_depend_on_how_they_arrive(frames: list[tuple[Kind, bytes, bytes]], sizes: list[int]) -> None:
    """A socket cuts and joins as it likes."""
    channel, ear, _ = connected()
    stream = b"".join(encode_frame(*frame) for frame in frames)
    position = turn = 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        channel.data_received(stream[position : position + size])
        position += size
        turn += 1
    wanted = [(kind, body) if key == KEY else f"stray {kind.name}" for kind, body, key in frames]
    assert joined(ear.heard) == joined(wanted)
    assert not channel._buffer


@given(st.binary(min_size=HEADER.size, max_size=200))
def test_garbage_is_refused_or_waits_within_its_bound(data: bytes) -> None:
    """Function code writes what it likes; the agent neither fails nor buffers beyond a frame's bound."""
    channel, ear, pipe = connected()
    channel.data_received(data)
    length, kind, _ = HEADER.unpack_from(data)
    if kind not in FROM_RUNTIME or (length > FROM_RUNTIME[kind] and kind != Kind.RESULT):
        assert pipe.aborted
        assert isinstance(ear.heard[-1], str)


def test_only_the_invocation_that_was_sent_last_is_answered() -> None:
    """What was written before it was sent cannot have its key; what is late has that of an earlier one."""
    channel, ear, _ = connected()
    channel.data_received(encode_frame(Kind.RESULT, b"1"))
    channel.send([], OTHER)
    channel.data_received(encode_frame(Kind.RESULT, b"late" * 1000) + encode_frame(Kind.TOO_LARGE, b"", NO_KEY))
    channel.data_received(encode_frame(Kind.RESULT, b"late"))
    channel.data_received(encode_frame(Kind.RESULT, b"2", OTHER))
    strays = ["stray RESULT", "stray TOO_LARGE", "stray RESULT"]
    assert ear.heard == [(Kind.RESULT, b"1"), *strays, (Kind.RESULT, b"2")]


def test_an_answer_that_nobody_waits_for_is_not_kept() -> None:
    """Six mebibytes that are to be thrown away are thrown away as they come."""
    channel, ear, _ = connected()
    channel.data_received(HEADER.pack(MAX_RESULT_BYTES, Kind.RESULT, OTHER) + bytes(60_000))
    assert ear.heard == ["stray RESULT"]
    assert not channel._buffer


def test_a_flood_of_tiny_frames_is_heard_as_a_few_and_by_turns() -> None:
    """Each costs who writes it some nanoseconds: what is over the allowance waits, and nothing is read meanwhile."""
    timers = Timers()
    channel, ear, pipe = connected(timers=timers)
    channel.data_received(encode_frame(Kind.CHUNK, b"x") * 2000 + encode_frame(Kind.STREAM_END, b""))
    assert ear.heard == [(Kind.CHUNK, b"x" * FRAMES_A_WINDOW)]
    assert not pipe.reading
    turns = 0
    while not pipe.reading:
        timers.fire()
        turns += 1
        assert sum(len(body) for _, body in ear.heard) <= FRAMES_A_WINDOW + turns * FRAMES_A_TURN
    assert joined(ear.heard) == [(Kind.CHUNK, b"x" * 2000), (Kind.STREAM_END, b"")]
    assert len(ear.heard) == turns + 2
    assert turns == 6
    assert not channel._buffer


def test_bytes_one_at_a_time_are_read_by_turns() -> None:
    """Each read costs as much as a frame, whether or not it makes one whole."""
    timers = Timers()
    channel, ear, pipe = connected(timers=timers)
    stream = iter(encode_frame(Kind.RESULT, b"x" * 2000))
    reads = 0
    while pipe.reading:
        channel.data_received(bytes([next(stream)]))
        reads += 1
    assert reads <= FRAMES_A_WINDOW + 1
    timers.fire()
    assert pipe.reading
    for byte in stream:
        channel.data_received(bytes([byte]))
        if not pipe.reading:
            timers.fire()
    assert ear.heard == [(Kind.RESULT, b"x" * 2000)]


async def test_a_channel_that_is_paused_hears_nothing_of_what_it_has_read() -> None:
    """The caller of a stream takes no more: a read of 256 KiB of tiny frames is not handed on all the same."""
    channel, ear, pipe = connected()
    channel.pause()
    channel.data_received(encode_frame(Kind.CHUNK, b"x") * 3)
    assert (ear.heard, pipe.reading) == ([], False)
    channel.resume()
    await asyncio.sleep(0)
    assert (ear.heard, pipe.reading) == ([(Kind.CHUNK, b"xxx")], True)


def test_the_line_is_fair_and_moves_once_an_interval() -> None:
    """Two floods have a turn each in turn; a third one comes behind them."""
    timers, seen = Timers(), ""
    turns = Turns(timers.call_later)

    def flood(name: str) -> None:
        nonlocal seen
        seen += name
        turns.wait(lambda: flood(name))

    turns.wait(lambda: flood("a"))
    turns.wait(lambda: flood("b"))
    for _ in range(3):
        timers.fire()
    turns.wait(lambda: flood("c"))
    for _ in range(5):
        timers.fire()
    assert seen == "ababacba"


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.001, WINDOW_S]), st.integers(1, 5))))
def test_an_allowance_is_never_exceeded_in_its_window(steps: list[tuple[float, int]]) -> None:
    """Whatever is spent when, no window has more than its own."""
    now, window, spent = 1.0, 1.0, 0
    allowance = Allowance(10, lambda: now)
    for wait_s, count in steps:
        now += wait_s
        if now >= window + WINDOW_S:
            window, spent = now, 0
        left = allowance.left()
        assert left == max(0, 10 - spent)
        allowance.spend(count)
        spent += count


@settings(max_examples=20)  # of 6 MiB
@given(st.integers(1, 70_000))
def test_a_result_over_the_limit_is_thrown_away_and_the_next_frame_is_read(piece: int) -> None:
    """An honest mistake of the function: the runtime may go on, and 4 GiB are not kept to find that out."""
    timers = Timers()
    channel, ear, _ = connected(timers=timers)
    body = bytes(MAX_RESULT_BYTES + 1)
    stream = encode_frame(Kind.RESULT, body[:-1] + b"x") + encode_frame(Kind.RESULT, b"next")
    step = max(piece, 20_000)
    for start in range(0, len(stream), step):
        channel.data_received(stream[start : start + step])
        while timers.due:
            timers.fire()
        assert len(channel._buffer) <= HEADER.size
    assert ear.heard == ["too large", (Kind.RESULT, b"next")]


def test_nothing_is_heard_after_a_violation() -> None:
    """What follows garbage is garbage."""
    channel, ear, _ = connected()
    channel.data_received(
        encode_frame(Kind.CHUNK, b"a") + HEADER.pack(1, 99, KEY) + b"z" + encode_frame(Kind.RESULT, b"b")
    )
    assert ear.heard == [(Kind.CHUNK, b"a"), "frame of unknown kind 99"]


def test_a_long_frame_is_written_as_fast_as_it_is_taken() -> None:
    """What the runtime does not read yet stays in pieces."""
    channel, _, pipe = connected(narrow=True)
    channel.send([b"1", b"2", b"3"], KEY)
    channel.send([b"4"], KEY)
    assert pipe.written == [b"1"]
    for count in (2, 3, 4, 4):
        pipe.take()
        assert pipe.written == [b"1", b"2", b"3", b"4"][:count]


def test_a_channel_that_is_closed_writes_no_more() -> None:
    """What the runtime had not read is dropped with it."""
    channel, _, pipe = connected(narrow=True)
    channel.send([b"1", b"2"], KEY)
    channel.close()
    channel.send([b"3"], KEY)
    pipe.take()
    assert pipe.written == [b"1"]


def test_a_channel_whose_other_end_is_closed_holds_nothing() -> None:
    """The agent hears of the process's end later; until then it would keep an event of 6 MiB."""
    channel, ear, _ = connected(narrow=True)
    channel.send([b"1", b"2"], KEY)
    channel.connection_lost(None)
    channel.send([b"3"], KEY)
    assert ear.heard == ["ended"]
    assert not channel._unsent


async def test_other_work_is_done_between_the_pieces_of_a_long_frame() -> None:
    """A whole event of 6 MiB at once would keep the agent from all other calls for a millisecond."""
    channel, _, pipe = connected()
    pieces = [bytes([number]) for number in range(20)]
    channel.send(pieces, KEY)
    seen = [len(pipe.written)]
    while seen[-1] < len(pieces):
        await asyncio.sleep(0)
        seen.append(len(pipe.written))
    assert pipe.written == pieces
    assert len(set(seen)) >= 5
