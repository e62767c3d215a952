"""Unpacked code of function versions on this node, by SHA-256: bounded in bytes, the least recently used goes."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from lambent.errors import InvalidParameterError, NoCapacityError
from lambent_common import archive

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger(__name__)

# Twenty packages of the largest size that AWS allows (250 MiB unpacked).
DEFAULT_CAPACITY_BYTES: Final = 5 * 1024 * 1024 * 1024
# 50 MiB over a slow network; the caller's own patience is shorter.
_FETCH_TIMEOUT_S: Final = 60.0
# Unpacking is zlib in a thread: more at once than CPUs only fills the disk faster than it can be bounded.
_UNPACK_AT_ONCE: Final = 2
_SHA256_DIGITS: Final = 64
_TEMPORARY_PREFIX: Final = ".unpacking-"


class PackageSource(Protocol):
    """Where packages come from: the cluster's package store."""

    async def fetch(self, sha256: str, destination: Path, timeout_s: float) -> None:
        """Write the zip to a file and check its digest."""


@dataclass(slots=True)
class _Entry:
    path: Path
    size_bytes: int
    references: int = 0


class CodeCache:
    """Directories of unpacked code. What an environment uses is never removed.

    Args:
        directory: The agent's own; made when it does not exist.
        capacity_bytes: Most bytes of unpacked code. Packages that are being unpacked come on top, two at most.
        source: Where a package comes from that is not here.
    """

    def __init__(self, directory: Path, source: PackageSource, *, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        self._directory = directory
        self._source = source
        self._capacity_bytes = capacity_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._size_bytes = 0
        self._arriving: dict[str, asyncio.Task[_Entry]] = {}
        self._unpacking = asyncio.Semaphore(_UNPACK_AT_ONCE)

    @property
    def size_bytes(self) -> int:
        """Bytes of unpacked code that are held."""
        return self._size_bytes

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._entries

    async def open(self) -> None:
        """Take over what an earlier run left, and remove what it left unfinished."""
        for sha256, entry in await asyncio.to_thread(_scan, self._directory):
            self._entries[sha256] = entry
            self._size_bytes += entry.size_bytes
        await self._evict(0)

    async def acquire(self, sha256: str) -> Path:
        """Give the directory of a package's code, fetched and unpacked when it is not here; release it after use.

        Any number of callers may wait for one package; it is fetched once. A caller that is cancelled leaves the
        fetching to the others.

        Raises:
            InvalidParameterError: This is no SHA-256, or the package is not sound.
            ResourceNotFoundError: The package is not stored.
            UnavailableError: It could not be fetched in time.
            NoCapacityError: Everything that is held is in use, and there is no room.
        """
        if len(sha256) != _SHA256_DIGITS or not set(sha256) <= set("0123456789abcdef"):
            raise InvalidParameterError(f"{sha256[:80]!r} is not a SHA-256 in lower-case hexadecimal")
        while (entry := self._entries.get(sha256)) is None:
            await self._arrive(sha256)
        entry.references += 1
        self._entries.move_to_end(sha256)
        return entry.path

    def release(self, sha256: str) -> None:
        """Say that one use of a package is over."""
        entry = self._entries[sha256]
        assert entry.references > 0, sha256
        entry.references -= 1

    async def _arrive(self, sha256: str) -> None:
        task = self._arriving.get(sha256)
        if task is None:
            task = asyncio.create_task(self._add(sha256))
            self._arriving[sha256] = task
            task.add_done_callback(lambda done: self._arrived(sha256, done))
        await asyncio.shield(task)

    def _arrived(self, sha256: str, task: asyncio.Task[_Entry]) -> None:
        del self._arriving[sha256]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("code_not_fetched", code_sha256=sha256, error=str(error))

    async def _add(self, sha256: str) -> _Entry:
        async with self._unpacking:
            path = self._directory / sha256
            work = await asyncio.to_thread(tempfile.mkdtemp, prefix=_TEMPORARY_PREFIX, dir=self._directory)
            unpacked = path.with_name(os.path.basename(work))
            try:
                package = unpacked / "package.zip"
                await self._source.fetch(sha256, package, _FETCH_TIMEOUT_S)
                size_bytes = await asyncio.to_thread(_unpack, package, unpacked / "code")
                await self._evict(size_bytes)
                await asyncio.to_thread((unpacked / "code").rename, path)
            finally:
                await asyncio.to_thread(shutil.rmtree, unpacked, ignore_errors=True)
            entry = _Entry(path, size_bytes)
            self._entries[sha256] = entry
            self._size_bytes += size_bytes
            return entry

    async def _evict(self, needed_bytes: int) -> None:
        """Make room, the least recently used first."""
        idle = [sha256 for sha256, entry in self._entries.items() if not entry.references]
        for sha256 in idle:
            if self._size_bytes + needed_bytes <= self._capacity_bytes:
                return
            entry = self._entries[sha256]
            if entry.references:  # taken while the one before was removed
                continue
            del self._entries[sha256]
            self._size_bytes -= entry.size_bytes
            # Renamed first: a directory under its digest is complete, whenever the agent dies.
            doomed = entry.path.with_name(f"{_TEMPORARY_PREFIX}gone-{sha256}")
            entry.path.rename(doomed)
            await asyncio.to_thread(shutil.rmtree, doomed, ignore_errors=True)
            log.info("code_evicted", code_sha256=sha256, size_bytes=entry.size_bytes)
        if self._size_bytes + needed_bytes > self._capacity_bytes:
            raise NoCapacityError(
                f"the node's code cache of {self._capacity_bytes} bytes has no room for {needed_bytes} more: "
                f"{self._size_bytes} are in use"
            )


def _unpack(package: Path, destination: Path) -> int:
    destination.mkdir()
    destination.chmod(0o755)  # whatever our umask is: the code belongs to root and is read by function users
    return archive.extract(package, destination).unzipped_bytes


def _scan(directory: Path) -> list[tuple[str, _Entry]]:
    """List what is complete, the least recently changed first, and remove the rest."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    found: list[tuple[float, str, _Entry]] = []
    for path in directory.iterdir():
        if path.name.startswith("."):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir():
            found.append((path.stat().st_mtime, path.name, _Entry(path, _tree_size(path))))
    return [(name, entry) for _, name, entry in sorted(found, key=lambda item: item[:2])]


def _tree_size(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, file)).st_size
    return total
