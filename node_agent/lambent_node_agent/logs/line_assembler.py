"""Cutting a process's output into lines, many at once."""

from __future__ import annotations

from typing import Final

# CloudWatch Logs quotas: one log event holds at most 256 KiB.
MAX_LINE_BYTES: Final = 256 * 1024
# What one read of a log pipe gives at most: all that it holds, unless somebody enlarged it.
MAX_OUTPUT_BYTES: Final = 64 * 1024


class LineAssembler:
    """Gives the lines of a byte stream that arrives in arbitrary pieces, as blocks.

    A block is whole lines with newlines between them, and none after the last; as a rule a read is one block. Nothing
    is done for each line, so that a flood of empty ones costs no more than one long line does. Holds at most one
    incomplete line of 256 KiB; a longer one is cut there and goes on as a further line.
    """

    __slots__ = ("_partial",)

    def __init__(self) -> None:
        self._partial = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add output, at most 64 KiB, and give the lines that are complete.

        The cost is that of `data`, however long the incomplete line is.
        """
        assert len(data) <= MAX_OUTPUT_BYTES
        end = data.rfind(b"\n")
        if end < 0:
            self._partial += data
            return self._take_full()
        start, blocks = 0, []
        if self._partial:
            first = data.find(b"\n")
            self._partial += data[:first]
            blocks = [*self._take_full(), bytes(self._partial)]
            start = first + 1
        if start <= end:
            blocks.append(data[start:end])
        self._partial = bytearray(data[end + 1 :])
        return blocks

    def flush(self) -> list[bytes]:
        """Give the incomplete line, if there is one, as a block."""
        if not self._partial:
            return []
        partial, self._partial = self._partial, bytearray()
        return [bytes(partial)]

    def _take_full(self) -> list[bytes]:
        """Cut from the incomplete line what is over its bound."""
        if len(self._partial) <= MAX_LINE_BYTES:
            return []
        full = bytes(self._partial[:MAX_LINE_BYTES])
        del self._partial[:MAX_LINE_BYTES]
        return [full]


def lines_in(block: bytes) -> int:
    """Count the lines of a block."""
    return block.count(b"\n") + 1
