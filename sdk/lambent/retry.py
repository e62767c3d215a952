"""When a call may be sent again, and how long to wait first. Pure: the random number is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambent.errors import ThrottledError, UnavailableError

if TYPE_CHECKING:
    from lambent.errors import ServiceError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently.

    Attributes:
        attempts: Most times that a call is sent. At least 1.
        base_s: Upper bound of the first wait; it doubles with each further one.
        cap_s: Upper bound of any wait.
    """

    attempts: int
    base_s: float
    cap_s: float

    def wait_s(self, attempt: int, draw: float) -> float:
        """Give the wait after failed attempt number `attempt` (from 1), for a random `draw` in [0, 1).

        "Full jitter": callers that failed together do not come back together.
        """
        return draw * min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 30))

    def may_retry(self, error: ServiceError, attempt: int, *, idempotent: bool) -> bool:
        """Tell whether the call may be sent again after failed attempt number `attempt`.

        Only what may pass (a throttle, a part that is away) and only what cannot run twice, unless the caller said that
        running twice does no harm (AIP-194).
        """
        if attempt >= self.attempts or not isinstance(error, ThrottledError | UnavailableError):
            return False
        return idempotent or not error.dispatched


INVOKE = RetryPolicy(attempts=4, base_s=0.1, cap_s=2.0)
"""One call: some 0.7 s at most, enough for a scheduler to restart its listener, short enough for a person."""

MAP = RetryPolicy(attempts=12, base_s=0.1, cap_s=5.0)
"""Many calls at once meet throttles as a matter of course; half a minute of patience keeps a long map alive."""
