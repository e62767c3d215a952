"""How a daemon tells its parent where it serves."""

from __future__ import annotations

import json
import os


def announce_ready(ready_fd: int | None, *, grpc: str, http: str | None = None) -> None:
    """Write one JSON line to the descriptor and close it; with None, do nothing.

    Args:
        ready_fd: Descriptor that the parent reads.
        grpc: host:port of the gRPC server.
        http: URL of the HTTP server.
    """
    if ready_fd is None:
        return
    line = json.dumps({"grpc": grpc, "http": http}) + "\n"
    with os.fdopen(ready_fd, "w") as stream:
        stream.write(line)
