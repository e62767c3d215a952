"""Runs the ASGI application on the scheduler's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import uvicorn

from lambent.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.applications import Starlette


class _Server(uvicorn.Server):
    """A server that leaves the process's signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@contextlib.asynccontextmanager
async def serve_http(app: Starlette, host: str, port: int) -> AsyncIterator[int]:
    """Serve `app` inside the block; port 0 picks a free one. Gives the port.

    Raises:
        UnavailableError: The address cannot be listened on.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UnavailableError(f"cannot listen on {host}:{port} for HTTP: {error.strerror}") from error
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", limit_concurrency=1_000, timeout_keep_alive=30
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
