"""How long to wait before a child is started again; pure."""

from __future__ import annotations

from dataclasses import dataclass

# Short enough that one crash is hardly noticed; the longest keeps a child that cannot start from filling its log.
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 15.0
FACTOR = 2.0

# A child that has run this long was well: what ends it now is a new trouble.
WELL_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Ends in a row, each soon after its start.

    Attributes:
        failures: Their number.
    """

    failures: int = 0

    def ended(self, ran_s: float) -> Backoff:
        """The child ended after running this long."""
        return Backoff(failures=1 if ran_s >= WELL_AFTER_S else self.failures + 1)

    @property
    def delay_s(self) -> float:
        """Time to wait before the next start."""
        if not self.failures:
            return 0.0
        # The exponent is bounded, or a child that fails for weeks would overflow the float.
        return min(FIRST_DELAY_S * FACTOR ** min(self.failures - 1, 16), LONGEST_DELAY_S)
