"""When a call may be sent again, and how long to wait first. Pure: time and random numbers are arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambent.errors import ThrottledError, UnavailableError

if TYPE_CHECKING:
    from lambent.errors import ServiceError

OUTAGE_S = 10.0
"""How long a cluster that is away is waited for. A scheduler that was killed is started again and serves within about
7 s: the process, its functions, and the lease of the one before it, which has to lapse."""

_OUTAGE_WAIT_S = 1.0
"""Upper bound of a wait for a cluster that is away: it is found again within a second of its return."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently.

    Attributes:
        attempts: Most times that a call is sent which a limit refused, or which may have run. At least 1.
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


class Retries:
    """The failures of one call so far.

    Args:
        policy: How often and how patiently.
        idempotent: True when running twice does no harm: then a call that may have run is sent again too (AIP-194).
        deadline: When the caller's time is up, on the clock that `wait_s` is given.
    """

    __slots__ = ("_away_until", "_counted", "_deadline", "_failures", "_idempotent", "_policy")

    def __init__(self, policy: RetryPolicy, *, idempotent: bool, deadline: float = math.inf) -> None:
        self._policy = policy
        self._idempotent = idempotent
        self._deadline = deadline
        self._failures = 0
        self._counted = 0
        self._away_until: float | None = None

    def wait_s(self, error: ServiceError, now: float, draw: float) -> float | None:
        """Count a failure; give the wait before the call is sent again, or None when it is not to be sent again.

        Only what may pass is sent again, and only what cannot run twice. A throttle is bounded by attempts. A cluster
        that is away and did not get the call is waited for by time, since a restart takes the time that it takes; a
        call that may have run, and may be what brought its node down, is bounded by attempts again.

        Args:
            error: What the call failed with.
            now: Time of the failure, in seconds.
            draw: A random number in [0, 1).
        """
        if not isinstance(error, ThrottledError | UnavailableError) or (error.dispatched and not self._idempotent):
            return None
        self._failures += 1
        wait_s = self._policy.wait_s(self._failures, draw)
        until = self._deadline
        if isinstance(error, UnavailableError) and not error.dispatched:
            if self._away_until is None:
                self._away_until = now + OUTAGE_S
            until = min(until, self._away_until)
            wait_s = min(wait_s, _OUTAGE_WAIT_S)
        else:
            self._away_until = None  # The cluster answered: what comes next is another outage.
            self._counted += 1
            if self._counted >= self._policy.attempts:
                return None
        return wait_s if now + wait_s < until else None


INVOKE = RetryPolicy(attempts=4, base_s=0.1, cap_s=2.0)
"""One call: some 0.7 s of throttles at most, short enough for a person."""

MAP = RetryPolicy(attempts=12, base_s=0.1, cap_s=5.0)
"""Many calls at once meet throttles as a matter of course; half a minute of patience keeps a long map alive."""
