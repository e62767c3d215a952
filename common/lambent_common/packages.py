"""Code packages in JetStream's object store: bucket `lambent-code`, an object's name is its SHA-256.

The layout is the one of NATS's object stores (ADR-20 of nats-io/nats-architecture-and-design), so that `nats object
ls` shows the packages. The client library's own class is not used: it has no deadline for a download, leaves its
subscription behind when it is cancelled, and writes an object's description without comparing what it replaces.

A package that nothing refers to is first marked, and deleted only after the mark has stood for a day (`PackageSweep`
of the scheduler). Each of these steps compares the sequence number of the object's description, as does `claim`,
which takes the mark away: either the claim comes first and the deletion fails, or the deletion comes first and the
claim says so.

An upload writes the chunks first and their description last. Chunks that got none, because the uploader died or was
never told whether its description is stored, are deleted by the same sweep.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

import nats.errors
import nats.js.errors
from nats.js import api

from lambent.errors import InvalidParameterError, ResourceNotFoundError, UnavailableError
from lambent_common.nats import WRONG_LAST_SEQUENCE, ensure_stream, jetstream_errors
from lambent_common.stream_reader import StreamReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

    from nats.js import JetStreamContext

BUCKET = "lambent-code"
_STREAM = f"OBJ_{BUCKET}"
_META_PREFIX = f"$O.{BUCKET}.M."
_CHUNK_PREFIX = f"$O.{BUCKET}.C."
# What NATS's own clients use: well under the server's largest message (1 MiB).
_CHUNK_BYTES = 128 * 1024
# Disk work is handed to a thread this much at a time.
_BLOCK_CHUNKS = 8
# Attempts to write a description against others who write it at the same time; each loss means that one of them won.
_ATTEMPTS = 5
# A store that went away during an upload is not waited for much longer.
_TAKE_BACK_TIMEOUT_S = 1.0
# A server that is restarted is back, and found again, within less.
_AVAILABLE_TIMEOUT_S = 3.0
_MARK = "unreferenced_since"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PackageInfo:
    """A stored package.

    Attributes:
        sha256: Lower-case hexadecimal SHA-256 of the zip; its name.
        size_bytes: Size of the zip.
        unreferenced_since: Unix time in seconds since when nothing refers to it, as far as the sweep knows; else None.
        sequence: Of the description in the stream; what a change compares.
        description: As stored: the object store's own JSON.
    """

    sha256: str
    size_bytes: int
    unreferenced_since: float | None
    sequence: int
    description: Mapping[str, object] = field(repr=False, compare=False)


class PackageStore:
    """The packages of the cluster. All methods raise UnavailableError when JetStream does not answer."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js

    @classmethod
    async def open(cls, js: JetStreamContext) -> Self:
        """Give the store; the bucket is made when it does not exist."""
        config = api.StreamConfig(
            name=_STREAM,
            description="Code packages by SHA-256",
            subjects=[f"{_CHUNK_PREFIX}>", f"{_META_PREFIX}>"],
            discard=api.DiscardPolicy.NEW,
            storage=api.StorageType.FILE,
            allow_rollup_hdrs=True,
            allow_direct=True,
        )
        await ensure_stream(js, config)
        return cls(js)

    async def check_available(self, *, timeout_s: float = _AVAILABLE_TIMEOUT_S) -> None:
        """Return when the store answers.

        Raises:
            UnavailableError: It did not within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s), jetstream_errors("code packages"):
                await self._js.stream_info(_STREAM)
        except (TimeoutError, UnavailableError) as error:
            reason = str(error) or f"NATS does not answer within {timeout_s:g} s"
            raise UnavailableError(f"the package store is away: {reason}") from error

    async def put(self, path: Path, *, timeout_s: float = 120.0) -> PackageInfo:
        """Store a file; nothing is sent when its content is stored already, but a mark on it is taken away.

        Raises:
            UnavailableError: JetStream does not answer, or the file was not stored within `timeout_s`.
        """
        with path.open("rb") as file:
            sha256 = await asyncio.to_thread(_digest, file)
            size_bytes = file.seek(0, os.SEEK_END)
            try:
                async with asyncio.timeout(timeout_s), jetstream_errors(f"storing the package {sha256}"):
                    for _ in range(_ATTEMPTS):
                        if (info := await self._claim(sha256)) is not None:
                            return info
                        if (info := await self._upload(file, sha256, size_bytes)) is not None:
                            return info
            except TimeoutError as error:
                raise UnavailableError(f"the package {sha256} could not be stored within {timeout_s:g} s") from error
        raise UnavailableError(f"the package {sha256} is stored and deleted by others all the time")

    async def claim(self, sha256: str) -> PackageInfo:
        """Give the package and take a mark away, so that it stays for another day at least.

        Raises:
            InvalidParameterError: It is not stored.
        """
        _check_name(sha256)
        async with jetstream_errors(f"the package {sha256}"):
            info = await self._claim(sha256)
        if info is None:
            raise InvalidParameterError(f"The code package {sha256} is not stored. Please upload it again.")
        return info

    async def exists(self, sha256: str) -> bool:
        """Tell whether the package is stored."""
        return await self.info(sha256) is not None

    async def info(self, sha256: str) -> PackageInfo | None:
        """Give what is known about a package; None when it is not stored."""
        async with jetstream_errors(f"the package {sha256}"):
            return await self._info(sha256)

    async def fetch(self, sha256: str, destination: Path, timeout_s: float) -> None:
        """Write a package to a file, which appears under its name only when it is whole and its digest is right.

        Raises:
            ResourceNotFoundError: It is not stored.
            UnavailableError: It did not arrive within `timeout_s`, or arrived damaged.
        """
        temporary = _temporary_file(destination.parent)
        try:
            async with asyncio.timeout(timeout_s), jetstream_errors(f"fetching the package {sha256}"):
                info = await self._info(sha256)
                if info is None:
                    raise ResourceNotFoundError(f"The code package {sha256} is not stored.")
                await self._download(info, temporary)
            temporary.replace(destination)
        except TimeoutError as error:
            raise UnavailableError(f"the package {sha256} did not arrive within {timeout_s:g} s") from error
        finally:
            temporary.unlink(missing_ok=True)

    async def list(self) -> list[PackageInfo]:
        """Give all packages, in no particular order."""
        read = [_package(description, sequence) for description, sequence in await self._descriptions()]
        return [info for info in read if info is not None]

    async def mark_unreferenced(self, info: PackageInfo, since: float | None) -> bool:
        """Note since when nothing refers to a package, in Unix seconds; None takes the mark away.

        Returns:
            False when somebody else changed its description since `info` was read; nothing is changed then.
        """
        async with jetstream_errors(f"the package {info.sha256}"):
            return await self._mark(info, since) is not None

    async def delete(self, sha256: str) -> bool:
        """Delete a package, referred to or not. False when it is not stored."""
        info = await self.info(sha256)
        return info is not None and await self.delete_unchanged(info)

    async def delete_unchanged(self, info: PackageInfo) -> bool:
        """Delete a package unless its description changed since `info` was read.

        Returns:
            Whether it was deleted.
        """
        async with jetstream_errors(f"deleting the package {info.sha256}"):
            gone = {**info.description, "deleted": True, "size": 0, "chunks": 0, "digest": "", "metadata": {}}
            sequence = await self._describe(info.sha256, gone, expected_sequence=info.sequence)
            if sequence is None:
                return False
            await self._js.purge_stream(_STREAM, subject=_CHUNK_PREFIX + str(info.description["nuid"]))
            # The tombstone itself, too, but nothing that was written after it.
            await self._js.purge_stream(_STREAM, seq=sequence + 1, subject=_meta_subject(info.sha256))
            return True

    async def delete_abandoned(self, before: float) -> int:
        """Delete chunks that no description names, except of uploads that wrote one since `before`, in Unix seconds.

        Those may be under way: `before` has to be further back than an upload takes.

        Returns:
            Of how many uploads there were some.
        """
        written: dict[str, tuple[float, int]] = {}
        async with StreamReader(self._js, _STREAM, f"{_CHUNK_PREFIX}>", last_headers=True) as reader:
            while reader.pending:
                for message in await reader.read():
                    metadata = message.metadata
                    written[message.subject] = metadata.timestamp.timestamp(), metadata.sequence.stream
        # After the chunks: what was complete by then has its description by now. An object of another kind, too.
        named = {_CHUNK_PREFIX + str(description.get("nuid")) for description, _ in await self._descriptions()}
        abandoned = {
            subject: sequence for subject, (time, sequence) in written.items() if time < before and subject not in named
        }
        async with jetstream_errors("deleting chunks of uploads that were abandoned"):
            for subject, sequence in abandoned.items():
                await self._js.purge_stream(_STREAM, seq=sequence + 1, subject=subject)
        return len(abandoned)

    async def _descriptions(self) -> Sequence[tuple[Mapping[str, object], int]]:
        """Read the descriptions of all objects that are not deleted, with their sequence numbers.

        Raises:
            UnavailableError: JetStream does not answer, or the member that was read from lags behind the leader: taken
                for all there is, its part would have chunks of stored packages deleted.
        """
        async with jetstream_errors("the newest package"):
            newest, _ = await self._last_message(f"{_META_PREFIX}>")
        found, last = [], 0
        async with StreamReader(self._js, _STREAM, f"{_META_PREFIX}>") as reader:
            while reader.pending:
                for message in await reader.read():
                    last = message.metadata.sequence.stream
                    description = json.loads(message.data)
                    if not description.get("deleted"):
                        found.append((description, last))
        if last < newest:
            raise UnavailableError(f"a member of NATS knows the packages up to {last}, of {newest}")
        return found

    async def _claim(self, sha256: str) -> PackageInfo | None:
        for _ in range(_ATTEMPTS):
            info = await self._info(sha256)
            if info is None or info.unreferenced_since is None:
                return info
            if (claimed := await self._mark(info, None)) is not None:
                return claimed
        raise UnavailableError(f"the package {sha256} is changed by others all the time")

    async def _info(self, sha256: str) -> PackageInfo | None:
        return (await self._look_up(sha256))[1]

    async def _look_up(self, sha256: str) -> tuple[int, PackageInfo | None]:
        """Give the sequence number of a description, 0 where there is none, and the package unless it is deleted."""
        sequence, data = await self._last_message(_meta_subject(sha256))
        return sequence, _package(json.loads(data), sequence) if sequence else None

    async def _last_message(self, subject: str) -> tuple[int, bytes]:
        """Ask the leader for the newest message of a subject: its sequence number, 0 where there is none, and data."""
        # Not a direct read: a follower may not know yet what the leader has acknowledged.
        try:
            message = await self._js.get_last_msg(_STREAM, subject)
        except nats.js.errors.NotFoundError:
            return 0, b""
        return message.seq or 0, message.data or b""

    async def _mark(self, info: PackageInfo, since: float | None) -> PackageInfo | None:
        marks = {} if since is None else {_MARK: repr(since)}
        description = {**info.description, "metadata": marks}
        sequence = await self._describe(info.sha256, description, expected_sequence=info.sequence)
        if sequence is None:
            return None
        return PackageInfo(info.sha256, info.size_bytes, since, sequence, description)

    async def _upload(self, file: IO[bytes], sha256: str, size_bytes: int) -> PackageInfo | None:
        """Send the chunks, then the description; None when somebody else described the package meanwhile."""
        nuid = os.urandom(11).hex()
        may_be_described = False
        try:
            file.seek(0)
            chunks = 0
            while block := await asyncio.to_thread(file.read, _CHUNK_BYTES * _BLOCK_CHUNKS):
                for offset in range(0, len(block), _CHUNK_BYTES):
                    await self._js.publish(_CHUNK_PREFIX + nuid, block[offset : offset + _CHUNK_BYTES])
                    chunks += 1
            digest = base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode()
            description = {
                "name": sha256,
                "options": {"max_chunk_size": _CHUNK_BYTES},
                "metadata": {},
                "bucket": BUCKET,
                "nuid": nuid,
                "size": size_bytes,
                "mtime": datetime.now(UTC).isoformat(),
                "chunks": chunks,
                "digest": f"SHA-256={digest}",
            }
            replaced, info = await self._look_up(sha256)
            if info is not None:
                return None
            # A description that is not acknowledged may be stored all the same, or be so later: chunks are then left to
            # the sweep, since a package that has a description but no chunks could be neither fetched nor put again.
            may_be_described = True
            sequence = await self._describe(sha256, description, expected_sequence=replaced)
            may_be_described = sequence is not None
            return PackageInfo(sha256, size_bytes, None, sequence, description) if sequence is not None else None
        finally:
            if not may_be_described:
                # Best effort: what is left of them the sweep deletes.
                with contextlib.suppress(nats.errors.Error, TimeoutError):
                    async with asyncio.timeout(_TAKE_BACK_TIMEOUT_S):
                        await asyncio.shield(self._js.purge_stream(_STREAM, subject=_CHUNK_PREFIX + nuid))

    async def _describe(self, sha256: str, description: Mapping[str, object], *, expected_sequence: int) -> int | None:
        """Replace the description whose sequence number is the expected one (0: there is none); None when it is not."""
        headers = {
            api.Header.ROLLUP.value: "sub",
            api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(expected_sequence),
        }
        try:
            ack = await self._js.publish(_meta_subject(sha256), json.dumps(description).encode(), headers=headers)
        except nats.js.errors.APIError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                return None
            raise
        return int(ack.seq)

    async def _download(self, info: PackageInfo, path: Path) -> None:
        subject = _CHUNK_PREFIX + str(info.description["nuid"])
        digest = hashlib.sha256()
        sequence = 0
        block: list[bytes] = []
        missing = int(str(info.description["chunks"]))
        with path.open("wb") as file:
            while missing:
                sequence, chunk = await self._chunk(subject, sequence + 1)
                block.append(chunk)
                missing -= 1
                if len(block) == _BLOCK_CHUNKS or not missing:
                    await asyncio.to_thread(_write, file, digest, block)
                    block = []
        if digest.hexdigest() != info.sha256:
            raise UnavailableError(f"the package {info.sha256} arrived damaged: its digest is {digest.hexdigest()}")

    async def _chunk(self, subject: str, from_sequence: int) -> tuple[int, bytes]:
        for direct in (True, False):  # a follower that lags is asked first, then the leader
            try:
                message = await self._js.get_msg(_STREAM, seq=from_sequence, subject=subject, direct=direct, next=True)
            except nats.js.errors.NotFoundError:
                continue
            return message.seq or 0, message.data or b""
        raise ResourceNotFoundError("The code package was deleted while it was fetched.")


def _meta_subject(sha256: str) -> str:
    return _META_PREFIX + base64.urlsafe_b64encode(sha256.encode()).decode()


def _check_name(sha256: str) -> None:
    if not _SHA256.fullmatch(sha256):
        raise InvalidParameterError(f"{sha256[:80]!r} is not a SHA-256 in lower-case hexadecimal")


def _package(description: Mapping[str, object], sequence: int) -> PackageInfo | None:
    """Read a description; None for a deleted object and for one that is no package of ours."""
    name = str(description.get("name", ""))
    if description.get("deleted") or not _SHA256.fullmatch(name):
        return None
    metadata = description.get("metadata")
    mark = metadata.get(_MARK) if isinstance(metadata, dict) else None
    size_bytes = int(str(description["size"]))
    return PackageInfo(name, size_bytes, None if mark is None else float(mark), sequence, description)


def _digest(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # the stub wants a private protocol


def _write(file: IO[bytes], digest: hashlib._Hash, block: list[bytes]) -> None:
    for chunk in block:
        digest.update(chunk)
        file.write(chunk)


def _temporary_file(directory: Path) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=".package-", dir=directory)
    os.close(descriptor)
    return Path(name)
