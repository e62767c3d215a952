"""The opening of an invocation: the caller's options as they travel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lambent.errors import InvalidParameterError
from lambent.v1 import invocation_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_CALL_S = 960.0
"""Bound of a call without a timeout of its own: 900 s is the longest that a function runs, the rest is for waiting,
init and the way."""

_CLIENT_CONTEXT_BYTES = 3_583
"""Largest client context (AWS Lambda, `X-Amz-Client-Context`)."""


def make_opening(
    account: str,
    name: str,
    qualifier: str,
    timeout_s: float | None,
    *,
    log_tail: bool = False,
    client_context: Mapping[str, object] | None = None,
    traceparent: str = "",
) -> invocation_pb2.InvocationOpen:
    """Give the opening of one invocation, without its payload.

    Raises:
        InvalidParameterError: The timeout is not above 0, or the client context is no JSON or too large.
    """
    opening = invocation_pb2.InvocationOpen(function_name=name)
    if account:
        opening.account = account
    if qualifier:
        opening.qualifier = qualifier
    if timeout_s is not None:
        if not timeout_s > 0:
            raise InvalidParameterError(f"timeout_s is {timeout_s}; a call needs more than 0 s")
        opening.timeout_us = timeout_us(timeout_s)
    if log_tail:
        opening.log_tail = True
    if client_context is not None:
        opening.client_context = _encode_context(client_context)
    if traceparent:
        opening.traceparent = traceparent
    return opening


def timeout_us(timeout_s: float) -> int:
    """Give a timeout as it travels, in microseconds. 0 would mean no timeout."""
    # The wire's field has 64 bits; "as long as you like" is the longest call there is.
    return max(1, round(min(timeout_s, LONGEST_CALL_S) * 1_000_000))


def _encode_context(client_context: Mapping[str, object]) -> bytes:
    try:
        encoded = json.dumps(client_context, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(f"client_context cannot be written as JSON: {error}") from error
    if len(encoded) > _CLIENT_CONTEXT_BYTES:
        raise InvalidParameterError(
            f"client_context has {len(encoded)} bytes of JSON; at most {_CLIENT_CONTEXT_BYTES} are allowed"
        )
    return encoded
