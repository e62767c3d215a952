"""Python's garbage collector in a daemon that serves for months."""

from __future__ import annotations

import gc

_THRESHOLDS = (10_000, 20, 20)
"""Containers made and not freed before a collection, ten times as many as by default: calls free what they make by
reference counts, and a collection among thousands of them in flight finds nothing."""


def settle_collector() -> None:
    """Take all that the start-up has made out of the collector's sight, for good; call it when the daemon is ready."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
