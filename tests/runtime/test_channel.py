"""The runtime's side of its channel: what the agent sends arrives unchanged, and nothing else is taken for it."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_runtime.channel import (
    FROM_AGENT,
    FROM_RUNTIME,
    HEADER,
    KEY_BYTES,
    MAX_EVENT_BYTES,
    NO_KEY,
    BlockingChannel,
    InvokeHeader,
    Kind,
    ProtocolError,
    decode_invoke,
    decode_ready,
    encode_invoke,
    encode_ready,
)

_NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)


_KEYS = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)


@given(_NAMES, st.integers(0, 2**50), _NAMES, st.none() | st.text(min_size=1), st.booleans(), st.binary(), _KEYS)
def test_an_invocation_arrives_as_it_was_sent(
    request_id: str, deadline_ms: int, trace_id: str, context: str | None, streaming: bool, event: bytes, key: bytes
) -> None:
    """Header and event reach the handler unchanged, whatever they contain."""
    header = InvokeHeader(
        request_id, deadline_ms, "arn", trace_id, client_context=context, streaming=streaming, key=key
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"".join(encode_invoke(header, event[:3], event[3:])))
        received = BlockingChannel(theirs).receive_invoke()
    assert received is not None
    got, got_event = received
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
        [frame] = encode_invoke(InvokeHeader("r", 0, "a"), b"x" * 100_000)
        ours.sendall(frame[:3])
        ours.sendall(frame[3:])
        received = BlockingChannel(theirs).receive_invoke()
        assert received is not None
        assert received[1] == b"x" * 100_000


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(0, Kind.READY, NO_KEY),
        HEADER.pack(FROM_AGENT[Kind.INVOKE] + 1, Kind.INVOKE, NO_KEY),
        HEADER.pack(10, Kind.INVOKE, NO_KEY),
        2 * b"".join(encode_invoke(InvokeHeader("r", 0, "a"), b"1")),
    ],
)
def test_what_is_no_invocation_is_refused(data: bytes) -> None:
    """The function's own processes may hold the agent's end of the channel open, and write to it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(ProtocolError):
            BlockingChannel(theirs).receive_invoke()


@given(st.integers())
def test_ready_says_how_long_loading_took_whatever_the_clock_says(load_us: int) -> None:
    """A module that replaces the clock must not keep its own runtime from coming up."""
    body = encode_ready(load_us)
    assert len(body) == FROM_RUNTIME[Kind.READY]
    assert decode_ready(body) == min(max(0, load_us), 2**32 - 1)


@given(st.binary(max_size=FROM_RUNTIME[Kind.READY]))
def test_any_body_of_ready_says_something(body: bytes) -> None:
    """Function code may have written it."""
    assert 0 <= decode_ready(body) < 2**32


def test_the_runtime_sees_the_end_of_the_channel() -> None:
    """The agent closes the channel to end the process."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        assert BlockingChannel(theirs).receive_invoke() is None
