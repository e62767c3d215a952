"""Checking and unpacking of code packages: the one place that reads zips made by others.

A zip is hostile until shown otherwise: sizes in its headers are claims, names may point anywhere, entries may be
links or devices. `check` therefore decompresses everything once, counting, and writes nothing; `extract` applies the
same rules while it writes, so that a package is safe to extract even where nobody checked it before.

Both are synchronous and may take a second for a large package: run them off the event loop (`asyncio.to_thread`).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from lambent.errors import CodeTooLargeError, InvalidCodeError, InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# AWS Lambda quotas: a directly uploaded zip, and code unzipped (layers included).
ZIPPED_LIMIT_BYTES = 52_428_800
UNZIPPED_LIMIT_BYTES = 262_144_000
# Every entry costs a directory slot and an inode on each node; the largest real packages have some 30,000.
ENTRIES_LIMIT = 65_536
# What the usual file systems take: NAME_MAX and, less the directory that the code is unpacked in, PATH_MAX.
_COMPONENT_LIMIT_BYTES = 255
_PATH_LIMIT_BYTES = 3_072
_DEPTH_LIMIT = 128  # folders in each other: far more than any package has, and no recursion gets deep
# A block this large keeps the work inside zlib, which lets go of the interpreter lock.
_BLOCK_BYTES = 256 * 1024
# What every Python can read; bzip2 and LZMA may be missing, need much memory, and bomb better.
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_FLAG_ENCRYPTED = 0x1
_SHOWN_CHARACTERS = 128
_CENTRAL_SIGNATURE = b"PK\x01\x02"

_NOT_A_ZIP = "Could not unzip uploaded file. Please check your file, then try to upload again."

# All that zipfile may raise on crafted input. struct.error: short extra fields. ValueError: names that claim UTF-8
# and are not, negative offsets. NotImplementedError: unknown versions and methods. RuntimeError: encryption.
# OverflowError, EOFError, LookupError: offsets and lengths that lie.
_CORRUPT = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    EOFError,
    LookupError,
)


@dataclass(frozen=True, slots=True)
class ArchiveSummary:
    """What a sound package holds.

    Attributes:
        zipped_bytes: Size of the zip itself.
        unzipped_bytes: Sum of the sizes of its files, as decompressed.
        entries: Files and folders listed.
    """

    zipped_bytes: int
    unzipped_bytes: int
    entries: int


def check(path: Path) -> ArchiveSummary:
    """Decompress a package to nowhere and say what it holds.

    Raises:
        CodeTooLargeError: The zip itself is over 52,428,800 bytes.
        InvalidParameterError: It is empty, or unzipped over 262,144,000 bytes, whatever its headers say.
        InvalidCodeError: It is not a sound zip, or holds an entry that does not belong into a package.
    """
    zipped_bytes = _zipped_size(path)
    with _corrupt_is_invalid(), zipfile.ZipFile(path) as archive:
        entries = _sound_entries(archive, zipped_bytes)
        unzipped_bytes = 0
        for entry in entries:
            for block in _blocks(archive, entry):
                unzipped_bytes = _count(unzipped_bytes, block)
    return ArchiveSummary(zipped_bytes, unzipped_bytes, len(entries))


def extract(path: Path, destination: Path) -> ArchiveSummary:
    """Unpack a package into an existing, empty directory of ours.

    Files become 0644, or 0755 when the archive marks them executable by anyone; folders 0755: the function runs under
    another user id. Owner, times and set-id bits are not taken over. After an error part of it may have been written;
    the caller removes the directory.

    Raises:
        CodeTooLargeError, InvalidParameterError, InvalidCodeError: As `check`.
        OSError: The disk is full, or the directory cannot be written.
    """
    zipped_bytes = _zipped_size(path)
    with _corrupt_is_invalid(), zipfile.ZipFile(path) as archive:
        entries = _sound_entries(archive, zipped_bytes)
        made = {destination}
        unzipped_bytes = 0
        for entry in entries:
            target = destination.joinpath(*entry.parts)
            _make_folders(target if entry.folder else target.parent, made)
            if entry.folder:
                continue
            with _create(target, executable=entry.executable) as file:
                for block in _blocks(archive, entry):
                    unzipped_bytes = _count(unzipped_bytes, block)
                    file.write(block)
    return ArchiveSummary(zipped_bytes, unzipped_bytes, len(entries))


@dataclass(frozen=True, slots=True)
class _Entry:
    info: zipfile.ZipInfo
    parts: tuple[str, ...]
    folder: bool
    executable: bool


@contextmanager
def _corrupt_is_invalid() -> Iterator[None]:
    try:
        yield
    except _CORRUPT as error:
        raise InvalidCodeError(_NOT_A_ZIP) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # a seek to an offset that lies
            raise InvalidCodeError(_NOT_A_ZIP) from error
        raise


def _zipped_size(path: Path) -> int:
    zipped_bytes = path.stat().st_size
    if zipped_bytes == 0:
        raise InvalidParameterError("Uploaded file must be a non-empty zip")
    if zipped_bytes > ZIPPED_LIMIT_BYTES:
        raise CodeTooLargeError(f"Zipped size must be smaller than {ZIPPED_LIMIT_BYTES} bytes")
    if _central_signatures(path) > 2 * ENTRIES_LIMIT:
        # zipfile reads the whole directory into memory before anybody can count it. Twice the limit, because a
        # stored archive inside the archive shows its own directory too.
        raise InvalidCodeError(f"The zip has more than {ENTRIES_LIMIT} entries.")
    return zipped_bytes


def _central_signatures(path: Path) -> int:
    count = 0
    tail = b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            count += (tail + block).count(_CENTRAL_SIGNATURE)
            tail = block[-len(_CENTRAL_SIGNATURE) + 1 :]
    return count


def _sound_entries(archive: zipfile.ZipFile, zipped_bytes: int) -> list[_Entry]:
    """Check everything that the directory of the archive says."""
    infos = archive.infolist()
    if not infos:
        raise InvalidParameterError("Uploaded file must be a non-empty zip")
    if len(infos) > ENTRIES_LIMIT:
        raise InvalidCodeError(f"The zip has {len(infos)} entries; at most {ENTRIES_LIMIT} are allowed.")
    if sum(info.compress_size for info in infos) > zipped_bytes:
        # Entries that share data: the way a small zip becomes a petabyte, or an hour of decompressing nothing.
        raise InvalidCodeError(_NOT_A_ZIP)
    entries = [_sound_entry(info) for info in infos]
    _refuse_collisions(entries)
    return entries


def _sound_entry(info: zipfile.ZipInfo) -> _Entry:
    name = info.orig_filename
    if info.flag_bits & _FLAG_ENCRYPTED:
        raise InvalidCodeError(f"The zip's entry {_shown(name)} is encrypted; encrypted entries cannot be read.")
    if info.compress_type not in _METHODS:
        raise InvalidCodeError(f"The zip's entry {_shown(name)} is compressed by a method other than deflate.")
    # The upper half of the attributes is the Unix mode; archivers for other systems leave it 0.
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    folder = name.endswith("/")
    if kind not in (0, stat.S_IFDIR if folder else stat.S_IFREG):
        raise InvalidCodeError(
            f"The zip's entry {_shown(name)} is neither a file nor a folder; links and devices are refused."
        )
    parts = _sound_parts(name)
    if not parts and not folder:
        raise InvalidCodeError(f"The zip's entry {_shown(name)} has no name.")
    return _Entry(info, parts, folder, executable=bool(mode & 0o111) and kind == stat.S_IFREG)


def _shown(name: str) -> str:
    """Quote a name for a message, which must fit the 8 KiB of a gRPC status."""
    return repr(name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}...")


def _sound_parts(name: str) -> tuple[str, ...]:
    """Split a name at its slashes, leaving out what stands for the same folder."""
    if "\0" in name or "\\" in name:
        raise InvalidCodeError(
            f"The zip's entry {_shown(name)} has a backslash or a zero byte in its name; use forward slashes."
        )
    if name.startswith("/"):
        raise InvalidCodeError(f"The zip's entry {_shown(name)} has an absolute path.")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise InvalidCodeError(f"The zip's entry {_shown(name)} leads out of the package.")
    if len(name.encode()) > _PATH_LIMIT_BYTES or any(len(part.encode()) > _COMPONENT_LIMIT_BYTES for part in parts):
        raise InvalidCodeError(f"The zip's entry {_shown(name)} has too long a name.")
    if len(parts) > _DEPTH_LIMIT:
        raise InvalidCodeError(f"The zip's entry {_shown(name)} lies in more than {_DEPTH_LIMIT} folders.")
    return parts


class _Place:
    """A name in the tree of what the package will put on disk."""

    __slots__ = ("children", "is_file", "spelling")

    def __init__(self, spelling: str) -> None:
        self.spelling = spelling
        self.children: dict[str, _Place] = {}
        self.is_file = False


def _refuse_collisions(entries: list[_Entry]) -> None:
    """Refuse entries that need the same place, also where only Unicode's normal form tells their names apart.

    A tree, so that the cost is the length of all names; folders that are only implied count as entries.
    """
    root = _Place("")
    places = 0
    for entry in entries:
        place = root
        for part in entry.parts:
            _refuse_if(place.is_file, entry, "is inside of another entry that is a file")
            normal = unicodedata.normalize("NFC", part)
            child = place.children.get(normal)
            if child is None:
                child = place.children[normal] = _Place(part)
                places += 1
                if places > ENTRIES_LIMIT:
                    raise InvalidCodeError(f"The zip makes more than {ENTRIES_LIMIT} files and folders.")
            _refuse_if(child.spelling != part, entry, "differs from another one only by how its letters are encoded")
            place = child
        _refuse_if(place.is_file, entry, "occurs twice")
        _refuse_if(bool(place.children) and not entry.folder, entry, "is both a file and a folder")
        place.is_file = not entry.folder


def _refuse_if(condition: bool, entry: _Entry, what: str) -> None:
    if condition:
        raise InvalidCodeError(f"The zip's entry {_shown('/'.join(entry.parts))} {what}.")


def _blocks(archive: zipfile.ZipFile, entry: _Entry) -> Iterator[bytes]:
    """Decompress one entry. Never holds more than a block; the checksum is compared at its end."""
    with archive.open(entry.info) as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _count(total: int, block: bytes) -> int:
    total += len(block)
    if total > UNZIPPED_LIMIT_BYTES:
        raise InvalidParameterError(f"Unzipped size must be smaller than {UNZIPPED_LIMIT_BYTES} bytes")
    return total


def _make_folders(folder: Path, made: set[Path]) -> None:
    if folder in made:
        return
    _make_folders(folder.parent, made)
    folder.mkdir()
    folder.chmod(0o755)  # whatever our umask is
    made.add(folder)


def _create(target: Path, *, executable: bool) -> IO[bytes]:
    mode = 0o755 if executable else 0o644
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    os.fchmod(descriptor, mode)  # whatever our umask is
    return os.fdopen(descriptor, "wb")
