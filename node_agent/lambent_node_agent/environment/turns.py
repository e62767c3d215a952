"""How environments share the agent's time: what each may bring unasked, and a line for those that bring more.

A frame or a line of output costs the agent a hundred times what it costs function code to write. So each environment
has an allowance. Once that is spent it is not read any more, its writer blocks on a full socket or pipe, and it joins
the line. The line moves once a millisecond, whatever its length: all floods together take a tenth of a core or so.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_S: Final = 0.05
"""How long an allowance lasts. A burst shorter than this is read as fast as it comes."""
INTERVAL_S: Final = 0.001
"""Between two turns; the shortest timer that uvloop has. A turn takes a tenth of it."""


class Allowance:
    """How much one environment may bring in a window of time before it has to take turns.

    Args:
        most: In one window.
        clock: Gives seconds.
    """

    __slots__ = ("_clock", "_left", "_most", "_window_ends")

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._left = most
        self._clock = clock
        self._window_ends = 0.0

    def left(self) -> int:
        """Tell what may still be spent; a window begins with the first look after the one before has ended."""
        now = self._clock()
        if now >= self._window_ends:
            self._window_ends = now + WINDOW_S
            self._left = self._most
        return self._left

    def spend(self, count: int = 1) -> None:
        """Spend so much, or all that is left."""
        self._left = max(0, self._left - count)


class Turns:
    """The line of all environments of a node that want more than their allowance.

    Whoever has had its turn and wants another joins at the end, so that the line is fair.

    Args:
        call_later: Calls a function after so many seconds, as the event loop's method of this name.
    """

    def __init__(self, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self._call_later = call_later
        self._line: deque[Callable[[], None]] = deque()
        self._moving = False

    def wait(self, turn: Callable[[], None]) -> None:
        """Join the line: `turn` is called once, when it is due. Who is gone by then lets it pass."""
        self._line.append(turn)
        if not self._moving:
            self._moving = True
            self._call_later(INTERVAL_S, self._move)

    def _move(self) -> None:
        try:
            self._line.popleft()()
        finally:
            self._moving = bool(self._line)
            if self._moving:
                self._call_later(INTERVAL_S, self._move)
