"""Where the time of a cold start goes: what its call waited for, told apart without comparing clocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(slots=True)
class EnvironmentStart:
    """The making of one environment.

    Attributes:
        ordered_at: When it was ordered, or the one that another node refused to make and in whose place it is; in
            seconds of the dispatcher's clock.
        fetch_code_us: What its node says of the parts of the start, in microseconds. The parts follow one another in
            this order; before and after them are the ways there and back.
        sandbox_us: As above.
        runtime_us: As above.
        init_us: As above.
    """

    ordered_at: float
    fetch_code_us: int = 0
    sandbox_us: int = 0
    runtime_us: int = 0
    init_us: int = 0


class ColdStart(NamedTuple):
    """What the first call of an environment waited for, in microseconds: ColdStartPhases in frame.proto."""

    queue_us: int
    placement_us: int
    fetch_code_us: int
    sandbox_us: int
    runtime_us: int
    init_us: int


def cold_start(start: EnvironmentStart, *, ready_at: float, arrived: float, waited_us: int) -> ColdStart:
    """Divide the time that a call waited for its environment.

    Pure. No phase is negative and their sum is `waited_us`, whatever the node said.

    Args:
        start: The making of the environment.
        ready_at: When the environment could serve; this and `arrived` are of the same clock as `start.ordered_at`.
        arrived: When the call came. A call that came during the start has waited for the last of its phases alone.
        waited_us: All that the call waited, in microseconds.
    """
    shared_us = max(0, round((ready_at - max(arrived, start.ordered_at)) * 1e6))
    left_us = shared_us = min(shared_us, waited_us)
    init_us = min(start.init_us, left_us)
    left_us -= init_us
    runtime_us = min(start.runtime_us, left_us)
    left_us -= runtime_us
    sandbox_us = min(start.sandbox_us, left_us)
    left_us -= sandbox_us
    fetch_code_us = min(start.fetch_code_us, left_us)
    left_us -= fetch_code_us
    return ColdStart(waited_us - shared_us, left_us, fetch_code_us, sandbox_us, runtime_us, init_us)
