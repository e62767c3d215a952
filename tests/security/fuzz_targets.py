"""All that reads bytes which a sandbox, or another machine, may have made up: a function of an input for each.

A target raises AssertionError, or whatever else the code under it raises, when that breaks its word. The first bytes of
an input choose in which pieces the others come.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final

from google.protobuf.message import DecodeError

from lambent.message_stream import MessageStream
from lambent.v1 import node_pb2
from lambent_node_agent.environment import failures
from lambent_node_agent.logs.line_assembler import MAX_LINE_BYTES, MAX_OUTPUT_BYTES, LineAssembler, lines_in
from lambent_node_agent.sandbox.runtime_process import ExitStatus, is_end
from lambent_runtime import messages
from tests.security import fuzz_channel

_READ_BYTES: Final = (1, 2, 5, 13, 14, 64, 1000, MAX_OUTPUT_BYTES)
_FRAMES: Final = (1, 2, 1_000_000)
_MAX_MESSAGE_BYTES: Final = 4096
"""Of the network's messages here: a bound that inputs reach."""


def channel(data: bytes) -> None:
    """What a runtime, or function code in its place, writes to its channel."""
    size, frames, stream = _READ_BYTES[data[0] % 8], _FRAMES[data[1] % 3], data[2:]
    heard = fuzz_channel.feed(stream, itertools.repeat(size), frames)
    wanted = fuzz_channel.expected(stream, frames)
    assert heard == wanted, (heard, wanted)


def log(data: bytes) -> None:
    """What function code prints: no byte of it is lost, and no line is too long."""
    assembler, output = LineAssembler(), data[2:] * (1, 1, 1, 300)[data[1] % 4]
    lines: list[bytes] = []
    for piece in _cut(output, _READ_BYTES[4 + data[0] % 4]):
        for block in assembler.feed(piece):
            assert lines_in(block) == len(block.split(b"\n"))
            lines += block.split(b"\n")
        assert len(assembler._partial) <= MAX_LINE_BYTES
    assert all(len(line) <= MAX_LINE_BYTES for line in lines)
    rest = b"".join(assembler.flush())
    ends = output.count(b"\n")
    assert len(lines) >= ends
    assert b"".join([*lines, rest]) == output.replace(b"\n", b"")


def reaper(data: bytes) -> None:
    """What the first process of a sandbox says on its control socket."""
    try:
        message = messages.unpack(data[2:])
    except ValueError:
        return
    match message:
        case {"event": "exit", "generation": int(), "status": int(status)} if is_end(status):
            end = ExitStatus.from_wait_status(status, oom_killed=False)
            assert (end.code is None) != (end.signal is None)
            failures.exit_failure(end.code, end.signal, oom_killed=False)


def error_json(data: bytes) -> None:
    """The JSON of an error of init; its type stands in a log line."""
    failure = failures.init_failure(data[2:])
    assert failure.error_type.isprintable()
    assert 0 < len(failure.error_type) <= 256


def network(data: bytes) -> None:
    """What comes over the connection between scheduler and agent, at either end."""
    for parse in (node_pb2.EventBatch.FromString, node_pb2.OrderBatch.FromString):
        stream: MessageStream[node_pb2.NodeOrder, object] = MessageStream(parse)
        stream.max_message_bytes = _MAX_MESSAGE_BYTES
        for piece in _cut(data[2:], _READ_BYTES[data[0] % 8]):
            stream.data_received(piece)
            assert stream._error is not None or len(stream._partial) < _MAX_MESSAGE_BYTES + 4
        assert _messages(data[2:], parse) == (list(stream._messages), stream._error is not None)


def _messages(data: bytes, parse: Callable[[bytes], object]) -> tuple[list[object], bool]:
    """Whole messages of a stream, and whether something else stands behind them."""
    found: list[object] = []
    while len(data) >= 4:
        length = int.from_bytes(data[:4], "big")
        if length > _MAX_MESSAGE_BYTES:
            return found, True
        if len(data) < 4 + length:
            break
        try:
            found.append(parse(data[4 : 4 + length]))
        except DecodeError:
            return found, True
        data = data[4 + length :]
    return found, False


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "channel": channel,
    "log": log,
    "reaper": reaper,
    "error-json": error_json,
    "network": network,
}
"""Each takes any bytes, two at the least."""

SEEDS: Final[dict[str, tuple[bytes, ...]]] = {
    "channel": tuple(fuzz_channel.seeds(200)),
    "log": (b"a line\nanother\n\n", b"\n" * 300, b"x" * 3000, b"\xff\xfe\n"),
    "reaper": (
        b'{"event": "ready"}',
        b'{"event": "exit", "generation": 1, "status": 256}',
        b'{"event": "exit", "generation": 1, "status": 9}',
        b'{"event": "exit", "generation": 1, "status": 127}',
    ),
    "error-json": (b'{"errorType": "X", "errorMessage": "y", "stackTrace": []}', b"[" * 3000),
    "network": tuple(
        len(body).to_bytes(4, "big") + body
        for body in (
            b"",
            node_pb2.EventBatch(events=[node_pb2.NodeEvent(call_id=1)]).SerializeToString(),
            node_pb2.OrderBatch(orders=[node_pb2.NodeOrder(call_id=1)]).SerializeToString(),
        )
    ),
}
"""Beginnings for a fuzzer, without the two bytes that choose."""
