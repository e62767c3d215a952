"""Follows environments from their order to their first call: what each cold start cost, told to caller and metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import Histogram

from lambent.v1 import frame_pb2
from lambent_scheduler.core.cold_start import ColdStart, EnvironmentStart, cold_start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from lambent.v1 import node_pb2
    from lambent_scheduler.core.call import Call
    from lambent_scheduler.core.environments import Environment

_START_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""From a ready-made sandbox with code at hand, some milliseconds, to the longest that a node waits for a start."""

_PHASE_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, *_START_BOUNDS_S)
"""A phase of such a start takes some hundred microseconds."""


class ColdStarts:
    """Keeps what the relay learns of starts, and the histograms of it. Warm calls have no business here."""

    def __init__(self) -> None:
        self._starts = Histogram(
            "lambent_environment_start_seconds",
            "Time from the order of an environment to the end of its init phase",
            buckets=_START_BOUNDS_S,
            registry=None,
        )
        self._waits = Histogram(
            "lambent_cold_start_seconds",
            "What the first calls of environments waited for, by phase: queue, placement, fetch_code, sandbox, "
            "runtime, init",
            labelnames=("phase",),
            buckets=_PHASE_BOUNDS_S,
            registry=None,
        )
        self._phases = [self._waits.labels(field.removesuffix("_us")) for field in ColdStart._fields]

    def ordered(self, environment: Environment) -> None:
        """The order of an environment is given to a node: the first one, or in place of one that was refused."""
        if environment.start is None:
            environment.start = EnvironmentStart(time.monotonic())

    def ready(self, environment: Environment | None, event: node_pb2.EnvironmentReady) -> None:
        """A node says what making an environment took; an adopted one that has ended a call was not made now."""
        if not event.start_us:
            return
        self._starts.observe(event.start_us / 1e6)
        if environment is not None and (start := environment.start) is not None:
            start.fetch_code_us, start.sandbox_us = event.fetch_code_us, event.sandbox_us
            start.runtime_us, start.init_us = event.runtime_us, event.init_us

    def bound(self, call: Call, environment: Environment, order: node_pb2.NodeOrder) -> None:
        """Write into the order of an environment's first call what it has waited for."""
        start, environment.start = environment.start, None
        assert start is not None
        phases = cold_start(start, ready_at=environment.ready_at, arrived=call.arrived, waited_us=order.open.queue_us)
        order.open.cold_start_phases.CopyFrom(frame_pb2.ColdStartPhases(**phases._asdict()))
        for histogram, phase_us in zip(self._phases, phases, strict=True):
            histogram.observe(phase_us / 1e6)

    def collect(self) -> Iterator[Metric]:
        """Give the metrics with their values of this moment."""
        yield from self._starts.collect()
        yield from self._waits.collect()
