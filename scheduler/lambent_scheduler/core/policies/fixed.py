"""Fixed keep-alive: every idle environment stays for the same time, as on AWS."""

from __future__ import annotations

import math

from lambent_scheduler.core.policies.interfaces import Windows


class FixedKeepAlive:
    """See KeepAlive.

    Args:
        keep_alive_s: The time.
    """

    __slots__ = ("_windows",)

    learns = False

    def __init__(self, keep_alive_s: float) -> None:
        self._windows = Windows(keep_alive_s, math.inf, keep_alive_s)

    def wanted_again(self, idle_s: float) -> None:
        """See KeepAlive."""

    def windows(self) -> Windows:
        """See KeepAlive."""
        return self._windows
