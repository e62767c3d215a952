"""Taking in a code package: to a file, checked, then into the store. Nothing of it is held in memory."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from lambent.errors import CodeTooLargeError, DeadlineExceededError, InvalidParameterError, ThrottledError
from lambent_common import archive

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable

    from lambent_common.packages import PackageInfo, PackageStore

# Each may take 50 MiB of disk and a core for the check; the machine has other things to do.
_CONCURRENCY = 8
# Callers that wait for one of the places: gRPC's flow control holds back what they send. More are turned away at once.
_WAITING = 64
_WAIT_TIMEOUT_S = 30.0
# As long as a slow line needs for 50 MB at 1 Mbit/s; a caller who stops sending gives up its place.
_UPLOAD_TIMEOUT_S = 420.0
_CHUNK_TIMEOUT_S = 30.0
# Writes to disk are handed to a thread this much at a time.
_WRITE_BYTES = 1024 * 1024

_Argument = TypeVar("_Argument")


class Uploads:
    """Receives packages.

    Args:
        packages: Where they go.
        directory: An existing directory for files on their way; None takes the system's own.
    """

    def __init__(self, packages: PackageStore, directory: Path | None = None) -> None:
        self._packages = packages
        self._directory = directory
        self._places = asyncio.Semaphore(_CONCURRENCY)
        self._waiting = 0

    async def receive(self, chunks: AsyncIterable[bytes]) -> PackageInfo:
        """Store what arrives when it is a sound package.

        Raises:
            InvalidCodeError, InvalidParameterError, CodeTooLargeError: See `archive.check`.
            DeadlineExceededError: The caller stopped sending.
            ThrottledError: Eight uploads are under way, and none ended in time.
            UnavailableError: JetStream does not answer; nothing was taken in when it was away from the first.
        """
        # First, so that nobody waits, or sends 50 MB, to be refused then.
        await self._packages.check_available()
        await self._enter()
        try:
            return await self._receive(chunks)
        finally:
            self._places.release()

    async def _enter(self) -> None:
        if self._waiting < _WAITING:
            self._waiting += 1
            try:
                async with asyncio.timeout(_WAIT_TIMEOUT_S):
                    await self._places.acquire()
            except TimeoutError:
                pass
            else:
                return
            finally:
                self._waiting -= 1
        raise ThrottledError(
            f"{_CONCURRENCY} uploads are under way. Please try again later.",
            details={"Reason": "CallerRateLimitExceeded"},
        )

    async def _receive(self, chunks: AsyncIterable[bytes]) -> PackageInfo:
        # The file has no name: nothing of it is left, however the process ends.
        with tempfile.TemporaryFile(dir=self._directory) as file:
            await _write_all(chunks, file)
            file.flush()
            path = Path(f"/proc/self/fd/{file.fileno()}")
            await _in_thread(archive.check, path)
            return await self._packages.put(path)


async def _in_thread(function: Callable[[_Argument], object], argument: _Argument) -> None:
    """Call a function in a thread. A cancellation waits for it: until then it uses its file, and a core."""
    call = asyncio.ensure_future(asyncio.to_thread(function, argument))
    try:
        await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.gather(call, return_exceptions=True)
        raise


async def _write_all(chunks: AsyncIterable[bytes], file: IO[bytes]) -> None:
    size_bytes = 0
    waiting = bytearray()
    iterator = aiter(chunks)
    try:
        async with asyncio.timeout(_UPLOAD_TIMEOUT_S):
            while True:
                async with asyncio.timeout(_CHUNK_TIMEOUT_S):
                    chunk = await anext(iterator, None)
                if chunk is None:
                    break
                size_bytes += len(chunk)
                if size_bytes > archive.ZIPPED_LIMIT_BYTES:
                    raise CodeTooLargeError(f"Zipped size must be smaller than {archive.ZIPPED_LIMIT_BYTES} bytes")
                waiting += chunk
                if len(waiting) >= _WRITE_BYTES:
                    block, waiting = waiting, bytearray()
                    await _in_thread(file.write, block)
    except TimeoutError as error:
        raise DeadlineExceededError("The code package did not arrive in time.") from error
    if not size_bytes:
        raise InvalidParameterError("Uploaded file must be a non-empty zip")
    await _in_thread(file.write, waiting)
