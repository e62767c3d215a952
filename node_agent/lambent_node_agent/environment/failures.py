"""The error payloads that the platform makes for a function, in AWS Lambda's words."""

from __future__ import annotations

import json
from typing import Final

from lambent_node_agent.environment.model import RuntimeFailure

EXIT_ERROR: Final = "Runtime.ExitError"
OUT_OF_MEMORY: Final = "Runtime.OutOfMemory"
RESPONSE_TOO_LARGE: Final = "Function.ResponseSizeTooLarge"
TIMED_OUT: Final = "Sandbox.Timedout"

_LONGEST_INIT_ERROR: Final = 1024

# AWS Lambda: 200 MB for a streamed response.
MAX_STREAMED_BYTES: Final = 200 * 1024 * 1024

# Go's names of signals, which AWS's messages show.
_SIGNAL_NAMES: Final[dict[int, str]] = {
    1: "hangup",
    2: "interrupt",
    3: "quit",
    4: "illegal instruction",
    5: "trace/breakpoint trap",
    6: "aborted",
    7: "bus error",
    8: "floating point exception",
    9: "killed",
    10: "user defined signal 1",
    11: "segmentation fault",
    12: "user defined signal 2",
    13: "broken pipe",
    14: "alarm clock",
    15: "terminated",
    31: "bad system call",
}


def exit_failure(code: int | None, signal_number: int | None, *, oom_killed: bool) -> RuntimeFailure:
    """Describe a runtime that ended by itself: exactly one of exit code and signal is given."""
    if signal_number is not None:
        name = _SIGNAL_NAMES.get(signal_number, f"signal {signal_number}")
        error_type = OUT_OF_MEMORY if oom_killed else EXIT_ERROR
        return RuntimeFailure(error_type, f"Runtime exited with error: signal: {name}")
    if oom_killed:
        return RuntimeFailure(OUT_OF_MEMORY, "Runtime exited with error: signal: killed")
    if not code:
        return RuntimeFailure(EXIT_ERROR, "Runtime exited without providing a reason")
    return RuntimeFailure(EXIT_ERROR, f"Runtime exited with error: exit status {code}")


def violation_failure(what: str) -> RuntimeFailure:
    """Describe a runtime that was killed because of what it wrote to its channel."""
    return RuntimeFailure(EXIT_ERROR, f"Runtime exited with error: protocol violation: {what}")


def init_failure(error_json: bytes) -> RuntimeFailure:
    """Describe an init error that the runtime reported itself. The JSON comes from the sandbox and may be anything."""
    return RuntimeFailure(_error_type(error_json), "", error_json)


def init_error(failure: RuntimeFailure, init_timeout_s: float) -> str:
    """Describe, in a sentence for a person, why an init failed; without a type it took too long."""
    if not failure.error_type:
        return f"the init took longer than {init_timeout_s:g} s"
    message = failure.message or _field(failure.error_json, "errorMessage", _LONGEST_INIT_ERROR)
    return f"{failure.error_type}: {message}" if message else failure.error_type


def _error_type(error_json: bytes) -> str:
    return _field(error_json, "errorType", 256) or "Runtime.Unknown"


def _field(error_json: bytes, name: str, longest: int) -> str:
    """Give a field of an error document; empty when there is none of at most so many characters on one line."""
    try:
        document = json.loads(error_json)
    except (ValueError, RecursionError):
        return ""
    value = document.get(name) if isinstance(document, dict) else None
    # It goes into a log line, where a tab or a newline would forge a field.
    return value if isinstance(value, str) and len(value) <= longest and value.isprintable() else ""


def failure_json(request_id: str, failure: RuntimeFailure) -> bytes:
    """The payload that a caller gets for a failed runtime."""
    if failure.error_json:
        return failure.error_json
    return _payload(failure.error_type, f"RequestId: {request_id} Error: {failure.message}")


def timeout_json(request_id: str, timeout_s: float) -> bytes:
    """The payload that a caller gets for a timeout."""
    return _payload(TIMED_OUT, f"RequestId: {request_id} Error: Task timed out after {timeout_s:.2f} seconds")


def too_large_json(limit_bytes: int) -> bytes:
    """The payload that a caller gets instead of a response over the limit, or of the rest of a stream."""
    return _payload(
        RESPONSE_TOO_LARGE, f"Response payload size exceeded maximum allowed payload size ({limit_bytes} bytes)."
    )


def _payload(error_type: str, message: str) -> bytes:
    return json.dumps({"errorType": error_type, "errorMessage": message}, separators=(",", ":")).encode()
