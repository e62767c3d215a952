"""Batched, interleaved frames on one stream: the sending half, shared by SDK, scheduler and node agent.

A `FrameWriter` owns the writing side of a stream. Whoever has a frame appends it; one task sends everything that
waits as one message and waits for that write to finish. Nothing waits for a timer: when idle a frame leaves at once,
under load a message carries dozens.

Short frames (openings, answers up to 64 KiB, credit) go first, in order. Bodies over 64 KiB are `Body` objects: they
have a share of every batch and take turns, one piece each. A piece is only sent while the receiver has given credit for
that call, so that a large or slow call delays only itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAX_FRAME_BYTES = 64 * 1024
"""Largest payload in one frame; what is longer is a body."""

PIECE_BYTES = 32 * 1024
"""What a body is cut into. On two cores beside two clients of 6 MB, small calls have a p99 of 3.8 ms with these pieces,
of 4.3 with twice the size and of 3.0 with half; a 6 MB call alone takes 45, 32 or 65 ms."""

_JOINED_BYTES = 4096
"""Pieces that wait are joined up to this size: a frame costs much more than its bytes when those are few."""

INITIAL_CREDIT_BYTES = PIECE_BYTES
"""Credit of a call when it starts, in each direction: one piece. It bounds what a call makes others hold, and it paces
large calls, so that they leave the cores to small ones."""

GRANT_AT_BYTES = INITIAL_CREDIT_BYTES // 2
"""A receiver gives credit back once it has this much: seldom enough to cost little. A sender whose body has been taken
has more than the rest, so it waits for no less than that: any less would leave in crumbs."""

MAX_PAYLOAD_BYTES = 6 * 1024 * 1024
"""Largest request payload (AWS Lambda quotas, synchronous invocation)."""

MAX_RESPONSE_BYTES = MAX_PAYLOAD_BYTES + 100
"""Largest buffered response; AWS's check allows 100 bytes more than the quota says."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Bound of one message, by gRPC or over TCP: room for a unary 6 MiB payload and for a full batch."""

_BATCH_BYTES = PIECE_BYTES
"""A batch is closed once it holds this much: one piece of a body, so that who comes next waits for one and no more."""

_BODIES_SHARE_BYTES = _BATCH_BYTES // 2
"""What short frames leave of a batch while bodies wait."""

_BATCH_FRAMES = 256
"""Most frames in a batch; at this size the cost of the message itself no longer shows."""

_GATHER_FROM_CALLS = 5
"""Calls in flight from which more frames are likely to come at once. With fewer each frame leaves as soon as it can."""

_GATHER_TURNS = 16
"""Most turns of the event loop in which a stream waits for more frames."""

_IDLE_TURNS = 4
"""Turns that brought nothing, after which nothing more is waited for."""

_FRAME_OVERHEAD_BYTES = 64
"""What a frame costs besides its payload, for the batch's bound."""

FrameT = TypeVar("FrameT")


class Body(Generic[FrameT]):
    """One direction of one call whose body is longer than a frame.

    Pieces are pushed by the side that has them and leave in order while there is credit. `on_sent` tells the bytes that
    left, which is how a relay passes credit on to its own sender. Short frames that were sent before the body was made,
    its call's OPEN among them, leave before its first piece.
    """

    __slots__ = ("_after", "_buffered", "_credit", "_end", "_make_data", "_on_sent", "_pieces", "_queued", "_writer")

    def __init__(
        self,
        writer: FrameWriter[FrameT],
        make_data: Callable[[bytes], FrameT],
        on_sent: Callable[[int], None] | None = None,
    ) -> None:
        self._writer = writer
        self._make_data = make_data
        self._on_sent = on_sent
        self._pieces: deque[bytes | memoryview] = deque()
        self._buffered = 0
        self._credit = INITIAL_CREDIT_BYTES
        self._end: FrameT | None = None
        self._queued = False
        self._after = writer._sent  # noqa: SLF001 - two halves of one mechanism

    @property
    def buffered_bytes(self) -> int:
        """Bytes pushed and not yet sent."""
        return self._buffered

    def push(self, payload: bytes | memoryview) -> None:
        """Add to the body. Anything longer than a piece is cut, and copied only when it leaves."""
        if len(payload) <= PIECE_BYTES:
            if self._pieces and len(self._pieces[-1]) + len(payload) <= _JOINED_BYTES:
                self._pieces[-1] = b"".join((self._pieces[-1], payload))
            elif payload:
                self._pieces.append(payload)
        else:
            view = memoryview(payload)
            self._pieces.extend(view[start : start + PIECE_BYTES] for start in range(0, len(view), PIECE_BYTES))
        self._buffered += len(payload)
        self._wake()

    def finish(self, end: FrameT) -> None:
        """Send `end` after the last piece."""
        self._end = end
        self._wake()

    def grant(self, credit_bytes: int) -> None:
        """The receiver can take more."""
        self._credit += credit_bytes
        self._wake()

    def abandon(self) -> None:
        """Send nothing more. What was buffered is dropped."""
        self._pieces.clear()
        self._buffered = 0
        self._end = None

    def _wake(self) -> None:
        if not self._queued and self._sendable():
            self._queued = True
            self._writer._enqueue(self)  # noqa: SLF001 - two halves of one mechanism

    def _sendable(self) -> bool:
        if self._pieces:
            return self._credit >= min(len(self._pieces[0]), INITIAL_CREDIT_BYTES - GRANT_AT_BYTES)
        return self._end is not None

    def _next_frame(self) -> tuple[FrameT, int] | None:
        """Take the next frame for the batch, and its size; None when it must wait. Called by the writer."""
        if not self._sendable():
            return None
        if not self._pieces:
            end, self._end = self._end, None
            assert end is not None
            return end, MAX_FRAME_BYTES
        piece = self._pieces.popleft()
        if len(piece) > self._credit:
            whole = memoryview(piece)
            piece = whole[: self._credit]
            self._pieces.appendleft(whole[self._credit :])
        size = len(piece)
        self._buffered -= size
        self._credit -= size
        if self._on_sent is not None:
            self._on_sent(size)
        return self._make_data(bytes(piece)), size


def _no_calls() -> int:
    return 0


class FrameWriter(Generic[FrameT]):
    """The writing side of a stream: batches by itself, one write in flight.

    Args:
        write: Sends a batch as one message and returns when the stream has taken it.
        calls_in_flight: Tells how many calls the stream carries; from `_GATHER_FROM_CALLS` on frames are gathered.
        high_water_frames: Above this many waiting frames `wait_writable` waits. It bounds what a peer that does not
            read can make us hold; callers that produce frames from input stop reading the input meanwhile.
    """

    def __init__(
        self,
        write: Callable[[list[FrameT]], Awaitable[None]],
        calls_in_flight: Callable[[], int] = _no_calls,
        *,
        high_water_frames: int = 4096,
    ) -> None:
        self._write = write
        self._calls_in_flight = calls_in_flight
        self._high_water_frames = high_water_frames
        self._frames: deque[tuple[FrameT, int]] = deque()
        self._bodies: deque[Body[FrameT]] = deque()
        self._wakeup: asyncio.Future[None] | None = None
        self._drained: asyncio.Event = asyncio.Event()
        self._drained.set()
        self._closing = False
        # Short frames ever sent, and how many of them have been put into a batch.
        self._sent = 0
        self._taken = 0

    def send(self, frame: FrameT, size: int = 0) -> None:
        """Append a short frame with a payload of `size` bytes, at most 64 KiB."""
        self._frames.append((frame, size))
        self._sent += 1
        if self._wakeup is not None:
            self._wake()
        elif len(self._frames) > self._high_water_frames:
            self._drained.clear()

    @property
    def waiting_frames(self) -> int:
        """Short frames that wait to be sent."""
        return len(self._frames)

    async def wait_writable(self) -> None:
        """Return once fewer frames than the high-water mark wait."""
        await self._drained.wait()

    def close(self) -> None:
        """Send what waits, then let `run` return."""
        self._closing = True
        self._wake()

    async def run(self) -> None:
        """Send batches until closed or the stream fails; the stream's own exception goes up."""
        loop = asyncio.get_running_loop()
        while True:
            if self._frames and self._calls_in_flight() >= _GATHER_FROM_CALLS:
                await self._gather()
            batch = self._take_batch()
            if batch:
                await self._write(batch)
            elif self._closing:
                return
            else:
                self._wakeup = loop.create_future()
                await self._wakeup

    async def _gather(self) -> None:
        """Let more frames join those that wait, for as long as more come.

        No timer: each turn of the event loop runs what is ready, and the fourth that brings nothing ends it.
        """
        idle_turns = 0
        for _ in range(_GATHER_TURNS):
            waiting = len(self._frames)
            await asyncio.sleep(0)
            if len(self._frames) == waiting:
                idle_turns += 1
            if idle_turns == _IDLE_TURNS:
                return

    def _wake(self) -> None:
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None and not wakeup.done():
            wakeup.set_result(None)

    def _enqueue(self, body: Body[FrameT]) -> None:
        self._bodies.append(body)
        self._wake()

    def _take_batch(self) -> list[FrameT]:
        batch: list[FrameT] = []
        room = _BATCH_BYTES
        frames = self._frames
        kept = _BODIES_SHARE_BYTES if self._bodies else 0
        while frames and room > kept and len(batch) < _BATCH_FRAMES:
            frame, size = frames.popleft()
            batch.append(frame)
            room -= size + _FRAME_OVERHEAD_BYTES
        self._taken += len(batch)
        if len(frames) <= self._high_water_frames:
            self._drained.set()
        # One piece of each body in turn, round after round while there is room; one in any case.
        room = max(room, 1)
        not_open = 0
        while self._bodies and room > 0 and not_open < len(self._bodies):
            body = self._bodies.popleft()
            if body._after > self._taken:  # noqa: SLF001 - two halves of one mechanism
                self._bodies.append(body)
                not_open += 1
                continue
            body._queued = False  # noqa: SLF001 - two halves of one mechanism
            if (taken := body._next_frame()) is None:  # noqa: SLF001 - as above
                continue
            batch.append(taken[0])
            room -= taken[1]
            body._wake()  # noqa: SLF001 - as above
        return batch
