"""Fuzzes the parser of what a runtime writes to its channel: `python -m tests.security.fuzz_channel --inputs 1000000`.

An input is what one runtime writes from its start to its end: frames, frames with damage, or noise, in the pieces in
which a socket may deliver it. The parser must not raise, must keep no more than the one frame that is incomplete, must
be done within its time, and must hear what a parser of the whole input, written as simply as can be, hears; by turns
what is over the environment's allowance.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from lambent_node_agent.environment import failures
from lambent_node_agent.environment.channel import FRAMES_A_TURN, FRAMES_A_WINDOW, RuntimeChannel
from lambent_node_agent.environment.turns import Turns
from lambent_runtime.channel import FROM_RUNTIME, HEADER, MAX_RESULT_BYTES, NO_KEY, Kind

MAX_CPU_S: Final = 1.0
"""For one input; the largest takes some milliseconds. CPU time, so that a busy machine does not matter."""
_READ_BYTES: Final = 256 * 1024
"""What asyncio reads at once, `_SelectorSocketTransport.max_size`."""
_LONG_INPUTS_PER_MILLION: Final = 200
"""How many have a body of 6 MiB: a thousand times slower than the others."""
_SEED: Final = 20_260_117

_BOUNDS: Final = sorted(set(FROM_RUNTIME.values()))
_LENGTHS: Final = (0, 1, 2, 255, 256, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, *_BOUNDS, *(size + 1 for size in _BOUNDS))
_KINDS: Final = (*FROM_RUNTIME, Kind.INVOKE, 0, 9, 18, 127, 255)
_TEXTS: Final = (b"", b"null", b'{"errorType":"X","errorMessage":"y"}', b'{"errorType":"a\\tb"}', b"[" * 4000, b"\xff{")

_KEY: Final = b"the call"
_KEYS: Final = (_KEY, _KEY, _KEY, NO_KEY, b"its past")

Heard = list[tuple[int, bytes] | str]


class _Pipe(asyncio.Transport):
    """A transport that notes whether it is open and whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.open = self.reading = True

    def abort(self) -> None:
        self.open = False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class _Listener:
    """Notes what is heard; closes the channel after so many frames, as the agent does when an environment ends."""

    def __init__(self, frames: int) -> None:
        self.heard: Heard = []
        self.frames = 0
        self.channel: RuntimeChannel | None = None
        self._most = frames

    def frame_received(self, kind: int, body: bytes) -> None:
        assert len(body) <= FROM_RUNTIME[kind]
        self._hear((kind, body))
        if kind == Kind.INIT_ERROR:
            failures.init_failure(body)

    def result_too_large(self) -> None:
        self._hear("too large")

    def stray_frame(self, kind: int) -> None:
        assert kind in FROM_RUNTIME
        self._hear("stray")

    def protocol_violated(self, what: str) -> None:
        assert what
        self.heard.append("violation")

    def channel_ended(self) -> None:
        raise AssertionError("nobody has ended it")

    def _hear(self, what: tuple[int, bytes] | str) -> None:
        self.frames += 1
        join(self.heard, what)
        if isinstance(what, tuple) and what[0] != Kind.CHUNK and len(self.heard) >= self._most:
            assert self.channel is not None
            self.channel.close()


def join(heard: Heard, what: tuple[int, bytes] | str) -> None:
    """Append it; CHUNKs that follow one another are one, for how many of them come at once is left open."""
    last = heard[-1] if heard else ""
    if isinstance(what, tuple) and isinstance(last, tuple) and what[0] == last[0] == Kind.CHUNK and what[1]:
        heard[-1] = (Kind.CHUNK, last[1] + what[1])
    else:
        heard.append(what)


def expected(stream: bytes, frames: int) -> Heard:
    """What is to be heard of a whole input; it ends with an answer once there are so many."""
    heard: Heard = []
    position = 0
    while len(stream) - position >= HEADER.size:
        length, kind, key = HEADER.unpack_from(stream, position)
        limit = FROM_RUNTIME.get(kind, -1)
        if length > limit and kind != Kind.RESULT:
            heard.append("violation")
            break
        end = position + HEADER.size + length
        if key != _KEY:
            heard.append("stray")
        elif len(stream) < end:
            break
        elif length > limit:
            heard.append("too large")
        else:
            join(heard, (kind, stream[position + HEADER.size : end]))
            if kind != Kind.CHUNK and len(heard) >= frames:
                break
        position = end
    return heard


def feed(stream: bytes, pieces: Iterator[int], frames: int) -> Heard:
    """Give an input to a channel in pieces of these sizes, and let it have its turns.

    Returns:
        What was heard.

    Raises:
        AssertionError: More was kept than one incomplete frame, or more was heard at once than is allowed.
    """
    due: list[Callable[[], None]] = []
    listener, pipe = _Listener(frames), _Pipe()
    channel = listener.channel = RuntimeChannel(listener, Turns(lambda _, call: due.append(call)))
    channel.connection_made(pipe)
    channel.send([], _KEY)
    position = 0
    while pipe.open and position < len(stream):
        end = position + next(pieces)
        before = listener.frames
        channel.data_received(stream[position:end])
        assert listener.frames - before <= FRAMES_A_WINDOW
        while not pipe.reading and pipe.open:
            before = listener.frames
            due.pop()()
            assert listener.frames - before <= FRAMES_A_TURN
        position = end
        _check_what_is_kept(channel, pipe)
    assert pipe.open or not channel._buffer
    return listener.heard


def _check_what_is_kept(channel: RuntimeChannel, pipe: _Pipe) -> None:
    kept = channel._buffer
    if pipe.open and len(kept) >= HEADER.size:
        length, kind, key = HEADER.unpack_from(kept)
        assert key == _KEY
        assert length <= FROM_RUNTIME[kind], (length, kind)
        assert len(kept) < HEADER.size + length, (len(kept), length)


def _frame(chance: random.Random) -> bytes:
    kind = chance.choice(tuple(FROM_RUNTIME))
    size = min(FROM_RUNTIME[kind], chance.choice((0, 1, 7, 30, 300)))
    body = chance.choice(_TEXTS)[: FROM_RUNTIME[kind]] if chance.random() < 0.3 else chance.randbytes(size)
    return HEADER.pack(len(body), kind, chance.choice(_KEYS)) + body


def _frames(chance: random.Random) -> bytes:
    return b"".join(_frame(chance) for _ in range(chance.randrange(1, 9)))


def _noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(0, 200))


def _headers(chance: random.Random) -> bytes:
    """Headers of any length and kind, with less behind them than they say, or more."""
    return b"".join(
        HEADER.pack(chance.choice(_LENGTHS), chance.choice(_KINDS), chance.choice(_KEYS))
        + chance.randbytes(chance.choice((0, 1, 5, 256)))
        for _ in range(chance.randrange(1, 5))
    )


def _tiny(chance: random.Random) -> bytes:
    kind = chance.choice(_KINDS)
    size = 1 if kind == Kind.CHUNK else 0
    return (HEADER.pack(size, kind, chance.choice(_KEYS)) + bytes(size)) * chance.choice((1, 100, 3000))


def _damaged(chance: random.Random) -> bytes:
    data = bytearray(_frames(chance))
    for _ in range(chance.randrange(1, 4)):
        place, size = chance.randrange(len(data) + 1), chance.choice((1, 2, 5, 50))
        match chance.randrange(5):
            case 0 if place < len(data):
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                del data[place : place + size]
            case 2:
                data[place:place] = chance.randbytes(size)
            case 3:
                data[place:place] = data[place : place + size]
            case _:
                header = HEADER.pack(chance.choice(_LENGTHS), chance.choice(_KINDS), chance.choice(_KEYS))
                data[place : place + HEADER.size] = header
    return bytes(data)


def _long(chance: random.Random) -> bytes:
    """A RESULT about as long as it may be, and what follows it."""
    length = MAX_RESULT_BYTES + chance.choice((-1, 0, 1, 100_000))
    return HEADER.pack(length, Kind.RESULT, chance.choice(_KEYS)) + bytes(length) + _frames(chance)


_MAKERS: Final[tuple[Callable[[random.Random], bytes], ...]] = (_frames, _noise, _headers, _damaged, _damaged, _tiny)


def _pieces(chance: random.Random, size: int) -> Iterator[int]:
    """Sizes of the pieces in which a socket delivers so much."""
    most = chance.choice((1, 3, 6, 100, _READ_BYTES) if size <= 3000 else (4096, 65_537, _READ_BYTES))
    while True:
        yield most if most in (1, _READ_BYTES) else chance.randrange(1, most + 1)


def seeds(count: int) -> list[bytes]:
    """So many short inputs, of every maker."""
    made = [_MAKERS[number % len(_MAKERS)](random.Random(number)) for number in range(count)]
    return [stream for stream in made if len(stream) < 4096]


def run(inputs: int, seed: int = _SEED) -> int:
    """Feed so many inputs; the same seed gives the same ones.

    Returns:
        How many frames were heard.

    Raises:
        AssertionError: The parser broke its word; the message has the input's own seed.
    """
    heard = 0
    for number in range(inputs):
        chance = random.Random(f"{seed}/{number}")
        long = chance.randrange(1_000_000) < _LONG_INPUTS_PER_MILLION
        stream = _long(chance) if long else chance.choice(_MAKERS)(chance)
        frames = chance.choice((1, 2, 1_000_000))
        wanted = expected(stream, frames)
        started = time.thread_time()
        try:
            got = feed(stream, _pieces(chance, len(stream)), frames)
        except Exception as error:
            raise AssertionError(f"input {seed}/{number}: {error!r}") from error
        taken_s = time.thread_time() - started
        assert got == wanted, f"input {seed}/{number}: {got!r:.500}, not {wanted!r:.500}"
        assert taken_s < MAX_CPU_S, f"input {seed}/{number} of {len(stream)} bytes took {taken_s:.3f} s"
        heard += len(got)
    return heard


def main() -> int:
    """Run by hand, or for the whole million."""
    parser = argparse.ArgumentParser(description="Feed pseudo-random input to the parser of runtimes' channels.")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=_SEED)
    options = parser.parse_args()
    started = time.monotonic()
    heard = run(options.inputs, options.seed)
    print(f"{options.inputs} inputs, {heard} frames heard, {time.monotonic() - started:.1f} s, no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
