"""Traces for simulations, made in memory."""

from __future__ import annotations

from collections.abc import Sequence

from lambent_common.traces import Durations, Trace, TraceFunction


def make_function(
    counts: Sequence[int], *, name: str = "f", duration_ms: float = 1000, memory_mib: float = 128
) -> TraceFunction:
    """Give a function with these calls per minute, all equally long."""
    called = [minute for minute, count in enumerate(counts) if count]
    durations = Durations.constant(duration_ms)
    return TraceFunction(name, "", called, [counts[minute] for minute in called], durations, memory_mib)


def make_trace(*functions: TraceFunction, minutes: int) -> Trace:
    """Give a trace of so many minutes."""
    return Trace("by hand", minutes, functions)
