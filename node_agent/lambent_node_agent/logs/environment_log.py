"""The log of one execution environment: lines in, batches out."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from lambent.v1 import log_pb2
from lambent_node_agent.logs.line_assembler import MAX_LINE_BYTES, LineAssembler, lines_in

if TYPE_CHECKING:
    from lambent_node_agent.logs.budget import IngestBudget

# A message of this size costs JetStream little more than a small one; 200 ms is soon enough for a person who watches.
BATCH_BYTES: Final = 64 * 1024
BATCH_DELAY_S: Final = 0.2
TAIL_BYTES: Final = 4096  # AWS Lambda: LogType=Tail gives the last 4 KB

# What a line costs the budget beside its text; CloudWatch Logs bills 26. Whoever reads the log pays for each line.
_LINE_OVERHEAD_BYTES: Final = 32
# What an entry takes in a batch beside its text: a time stamp and lengths.
_ENTRY_OVERHEAD_BYTES: Final = 32


@dataclass(slots=True)
class Drops:
    """Lines that were lost and not reported yet."""

    events: int = 0
    size_bytes: int = 0

    def add(self, events: int, size_bytes: int) -> None:
        """Count more."""
        self.events += events
        self.size_bytes += size_bytes

    def take(self) -> tuple[int, int]:
        """Give lines and bytes, which are reported now, and start from nothing."""
        taken = self.events, self.size_bytes
        self.events = self.size_bytes = 0
        return taken


class _Entry(NamedTuple):
    """What waits to be put into a batch as one: a line, or lines that were read together.

    Attributes:
        time_ns: When it was read, since the epoch.
        text: Without a newline at its end.
        lines: Events that it holds.
    """

    time_ns: int
    text: bytes
    lines: int

    @property
    def size_bytes(self) -> int:
        """Bytes of its lines."""
        return len(self.text) - (self.lines - 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """One message for the log streams."""

    subject: str
    payload: bytes
    events: int
    """Lines that are lost with the batch: its own, and those whose loss it reports."""
    size_bytes: int
    """Bytes of those lines."""
    drops: Drops
    """Where to count them if the batch is lost on its way."""


class BatchSink(Protocol):
    """Takes batches away without waiting."""

    def offer(self, batch: Batch) -> bool:
        """Take a batch; False when there is no room."""


class _Tail:
    """The last 4 KiB of what one invocation logged."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, lines: bytes) -> None:
        self._data += lines[-TAIL_BYTES:]
        self._data += b"\n"
        if len(self._data) > 2 * TAIL_BYTES:
            del self._data[:-TAIL_BYTES]

    def take(self) -> bytes:
        return bytes(self._data[-TAIL_BYTES:])


class EnvironmentLog:
    """Assembles lines, keeps the tail, and hands batches to the publisher; never waits.

    Args:
        stream_name: AWS-shaped name, see `log_stream_name`.
        subject: Subject of the function in the log streams.
        node_id: Node of the environment.
        sink: Takes the batches.
        budget: Bounds what the function may log; the platform's own lines are not counted against it.
    """

    def __init__(self, *, stream_name: str, subject: str, node_id: str, sink: BatchSink, budget: IngestBudget) -> None:
        self.stream_name = stream_name
        self._subject = subject
        self._node_id = node_id
        self._sink = sink
        self._budget = budget
        self._assembler = LineAssembler()
        self._entries: list[_Entry] = []
        self._size_bytes = 0
        self._drops = Drops()
        self._tail: _Tail | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def output(self, data: bytes) -> None:
        """Take what the function printed, at most 64 KiB."""
        self._blocks(self._assembler.feed(data))

    def end_output(self) -> None:
        """Make an incomplete line a line: something else is to follow it."""
        self._blocks(self._assembler.flush())

    def platform(self, line: str) -> None:
        """Write a line of the platform's own. What was printed before is complete."""
        data = line.encode()
        if self._tail is not None:
            self._tail.add(data)
        self._append(_Entry(time.time_ns(), data, 1))

    def begin_tail(self) -> None:
        """Start to keep the last 4 KiB."""
        self._tail = _Tail()

    def take_tail(self) -> bytes:
        """Give what `begin_tail` started, and stop keeping it. Empty when nothing was started."""
        tail, self._tail = self._tail, None
        return b"" if tail is None else tail.take()

    def close(self) -> None:
        """Hand over everything that waits."""
        self.end_output()
        self.flush()
        if self._drops.events:  # no line follows that would bring it along
            self._hand_over()

    def flush(self) -> None:
        """Hand the waiting lines to the publisher now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._entries:
            self._hand_over()

    def _hand_over(self) -> None:
        entries, self._entries, self._size_bytes = self._entries, [], 0
        dropped_events, dropped_bytes = self._drops.take()
        payload = self._encode(entries, dropped_events, dropped_bytes)
        events = dropped_events + sum(entry.lines for entry in entries)
        size_bytes = dropped_bytes + sum(entry.size_bytes for entry in entries)
        if not self._sink.offer(Batch(self._subject, payload, events, size_bytes, self._drops)):
            self._drops.add(events, size_bytes)

    def _blocks(self, blocks: list[bytes]) -> None:
        """Keep each block whole, or drop it whole and count its lines."""
        if not blocks:
            return
        now_ns = time.time_ns()
        now = time.monotonic()
        for block in blocks:
            if self._tail is not None:
                self._tail.add(block)
            entry = _Entry(now_ns, block, lines_in(block))
            if self._budget.take(self._subject, entry.size_bytes + entry.lines * _LINE_OVERHEAD_BYTES, now):
                self._append(entry)
            else:
                self._drops.add(entry.lines, entry.size_bytes)

    def _append(self, entry: _Entry) -> None:
        self._entries.append(entry)
        self._size_bytes += len(entry.text) + _ENTRY_OVERHEAD_BYTES
        if self._size_bytes >= BATCH_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(BATCH_DELAY_S, self.flush)

    def _encode(self, entries: list[_Entry], dropped_events: int, dropped_bytes: int) -> bytes:
        if dropped_events:
            first_ns = entries[0].time_ns if entries else time.time_ns()
            entries = [_Entry(first_ns, _dropped_line(first_ns, dropped_events, dropped_bytes), 1), *entries]
        batch = log_pb2.LogBatch(log_stream=self.stream_name, node_id=self._node_id)
        for entry in entries:
            event = batch.events.add(message=_text(entry.text))
            event.event_time.seconds, event.event_time.nanos = divmod(entry.time_ns, 1_000_000_000)
            if entry.lines > 1:
                event.lines = entry.lines
        return batch.SerializeToString()


def log_stream_name(now: datetime, version: str, environment_id: str) -> str:
    """Name of an environment's log stream: YYYY/MM/DD/[version]<32 hex digits>."""
    return f"{now:%Y/%m/%d}/[{version}]{environment_id.replace('-', '')}"


def wall_time() -> str:
    """Now, as AWS writes it in log lines: ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        # A byte that is no text becomes three; the bound of a line holds after that too.
        return line.decode(errors="replace").encode()[:MAX_LINE_BYTES].decode(errors="ignore")


def _dropped_line(now_ns: int, dropped_events: int, dropped_bytes: int) -> bytes:
    moment = datetime.fromtimestamp(now_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record = {
        "reason": "The function logs faster than its budget or than the log streams take it",
        "droppedRecords": dropped_events,
        "droppedBytes": dropped_bytes,
    }
    return json.dumps({"time": moment, "type": "platform.logsDropped", "record": record}).encode()
