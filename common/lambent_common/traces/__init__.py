"""Recorded loads: who called what in each minute, how long it ran and what memory it held.

The simulator and the load generator read the same trace by the same code, with the same arrivals by the same seed.
"""

from __future__ import annotations

from lambent_common.traces.arrivals import Arrivals, MinuteOfArrivals, arrivals, minutes_of_arrivals
from lambent_common.traces.azure import read_trace
from lambent_common.traces.errors import TraceError
from lambent_common.traces.model import Durations, Trace, TraceFunction
from lambent_common.traces.recorded import MinuteOfCalls, RecordedCalls, describe, read_lines, read_recorded

__all__ = [
    "read_trace",
    "Trace",
    "read_recorded",
    "RecordedCalls",
    "MinuteOfCalls",
    "describe",
    "read_lines",
    "TraceFunction",
    "Durations",
    "TraceError",
    "Arrivals",
    "MinuteOfArrivals",
    "arrivals",
    "minutes_of_arrivals",
]
