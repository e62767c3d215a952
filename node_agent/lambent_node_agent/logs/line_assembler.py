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
        self._partial = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add output and give the lines that are complete, without their newlines.

        The cost is that of `data`, however long the incomplete line is.
        """
        partial = self._partial
        end = data.find(b"\n")
        if end < 0:
            partial += data
            return self._take_full()
        lines: list[bytes] = []
        if partial:
            partial += data[:end]
            lines += self._take_full()
            lines.append(bytes(partial))
            data = data[end + 1 :]
        *rest, last = data.split(b"\n")
        lines += rest
        self._partial = bytearray(last)
        if len(data) > MAX_LINE_BYTES:  # otherwise none of these can be longer
            lines = [piece for line in lines for piece in _cut(line)]
            lines += self._take_full()
        return lines

    def flush(self) -> list[bytes]:
        """Give the incomplete line, if there is one, as a line."""
        if not self._partial:
            return []
        partial, self._partial = self._partial, bytearray()
        return [bytes(partial)]

    def _take_full(self) -> list[bytes]:
        """Cut from the incomplete line what is over its bound."""
        partial = self._partial
        if len(partial) <= MAX_LINE_BYTES:
            return []
        *full, last = _cut(bytes(partial))
        self._partial[:] = last
        return full


def _cut(line: bytes) -> list[bytes]:
    if len(line) <= MAX_LINE_BYTES:
        return [line]
    return [line[start : start + MAX_LINE_BYTES] for start in range(0, len(line), MAX_LINE_BYTES)]
