"""How a daemon tells its parent where it serves."""

from __future__ import annotations

import json
import os


def announce_ready(ready_fd: int | None, **addresses: str) -> None:
    """Write one JSON line to the descriptor and close it; with None, do nothing.

    Args:
        ready_fd: Descriptor that the parent reads.
        addresses: Where the daemon serves, by kind: `grpc` and `node` as host:port, `http` as a URL.
    """
    if ready_fd is None:
        return
    with os.fdopen(ready_fd, "w") as stream:
        stream.write(json.dumps(addresses) + "\n")
