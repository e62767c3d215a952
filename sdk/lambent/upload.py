"""Sending a code package: a client stream of pieces, read off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from lambent.connection import transport_errors
from lambent.errors import PreconditionFailedError
from lambent.v1 import function_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lambent.connection import Connection
    from lambent.packaging import CodePackage
    from lambent.v1 import function_pb2_grpc

_TIMEOUT_S = 600.0
"""50 MB over a line of 1 Mbit/s."""

UploadProgress = Callable[[int, int], None]
"""Called with bytes sent and bytes in all."""


async def send(
    connection: Connection,
    stub: function_pb2_grpc.FunctionServiceStub,
    package: CodePackage,
    account: str,
    on_progress: UploadProgress | None,
) -> str:
    """Store a package, and give its SHA-256 in lower-case hexadecimal.

    Raises:
        PreconditionFailedError: Other bytes arrived than were sent.
        ServiceError: What the server said, or why it could not be reached.
    """

    async def attempt() -> str:
        await connection.ready()
        with transport_errors():
            reply = await stub.UploadCode(
                _requests(package, account, on_progress), timeout=_TIMEOUT_S, metadata=connection.metadata
            )
        if reply.code_sha256 != package.sha256:
            raise PreconditionFailedError(
                f"the code arrived as {reply.code_sha256} instead of {package.sha256}; send it again"
            )
        return reply.code_sha256

    # The same bytes stored twice are stored once.
    return await connection.retrying(attempt, idempotent=True)


async def _requests(
    package: CodePackage, account: str, on_progress: UploadProgress | None
) -> AsyncIterator[function_pb2.UploadCodeRequest]:
    chunks = package.chunks()
    sent_bytes = 0
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield function_pb2.UploadCodeRequest(account=account, chunk=chunk)
        # Asked for the next piece: gRPC has taken this one.
        sent_bytes += len(chunk)
        if on_progress is not None:
            on_progress(sent_bytes, package.size_bytes)
