"""System calls that are prepared before a fork and made after it.

Each page that a forked process writes to is copied for it, and CPython writes to every object that it touches, for it
counts references. A recipe of sixty calls written as ordinary code costs each sandbox 0.9 MiB for as long as it lives;
prepared as a plan, whose arguments lie side by side, it costs 0.15.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)

Register = ctypes.c_long
"""An argument whose value is known only later: set its `value`, or let a call's result become it."""

Text = ctypes.Array[ctypes.c_char]
"""Bytes that are known only later: written into before the calls are made."""


class Plan:
    """Calls of the C library, made in order by `carry_out`."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[..., int], tuple[object, ...], Register | None, int]] = []
        self._constants: dict[int, ctypes.c_long] = {}

    def add(
        self,
        name: str,
        *arguments: int | bytes | Register | Text | None,
        result: Register | None = None,
        ignored: int = 0,
    ) -> None:
        """Add a call.

        Args:
            name: Function of the C library that returns a negative number and sets `errno` when it fails.
            arguments: As the function takes them; None is a null pointer.
            result: Takes what the call returns, for later calls.
            ignored: An `errno` that is no failure.
        """
        # Registers of the machine are 64 bits wide, and a function takes of them what it declares.
        wide = tuple(self._constant(value) if isinstance(value, int) else value for value in arguments)
        self._calls.append((getattr(_libc, name), wide, result, ignored))

    def _constant(self, value: int) -> ctypes.c_long:
        """Give a number as an argument; the same number is the same object, so that calls write to few pages."""
        return self._constants.setdefault(value, ctypes.c_long(value))

    def carry_out(self) -> None:
        """Make the calls.

        Raises:
            OSError: One failed; it is named with its arguments.
        """
        for function, arguments, result, ignored in self._calls:
            returned = function(*arguments)
            if returned < 0 and ctypes.get_errno() != ignored:
                number = ctypes.get_errno()
                raise OSError(number, f"{_text(function, arguments)}: {os.strerror(number)}")
            if result is not None:
                result.value = returned


def _text(function: Callable[..., int], arguments: tuple[object, ...]) -> str:
    return f"{function.__name__}({', '.join(map(_word, arguments))})"


def _word(value: object) -> str:
    if isinstance(value, Register):
        return str(value.value)
    return os.fsdecode(bytes(value)) if isinstance(value, (bytes, ctypes.Array)) else "NULL"
