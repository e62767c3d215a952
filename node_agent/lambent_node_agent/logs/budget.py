"""How much each function may log on this node."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

# What CloudWatch Logs takes for one log stream; a print in a tight loop makes a hundred times as much.
RATE_BYTES_PER_S: Final = 5 * 1024 * 1024
# A start that logs much at once, a long stack trace: two seconds' worth.
BURST_BYTES: Final = 10 * 1024 * 1024
# Functions that are remembered; one that is forgotten starts with a full burst again.
_MAX_FUNCTIONS: Final = 4096


class IngestBudget:
    """A token bucket for each function, by an opaque key."""

    def __init__(self, rate_bytes_per_s: float = RATE_BYTES_PER_S, burst_bytes: float = BURST_BYTES) -> None:
        self._rate = rate_bytes_per_s
        self._burst = burst_bytes
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, function: str, size_bytes: int, now: float) -> bool:
        """Spend from a function's budget; False, and nothing spent, when it has not enough left."""
        tokens, filled_at = self._buckets.get(function, (self._burst, now))
        tokens = min(self._burst, tokens + (now - filled_at) * self._rate)
        allowed = tokens >= size_bytes
        self._buckets[function] = (tokens - size_bytes if allowed else tokens, now)
        self._buckets.move_to_end(function)
        if len(self._buckets) > _MAX_FUNCTIONS:
            self._buckets.popitem(last=False)
        return allowed
