"""How a daemon that serves for months treats its memory."""

from __future__ import annotations

import gc

_THRESHOLDS = (10_000, 20, 20)
"""Containers made and not freed before a collection, ten times as many as by default: calls free what they make by
reference counts, and a collection among thousands of them in flight finds nothing."""

_KEPT_BYTES = 32 * 1024 * 1024
"""What glibc may keep of freed memory before it gives some back: the payloads of a few large calls. Given back, each
page is cleared and faulted in anew for the next call, which costs more than all that is done with it."""


def settle_memory() -> None:
    """Have memory treated as befits a daemon; call it when it is ready.

    All that the start-up has made goes out of the collector's sight for good, and freed memory is kept for a while.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    # glibc adapts to the largest block of its own that a program has freed: it then keeps twice as much (mallopt(3)).
    bytes(_KEPT_BYTES // 2)
