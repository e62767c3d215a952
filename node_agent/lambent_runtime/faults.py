"""Error JSON and error log lines, in the shapes of AWS's Python runtime, bounded in size."""

from __future__ import annotations

import importlib
import json
import os
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

# With JSON's worst escape of six bytes a character, message and trace together stay under `channel.MAX_ERROR_BYTES`.
MAX_TYPE_CHARACTERS = 256
MAX_MESSAGE_CHARACTERS = 16 * 1024
MAX_TRACE_CHARACTERS = 16 * 1024
MAX_TRACE_FRAMES = 100
"""Of a deeper stack the outermost and the innermost half are kept; a runaway recursion has a thousand equal frames."""

_OWN_DIRECTORY = os.path.dirname(__file__) + os.sep
_IMPORT_MACHINERY = ("<frozen importlib", os.path.dirname(importlib.__file__) + os.sep)
_LINE_JOIN = "\r"
_INDENT = "\u00a0"
"""AWS's text log format: one event's lines are joined by CR, their indentation is no-break spaces."""


class FaultError(Exception):
    """An error that the runtime itself reports, with AWS's name for it.

    Attributes:
        error_type: For example `Runtime.MarshalError`.
        message: AWS's wording.
        trace: Lines for `stackTrace`.
    """

    def __init__(self, error_type: str, message: str, trace: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = message
        self.trace = list(trace)


class ErrorReport:
    """One failure, bounded: what the caller gets as JSON and what the log gets as one line."""

    __slots__ = ("error_type", "message", "request_id", "trace")

    def __init__(self, error_type: str, message: str, trace: Sequence[str], request_id: str) -> None:
        self.error_type = shorten(error_type, MAX_TYPE_CHARACTERS)
        self.message = shorten(message, MAX_MESSAGE_CHARACTERS)
        self.trace = _shorten_trace(trace)
        self.request_id = request_id

    @classmethod
    def of(cls, error: BaseException, request_id: str = "") -> ErrorReport:
        """Describe what the function's code or this runtime raised."""
        if isinstance(error, FaultError):
            return cls(error.error_type, error.message, error.trace, request_id)
        return cls(type(error).__name__, _text_of(error), _frames_of(error.__traceback__), request_id)

    def to_json(self) -> bytes:
        """Return the error payload, as AWS shapes it."""
        return json.dumps(
            {
                "errorMessage": self.message,
                "errorType": self.error_type,
                "requestId": self.request_id,
                "stackTrace": self.trace,
            }
        ).encode()

    def to_log_line(self) -> str:
        """Return what goes to the log, with a newline at its end."""
        lines = [f"[ERROR] {self.error_type}: {self.message}" if self.message else f"[ERROR] {self.error_type}"]
        lines.append("Traceback (most recent call last):")
        for entry in self.trace:
            for line in entry.splitlines() or [""]:
                bare = line.lstrip(" ")
                lines.append(_INDENT * (len(line) - len(bare)) + bare)
        return _LINE_JOIN.join(lines) + "\n"


def shorten(text: str, limit: int) -> str:
    """Return `text`, with a visible mark in place of its end when it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... [{len(text) - limit} more characters left out]"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001 - __str__ is the function's code and may raise anything
        return f"<{type(error).__name__} whose text cannot be made: {type(second).__name__}>"


def _frames_of(origin: TracebackType | None) -> list[str]:
    """Format a traceback from the function's first frame on.

    What leads into it is this package, asyncio and importlib.
    """
    frames = traceback.extract_tb(origin)
    names = [frame.filename for frame in frames]
    start = max((index + 1 for index, name in enumerate(names) if name.startswith(_OWN_DIRECTORY)), default=0)
    while start < len(names) and names[start].startswith(_IMPORT_MACHINERY):
        start += 1
    return traceback.format_list(frames[start:])


def _shorten_trace(trace: Sequence[str]) -> list[str]:
    entries = list(trace)
    if len(entries) > MAX_TRACE_FRAMES:
        half = MAX_TRACE_FRAMES // 2
        left_out = len(entries) - 2 * half
        entries = [*entries[:half], f"  ... [{left_out} frames left out]\n", *entries[-half:]]
    budget = MAX_TRACE_CHARACTERS // max(len(entries), 1)
    if sum(map(len, entries)) <= MAX_TRACE_CHARACTERS:
        return entries
    return [shorten(entry, budget) for entry in entries]
