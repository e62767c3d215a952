"""From W3C trace context to AWS X-Ray's header, which functions find in `_X_AMZN_TRACE_ID`."""

from __future__ import annotations

import re
from typing import Final

# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def xray_trace_id(traceparent: str) -> str:
    """Translate; empty for an empty or malformed context.

    The 32 digits are split as X-Ray does for traces that began elsewhere: 8 for its time stamp, 24 for the rest.
    """
    if not traceparent or (match := _TRACEPARENT.fullmatch(traceparent)) is None:
        return ""
    trace, parent, flags = match.groups()
    return f"Root=1-{trace[:8]}-{trace[8:]};Parent={parent};Sampled={int(flags, 16) & 1}"
