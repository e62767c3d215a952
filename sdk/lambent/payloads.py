"""Events and answers as bytes, and a function's failure as an exception."""

from __future__ import annotations

import json

from lambent.errors import FunctionError, InvalidRequestContentError, RequestTooLargeError
from lambent.framing import MAX_PAYLOAD_BYTES

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ASCII_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def encode_payload(payload: object) -> bytes:
    """Give the bytes of an event: bytes as they are, None as nothing (the function sees `{}`), the rest as JSON.

    Raises:
        InvalidRequestContentError: The value has no JSON form.
        RequestTooLargeError: More than 6,291,456 bytes (AWS Lambda quotas).
    """
    if payload is None:
        return b""
    encoded = bytes(payload) if isinstance(payload, bytes | bytearray | memoryview) else _encode_json(payload)
    if len(encoded) > MAX_PAYLOAD_BYTES:
        raise RequestTooLargeError(
            f"the payload has {len(encoded)} bytes; an invocation takes at most {MAX_PAYLOAD_BYTES}"
        )
    return encoded


def _encode_json(payload: object) -> bytes:
    try:
        try:
            return _ENCODER.encode(payload).encode()
        except UnicodeEncodeError:  # A lone surrogate has no UTF-8 form, but JSON can escape it.
            return _ASCII_ENCODER.encode(payload).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestContentError(
            f"the payload ({type(payload).__name__}) cannot be written as JSON: {error}; give plain values or bytes"
        ) from error


def function_error(payload: bytes, *, request_id: str, log_tail: bytes) -> FunctionError:
    """Read the error JSON of a failed function (AWS Lambda, `errorType`, `errorMessage`, `stackTrace`).

    What is not that JSON still gives an error: a runtime may send any text.
    """
    try:
        described = json.loads(payload)
    except (ValueError, RecursionError):
        described = None
    if not isinstance(described, dict):
        described = {"errorMessage": payload.decode(errors="replace")}
    trace = described.get("stackTrace") or described.get("trace") or ()
    return FunctionError(
        str(described.get("errorType") or "Error"),
        str(described.get("errorMessage") or ""),
        stack_trace=tuple(str(line) for line in trace) if isinstance(trace, list | tuple) else (str(trace),),
        request_id=request_id,
        payload=payload,
        log_tail=log_tail,
    )
