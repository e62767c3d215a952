"""Unpacked code of function versions on this node, by SHA-256: bounded in bytes, the least recently used goes."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from lambent.errors import InvalidParameterError, NoCapacityError
from lambent_common import archive

log = structlog.get_logger(__name__)

# Twenty packages of the largest size that AWS allows (250 MiB unpacked).
DEFAULT_CAPACITY_BYTES: Final = 5 * 1024 * 1024 * 1024
# 50 MiB over a slow network; the caller's own patience is shorter.
_FETCH_TIMEOUT_S: Final = 60.0
# Zips of up to 50 MiB that are here before their code is: on a slow link a large one holds up no small one, and the
# disk that they take is bounded.
_TAKE_AT_ONCE: Final = 8
# Unpacking is zlib in a thread: more at once than CPUs only fills the disk faster than it can be bounded.
_UNPACK_AT_ONCE: Final = 2
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
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

    It survives the agent and not the machine: nothing is forced to the disk, so after a power cut a file may be there
    and its content not. Code lies in a directory of the machine's boot; another boot's is removed.

    Args:
        directory: The agent's own; made when it does not exist.
        capacity_bytes: Most bytes of unpacked code. Packages that are being unpacked come on top, two at most, and up
            to eight zips that are being fetched.
        source: Where a package comes from that is not here.
    """

    def __init__(self, directory: Path, source: PackageSource, *, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        self._root = directory
        self._directory = directory / _BOOT_ID.read_text().strip()
        self._source = source
        self._capacity_bytes = capacity_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._size_bytes = 0
        self._arriving: dict[str, asyncio.Task[_Entry]] = {}
        self._taking = asyncio.Semaphore(_TAKE_AT_ONCE)
        self._unpacking = asyncio.Semaphore(_UNPACK_AT_ONCE)
        self._changing = asyncio.Lock()  # of what is held: one makes room or takes it at a time

    @property
    def size_bytes(self) -> int:
        """Bytes of unpacked code that are held."""
        return self._size_bytes

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._entries

    async def open(self) -> None:
        """Take over what an earlier run left, and remove what it left unfinished."""
        await asyncio.to_thread(_keep_only, self._root, self._directory)
        for sha256, entry in await asyncio.to_thread(_scan, self._directory):
            self._entries[sha256] = entry
            self._size_bytes += entry.size_bytes
        await self._make_room(0)

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
        async with self._taking:
            work = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=_TEMPORARY_PREFIX, dir=self._directory))
            try:
                await self._source.fetch(sha256, work / "package.zip", _FETCH_TIMEOUT_S)
                async with self._unpacking:
                    size_bytes = await asyncio.to_thread(_unpack, work / "package.zip", work / "code")
                    async with self._changing:
                        await self._make_room(size_bytes)
                        return await self._hold(sha256, work / "code", size_bytes)
            finally:
                await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    async def _hold(self, sha256: str, code: Path, size_bytes: int) -> _Entry:
        entry = _Entry(self._directory / sha256, size_bytes)
        await asyncio.to_thread(code.rename, entry.path)
        self._entries[sha256] = entry
        self._size_bytes += size_bytes
        return entry

    async def _make_room(self, needed_bytes: int) -> None:
        """Remove code that is not in use, the least recently used first; one caller at a time."""
        idle = [sha256 for sha256, entry in self._entries.items() if not entry.references]
        for sha256 in idle:
            if self._size_bytes + needed_bytes <= self._capacity_bytes:
                return
            entry = self._entries[sha256]
            if entry.references:  # taken while the one before was removed
                continue
            del self._entries[sha256]
            self._size_bytes -= entry.size_bytes
            await asyncio.to_thread(_remove, entry.path)
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


def _remove(path: Path) -> None:
    """Remove complete code. Moved away first: a directory under its digest is complete, whenever the agent dies."""
    doomed = tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=path.parent)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _keep_only(root: Path, directory: Path) -> None:
    """Make a directory, and remove everything beside it."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    for other in root.iterdir():
        if other != directory:
            shutil.rmtree(other, ignore_errors=True)


def _scan(directory: Path) -> list[tuple[str, _Entry]]:
    """List what is complete, the least recently changed first, and remove the rest."""
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
