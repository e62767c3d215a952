"""Which nodes are left alone for a while, because they refused a version for want of room."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambent_scheduler.core.version_state import VersionState


class Refusals:
    """Refusals that still count, oldest first. Each version holds its own in `refused_until`."""

    def __init__(self, backoff_s: float) -> None:
        self._backoff_s = backoff_s
        self._by_end: deque[tuple[float, VersionState, str]] = deque()

    def add(self, version: VersionState, node_id: str, now: float) -> None:
        """Leave a node alone for new environments of a version."""
        until = now + self._backoff_s
        version.refused_until[node_id] = until
        self._by_end.append((until, version, node_id))

    def next_end(self) -> float | None:
        """Give the time at which the oldest refusal is forgotten; None when there is none."""
        return self._by_end[0][0] if self._by_end else None

    def forget_past(self, now: float) -> bool:
        """Forget the refusals whose time is over; True when there were any."""
        forgotten = False
        while self._by_end and self._by_end[0][0] <= now:
            until, version, node_id = self._by_end.popleft()
            if version.refused_until.get(node_id) == until:
                del version.refused_until[node_id]
            forgotten = True
        return forgotten
