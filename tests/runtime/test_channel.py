"""Frames between agent and runtime survive any cutting and refuse what is not a frame."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_runtime.channel import (
    FROM_AGENT,
    FROM_RUNTIME,
    HEADER,
    MAX_EVENT_BYTES,
    MAX_RESULT_BYTES,
    BlockingChannel,
    FrameParser,
    InvokeHeader,
    Kind,
    ProtocolError,
    decode_invoke,
    encode_frame,
    encode_invoke,
)

frames = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([Kind.RESULT, Kind.ERROR, Kind.CHUNK]), st.binary(max_size=40)),
        st.tuples(st.sampled_from([Kind.READY, Kind.STREAM_END]), st.just(b"")),
    ),
    max_size=6,
)


@given(frames, st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_frames_come_out_as_they_went_in(sent: list[tuple[Kind, bytes]], cuts: list[int]) -> None:
    """A stream socket may cut anywhere; no cut may change what was said."""
    stream = b"".join(encode_frame(kind, body) for kind, body in sent)
    parser = FrameParser(FROM_RUNTIME)
    received: list[tuple[Kind, bytes]] = []
    position = 0
    for index in range(len(stream)):
        size = cuts[index % len(cuts)]
        received += parser.feed(stream[position : position + size])
        position += size
    assert received == sent
    assert parser.buffered_bytes == 0


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for_within_bounds(data: bytes) -> None:
    """Function code can write anything to its channel: the agent neither fails otherwise nor buffers without bound."""
    parser = FrameParser(FROM_RUNTIME)
    try:
        for kind, body in parser.feed(data):
            assert len(body) <= FROM_RUNTIME[kind]
    except ProtocolError:
        return
    assert parser.buffered_bytes <= len(data)


@pytest.mark.parametrize(
    ("kind", "length"),
    [(Kind.RESULT, MAX_RESULT_BYTES + 1), (Kind.READY, 1), (Kind.CHUNK, 64 * 1024 + 1), (Kind.INVOKE, 10), (99, 0)],
)
def test_a_frame_over_its_bound_is_refused_by_its_header_alone(kind: int, length: int) -> None:
    """The agent must not wait for, or store, a body that it will not take."""
    with pytest.raises(ProtocolError) as caught:
        list(FrameParser(FROM_RUNTIME).feed(HEADER.pack(length, kind)))
    assert (caught.value.kind, caught.value.length) == (kind, length)


def test_frames_before_a_broken_one_are_delivered() -> None:
    """An answer that was complete counts, whatever the function writes after it."""
    parser = FrameParser(FROM_RUNTIME)
    cut = parser.feed(encode_frame(Kind.RESULT, b"1") + b"\xff" * 5)
    assert next(cut) == (Kind.RESULT, b"1")
    with pytest.raises(ProtocolError):
        next(cut)


@given(
    st.text(max_size=20), st.integers(0, 2**50), st.text(max_size=20), st.none() | st.text(), st.booleans(), st.binary()
)
def test_an_invocation_arrives_as_it_was_sent(
    request_id: str, deadline_ms: int, trace_id: str, context: str | None, streaming: bool, event: bytes
) -> None:
    """Header and event reach the handler unchanged, whatever they contain."""
    header = InvokeHeader(request_id, deadline_ms, "arn", trace_id, client_context=context, streaming=streaming)
    [(kind, body)] = FrameParser(FROM_AGENT).feed(encode_invoke(header, event))
    got, got_event = decode_invoke(body)
    assert kind is Kind.INVOKE
    assert got_event == event
    assert all(getattr(got, name) == getattr(header, name) for name in InvokeHeader.__slots__)


def test_an_event_over_six_mebibytes_is_refused_before_it_is_sent() -> None:
    """AWS's bound on the payload; the front door has its own check."""
    with pytest.raises(ValueError, match="6291457 bytes"):
        encode_invoke(InvokeHeader("r", 0, "a"), b"x" * (MAX_EVENT_BYTES + 1))


@pytest.mark.parametrize("body", [b"", b"\x00\x09{}", b"\x00\x02[]", b"\x00\x02{}", b'\x00\x0e{"nonsense":1}'])
def test_a_malformed_invocation_is_refused(body: bytes) -> None:
    """A function's process may write to its own side; what comes back must not be taken for an invocation."""
    with pytest.raises(ProtocolError):
        decode_invoke(body)


def test_the_runtime_reads_a_large_invocation_in_pieces() -> None:
    """Six mebibytes do not fit into a socket's buffer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frame = encode_invoke(InvokeHeader("r", 0, "a"), b"x" * 100_000)
        ours.sendall(frame[:3])
        ours.sendall(frame[3:])
        received = BlockingChannel(theirs).receive_invoke()
        assert received is not None
        assert received[1] == b"x" * 100_000


def test_the_runtime_sees_the_end_of_the_channel() -> None:
    """The agent closes the channel to end the process."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        assert BlockingChannel(theirs).receive_invoke() is None
