"""Code packages: reproducible zips of folders and files, with requirements installed when asked for.

The same names and bytes give the same zip, whatever the file system's order, times and owners, so that the SHA-256
tells whether code changed. (The same for one version of zlib: another one may compress differently.)
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, Self

from lambent.errors import CodeTooLargeError, InvalidCodeError
from lambent.requirements import install_requirements

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

MAX_ZIP_BYTES = 52_428_800
"""Largest zip (AWS Lambda quotas, direct upload)."""

MAX_UNZIPPED_BYTES = 262_144_000
"""Largest content of a zip (AWS Lambda quotas)."""

_CHUNK_BYTES = 256 * 1024
"""Piece of an upload: large enough that messages cost nothing, small enough for a progress bar to move."""

_IN_MEMORY_BYTES = 8 * 1024 * 1024
"""Zips up to this size never touch the disk."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can say."""

_UNIX = 3
"""`create_system` of an entry whose attributes are a Unix mode."""

_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        ".git",
        ".hg",
        ".svn",
        ".venv",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".hypothesis",
        ".tox",
        ".idea",
        ".vscode",
    }
)
_SKIPPED_FILES = frozenset({".DS_Store", "Thumbs.db"})
_SKIPPED_SUFFIXES = (".pyc", ".pyo")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a package: its name in the zip, where its bytes are, and whether it can be executed."""

    name: str
    content: Path | bytes
    executable: bool = False


class CodePackage:
    """A zip that is ready to be sent. Close it, or use it as a context manager, to free its temporary file.

    Attributes:
        sha256: Lower-case hexadecimal SHA-256.
        size_bytes: Size of the zip.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]  # the stub wants a real file's buffer
        self.sha256 = digest.hexdigest()
        self.size_bytes = file.seek(0, os.SEEK_END)

    def chunks(self) -> Iterator[bytes]:
        """Give the zip's bytes in order."""
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK_BYTES):
            yield chunk

    def close(self) -> None:
        """Free the temporary file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def build_package(
    source: Path | str | bytes,
    *,
    requirements: Path | str | Iterable[str] | None = None,
    runtime: str = "",
    prefix: str = "",
    extra: Mapping[str, bytes] | None = None,
) -> CodePackage:
    """Make the package of a function's code. Blocks: call it off the event loop.

    Args:
        source: A folder, a `.zip` file, a single source file, or the bytes of a zip.
        requirements: A requirements file, or requirement specifiers; installed beside the code, which wins where names
            clash. Not possible with a zip, which is sent as it is.
        runtime: For example `python3.11`: the version that requirements are installed for.
        prefix: Put before the names of a folder's files, for example `package/`.
        extra: Further files by name.

    Raises:
        InvalidCodeError: The source is missing, not a zip, empty, or has something a zip cannot carry safely.
        CodeTooLargeError: Over 52,428,800 bytes zipped or 262,144,000 unzipped (AWS Lambda quotas).
    """
    if isinstance(source, bytes):
        _refuse_additions(requirements, extra)
        return _open_zip(io.BytesIO(source), "the bytes given")
    path = Path(source)
    if not path.exists():
        raise InvalidCodeError(f"there is no code at {path}")
    if path.is_file() and path.suffix == ".zip":
        _refuse_additions(requirements, extra)
        return _open_zip(path.open("rb"), str(path))
    if path.is_dir():
        entries = [replace(entry, name=prefix + entry.name) for entry in folder_entries(path)]
    elif path.is_file():
        entries = [Entry(path.name, path, executable=os.access(path, os.X_OK))]
    else:
        raise InvalidCodeError(f"{path} is neither a file nor a folder")
    entries += [Entry(name, content) for name, content in (extra or {}).items()]
    if not requirements:
        return _zip_to_package(entries)
    with tempfile.TemporaryDirectory(prefix="lambent-requirements-") as target:
        install_requirements(requirements, Path(target), runtime)
        return _zip_to_package([*folder_entries(Path(target)), *entries])


def folder_entries(root: Path) -> list[Entry]:
    """List what a package of a folder holds: every file but caches, version control and virtual environments.

    Links to files inside the folder are followed.

    Raises:
        InvalidCodeError: A link leads out of the folder or to a folder, a file is a device, pipe or socket, or a folder
            cannot be read.
    """
    resolved_root = root.resolve()
    entries: list[Entry] = []
    for directory, folders, files in os.walk(root, onerror=_unreadable):
        here = Path(directory)
        folders[:] = sorted(name for name in folders if not _skip_folder(here / name))
        for name in folders:
            if (here / name).is_symlink():
                raise InvalidCodeError(f"{here / name} is a link to a folder; put the folder itself in its place")
        entries += [
            _file_entry(root, resolved_root, here / name)
            for name in sorted(files)
            if name not in _SKIPPED_FILES and not name.endswith(_SKIPPED_SUFFIXES)
        ]
    return entries


def write_zip(entries: Iterable[Entry], file: IO[bytes]) -> None:
    """Write a reproducible zip: entries by name, one fixed time, modes 0644 or 0755. The last of equal names wins.

    Raises:
        CodeTooLargeError: A limit is passed; nothing further is written.
    """
    by_name = {entry.name: entry for entry in entries}
    left_bytes = MAX_UNZIPPED_BYTES
    _check_unzipped_size(left_bytes - sum(_size(entry) for entry in by_name.values()))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(by_name):
            entry = by_name[name]
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = _UNIX
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (stat.S_IFREG | (0o755 if entry.executable else 0o644)) << 16
            with archive.open(info, "w") as target:
                for block in _blocks(entry.content):
                    left_bytes -= len(block)
                    _check_unzipped_size(left_bytes)  # A file may have grown since it was looked at.
                    target.write(block)
            _check_zip_size(file.tell())


def _zip_to_package(entries: list[Entry]) -> CodePackage:
    if not entries:
        raise InvalidCodeError("there is no file to package")
    # Closed by the CodePackage that it goes into.
    file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
    try:
        write_zip(entries, file)
        return CodePackage(file)
    except BaseException:
        file.close()
        raise


def _open_zip(file: IO[bytes], described: str) -> CodePackage:
    try:
        _check_zip(file, described)
        _check_zip_size(file.seek(0, os.SEEK_END))
        package = CodePackage(file)
    except BaseException:
        file.close()
        raise
    return package


def _check_zip(file: IO[bytes], described: str) -> None:
    if not zipfile.is_zipfile(file):
        raise InvalidCodeError(f"{described} is not a zip; give a folder, a .zip file, a source file or zip bytes")


def _refuse_additions(requirements: object, extra: object) -> None:
    if requirements or extra:
        raise InvalidCodeError("requirements cannot be added to a zip, which is sent as it is; give the folder instead")


def _check_zip_size(size_bytes: int) -> None:
    if size_bytes > MAX_ZIP_BYTES:
        raise CodeTooLargeError(f"Zipped size must be smaller than {MAX_ZIP_BYTES} bytes")


def _check_unzipped_size(left_bytes: int) -> None:
    if left_bytes < 0:
        raise CodeTooLargeError(f"Unzipped size must be smaller than {MAX_UNZIPPED_BYTES} bytes")


def _skip_folder(path: Path) -> bool:
    # A virtual environment may have any name; this file is what makes it one (PEP 405).
    return path.name in _SKIPPED_FOLDERS or os.path.exists(path / "pyvenv.cfg")  # False where it cannot be read


def _file_entry(root: Path, resolved_root: Path, path: Path) -> Entry:
    if path.is_symlink() and not path.resolve().is_relative_to(resolved_root):
        raise InvalidCodeError(f"{path} is a link that leads out of {root}; put the file itself in its place")
    try:
        regular = path.is_file()
    except OSError as error:
        _unreadable(error)
    if not regular:
        raise InvalidCodeError(f"{path} is not a regular file; a package holds files only")
    return Entry(path.relative_to(root).as_posix(), path, executable=os.access(path, os.X_OK))


def _size(entry: Entry) -> int:
    if isinstance(entry.content, bytes):
        return len(entry.content)
    try:
        return entry.content.stat().st_size
    except OSError as error:
        _unreadable(error)


def _blocks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    try:
        with content.open("rb") as file:
            while block := file.read(_CHUNK_BYTES):
                yield block
    except OSError as error:
        _unreadable(error)


def _unreadable(error: OSError) -> NoReturn:
    raise InvalidCodeError(f"{error.filename} cannot be read: {error.strerror}") from error
