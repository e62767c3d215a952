"""Time as an argument: whoever decides is given it, whoever acts asks here."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells monotonic time."""

    def now(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""


class MonotonicClock:
    """The machine's own monotonic clock."""

    def now(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        return time.monotonic()
