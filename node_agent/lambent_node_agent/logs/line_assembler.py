"""Cutting a process's output into lines."""

from __future__ import annotations

from typing import Final

# CloudWatch Logs quotas: one log event holds at most 256 KiB.
MAX_LINE_BYTES: Final = 256 * 1024


class LineAssembler:
    """Gives the lines of a byte stream that arrives in arbitrary pieces.

    Holds at most one incomplete line of 256 KiB; a longer one is cut there and goes on as a further line.
    """

    __slots__ = ("_partial",)

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Add output and give the lines that are complete, without their newlines."""
        if self._partial:
            data = self._partial + data
        lines = data.split(b"\n")
        self._partial = lines.pop()
        if len(data) <= MAX_LINE_BYTES:  # then no line can be longer
            return lines
        lines = [piece for line in lines for piece in _cut(line)]
        *full, self._partial = _cut(self._partial)
        return lines + full

    def flush(self) -> list[bytes]:
        """Give the incomplete line, if there is one, as a line."""
        partial, self._partial = self._partial, b""
        return [partial] if partial else []


def _cut(line: bytes) -> list[bytes]:
    if len(line) <= MAX_LINE_BYTES:
        return [line]
    return [line[start : start + MAX_LINE_BYTES] for start in range(0, len(line), MAX_LINE_BYTES)]
