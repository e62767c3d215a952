"""What goes wrong with nodes, and when."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = r"(\d+(?:\.\d+)?)([smh]?)"
_FAULT = re.compile(rf"([a-z]+):(\d+)@{_TIME}(?:\+{_TIME})?(?:x(\d+(?:\.\d+)?))?")


class FaultKind(Enum):
    """What a fault does to a node."""

    LOST = "lost"
    """The machine is gone with all that ran on it; it comes back empty."""
    SLOW = "slow"
    """Starts and runs that begin now take longer."""
    PARTITIONED = "partitioned"
    """Nobody hears of it, and it hears of nobody; what runs on it goes on."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that befalls nodes.

    Attributes:
        kind: What.
        nodes: How many nodes, drawn by the seed.
        start_s: When it begins, in seconds of the simulation.
        duration_s: How long it lasts; `math.inf`: to the end.
        factor: How much longer everything takes on a slow node.
    """

    kind: FaultKind
    nodes: int
    start_s: float
    duration_s: float = math.inf
    factor: float = 10.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read KIND:NODES@START[+DURATION][xFACTOR], such as `lost:3@1h+10m` or `slow:5@90s+2mx4`.

        Raises:
            ValueError: It is not in that form.
        """
        match = _FAULT.fullmatch(text)
        kinds = {kind.value: kind for kind in FaultKind}
        if match is None or match[1] not in kinds or (match[7] is not None and match[1] != "slow"):
            raise ValueError(
                f"{text!r} is not KIND:NODES@START[+DURATION], with KIND one of {', '.join(kinds)}, and for slow nodes "
                "xFACTOR; for example lost:3@1h+10m or slow:5@90s+2mx4"
            )
        fault = cls(
            kinds[match[1]],
            int(match[2]),
            float(match[3]) * _SECONDS[match[4] or "s"],
            math.inf if match[5] is None else float(match[5]) * _SECONDS[match[6] or "s"],
        )
        if match[7] is None:
            return fault
        return cls(fault.kind, fault.nodes, fault.start_s, fault.duration_s, float(match[7]))
