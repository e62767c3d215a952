"""What the opening of a call may say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent.errors import InvalidRequestContentError, RequestTooLargeError
from lambent.framing import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from lambent.v1 import invocation_pb2

LONGEST_WAIT_S = 86_400
LONGEST_WAIT_US = LONGEST_WAIT_S * 1_000_000
"""A caller who says that it will wait for a day or longer waits for as long as the function may run."""

_MAX_CLIENT_CONTEXT_BYTES = 3_583
"""AWS Lambda, Invoke: X-Amz-Client-Context."""

_MAX_TRACEPARENT_CHARACTERS = 55
"""W3C Trace Context, version 00."""


def check_opening(opening: invocation_pb2.InvocationOpen) -> None:
    """Refuse an opening that is over a bound.

    Raises:
        RequestTooLargeError: Its payload is over what a frame holds.
        InvalidRequestContentError: Something else is.
    """
    if len(opening.payload) > MAX_FRAME_BYTES:
        raise RequestTooLargeError(f"the opening of a call holds at most {MAX_FRAME_BYTES} bytes of its payload")
    if len(opening.client_context) > _MAX_CLIENT_CONTEXT_BYTES:
        raise InvalidRequestContentError(
            f"Client context must be no more than {_MAX_CLIENT_CONTEXT_BYTES} bytes; "
            f"this one has {len(opening.client_context)}"
        )
    if len(opening.traceparent) > _MAX_TRACEPARENT_CHARACTERS:
        raise InvalidRequestContentError(
            f"traceparent holds at most {_MAX_TRACEPARENT_CHARACTERS} characters (W3C Trace Context); "
            f"this one has {len(opening.traceparent)}"
        )
