"""What a run sends, as one value that every generator process gets and of which each takes its share."""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from lambent_load import shapes
from lambent_load.tally import interval_s_of
from lambent_load.targets import Request
from lambent_load.traced import Replay

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES = ("constant", "poisson", "ramp", "step", "burst", "sine")

MOST_RATE = 1_000_000.0
"""Calls per second: some ten times what one generator process sends to nobody."""


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Calls at times that are fixed beforehand.

    Attributes:
        shape: One of SHAPES. `poisson` is `constant` with `poisson_arrivals`.
        rate: Calls per second at the beginning.
        to_rate: At the end of a ramp or of steps, in a burst, at the top of a sine.
        steps: Levels of `step`, at least 2.
        period_s: Of `burst` and `sine`.
        burst_s: Length of a burst, at the end of each period.
        poisson_arrivals: True for calls that come independently of one another; False for even gaps.
        seed: Of the arrivals.
    """

    shape: str
    rate: float
    to_rate: float = 0.0
    steps: int = 5
    period_s: float = 10.0
    burst_s: float = 1.0
    poisson_arrivals: bool = False
    seed: int = 0

    def send_times(self, duration_s: float) -> Iterator[float]:
        """Give the times of all calls, in seconds from the beginning."""
        gaps = shapes.poisson(self.seed) if self.poisson_arrivals or self.shape == "poisson" else shapes.even()
        return shapes.send_times(self._segments(duration_s), gaps)

    def _segments(self, duration_s: float) -> Iterator[shapes.Segment]:
        match self.shape:
            case "ramp":
                return shapes.ramp(duration_s, self.rate, self.to_rate)
            case "step":
                return shapes.step(duration_s, self.rate, self.to_rate, self.steps)
            case "burst":
                return shapes.burst(duration_s, self.rate, self.to_rate, self.period_s, self.burst_s)
            case "sine":
                return shapes.sine(duration_s, self.rate, self.to_rate, self.period_s)
            case _:
                return shapes.constant(duration_s, self.rate)


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Callers that each send a call when their last one has ended.

    Attributes:
        callers: How many, in all processes together.
    """

    callers: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, whereto and for how long.

    Attributes:
        target: `cluster`, `null`, or the URL of an AWS Lambda endpoint.
        function: Name of the function, with or without a qualifier; empty of a replay, which has its own.
        payload: The event; empty of a replay.
        load: When calls are sent.
        duration_s: Time during which calls are sent; above 0.
        timeout_s: Of each call.
        max_in_flight: Most calls in flight, in all processes together.
        endpoint: `host:port` of a scheduler; empty and None have the SDK look for one.
        data_dir: Data directory of a cluster on this machine.
        share: Number of this process, from 0, and how many there are.
    """

    target: str
    function: str
    payload: bytes
    load: OpenLoop | ClosedLoop | Replay
    duration_s: float
    timeout_s: float = 30.0
    max_in_flight: int = 10_000
    endpoint: str = ""
    data_dir: str | None = None
    share: tuple[int, int] = (0, 1)

    @property
    def interval_s(self) -> int:
        """Length of an interval of the tally."""
        return interval_s_of(self.duration_s)

    def divided(self, processes: int) -> list[Plan]:
        """Give the plan of each of so many processes; together they send what this one does."""
        return [
            replace(
                self,
                share=(number, processes),
                max_in_flight=_part(self.max_in_flight, number, processes),
                load=replace(self.load, callers=_part(self.load.callers, number, processes))
                if isinstance(self.load, ClosedLoop)
                else self.load,
            )
            for number in range(processes)
        ]

    def arrivals(self) -> Iterator[tuple[float, Request]]:
        """Give this process's share of an open loop or a replay: every n-th call, with its time."""
        number, processes = self.share
        if isinstance(self.load, Replay):
            return itertools.islice(self.load.arrivals(), number, None, processes)
        assert isinstance(self.load, OpenLoop)
        request = Request(self.function, self.payload)
        times = itertools.islice(self.load.send_times(self.duration_s), number, None, processes)
        return zip(times, itertools.repeat(request))

    def encode(self) -> bytes:
        """Give it as one line of JSON."""
        payload = base64.b64encode(self.payload).decode()
        return json.dumps(asdict(self) | {"payload": payload, "kind": type(self.load).__name__}).encode()

    @classmethod
    def decode(cls, line: bytes) -> Plan:
        """Read what `encode` gave."""
        fields = json.loads(line)
        kind = fields.pop("kind")
        fields["load"] = next(one for one in _KINDS if one.__name__ == kind)(**fields["load"])
        fields["payload"] = base64.b64decode(fields["payload"])
        fields["share"] = tuple(fields["share"])
        return cls(**fields)


_KINDS = (OpenLoop, ClosedLoop, Replay)


def _part(whole: int, number: int, parts: int) -> int:
    """Divide so that the parts differ by one at most and add up to the whole."""
    return whole // parts + (number < whole % parts)
