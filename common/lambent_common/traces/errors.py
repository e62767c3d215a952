"""What is wrong with a trace, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent.errors import LambentError

if TYPE_CHECKING:
    from pathlib import Path


class TraceError(LambentError):
    """A trace cannot be read.

    Attributes:
        path: The file or folder.
        line: Number of the line, from 1; 0 when the whole file is meant.
        column: Name of the column; empty when the whole line is meant.
    """

    def __init__(self, message: str, path: Path, *, line: int = 0, column: str = "") -> None:
        where = str(path)
        if line:
            where += f", line {line}"
        if column:
            where += f", column {column}"
        super().__init__(f"{where}: {message}")
        self.path = path
        self.line = line
        self.column = column
