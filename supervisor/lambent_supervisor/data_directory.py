"""Everything that a cluster on one machine keeps, and the lock that lets one supervisor at a time use it.

format          version of this layout
owner           random; part of the mark on control groups and directories
lock            held by the supervisor; holds its pid
processes.json  the supervisor's children
cluster.json    where the cluster serves; there only while it does
token           bearer token of its owner
authority/      the cluster's certificate authority and etcd's certificate
credentials/    what a daemon needs; see lambent_common.credentials
etcd/ nats/     their files
logs/           one file a child
nodes/<n>/      state of the agents
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from .errors import (
    DataDirectoryFormatError,
    DataDirectoryLockedError,
    DataDirectoryNotWritableError,
)
from .processes import ProcessId

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

# Raised when a later version cannot read what an earlier one wrote.
FORMAT_VERSION = 1

_DIRECTORIES = ("authority", "credentials", "etcd", "nats", "logs", "nodes")
_FILES = ("owner", "token", "format")
_DRAFT_SUFFIX = ".new"

# A supervisor writes its pid as soon as it has the lock.
_HOLDER_TIMEOUT_S = 1.0
_HOLDER_POLL_S = 0.005

# struct flock of fcntl(2): type, whence, start, length, pid. Open file description locks want pid 0, and can be asked
# for without being taken, so that who only looks is in nobody's way.
_FLOCK = "hhqqi4x"


@dataclass(frozen=True, slots=True)
class Address:
    """Where the cluster serves.

    Attributes:
        grpc: host:port of the scheduler's gRPC server.
        http: URL of its HTTP server.
        etcd: URL of etcd; for daemons that join.
        nats: URL of NATS; for daemons that join.
    """

    grpc: str
    http: str
    etcd: str
    nats: str


class DataDirectory:
    """The paths in a data directory; touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def format(self) -> Path:
        """Holds the format version."""
        return self.root / "format"

    @property
    def lock(self) -> Path:
        """Locked while a supervisor runs; holds its pid and start time."""
        return self.root / "lock"

    @property
    def processes(self) -> Path:
        """Holds the children's pids and start times."""
        return self.root / "processes.json"

    @property
    def cluster(self) -> Path:
        """Says where the cluster serves."""
        return self.root / "cluster.json"

    @property
    def token(self) -> Path:
        """The owner's bearer token."""
        return self.root / "token"

    @property
    def credentials(self) -> Path:
        """What daemons are given."""
        return self.root / "credentials"

    @property
    def authority(self) -> Path:
        """What daemons are not given."""
        return self.root / "authority"

    @property
    def etcd(self) -> Path:
        """Etcd's files."""
        return self.root / "etcd"

    @property
    def nats(self) -> Path:
        """nats-server's configuration and store."""
        return self.root / "nats"

    def log(self, name: str) -> Path:
        """Log file of a child."""
        return self.root / "logs" / f"{name}.log"

    def node(self, number: int) -> Path:
        """State of a node's agent; nodes are counted from 1."""
        return self.root / "nodes" / str(number)

    def mark(self) -> str | None:
        """Mark on control groups and directories of this cluster's agents; None before the first start.

        The path is in it, so that a copied data directory does not sweep the original's environments.
        """
        try:
            owner = (self.root / "owner").read_text().strip()
        except OSError:
            return None
        return hashlib.blake2b(f"{owner}\0{self.root.resolve()}".encode(), digest_size=6).hexdigest()

    def holder(self) -> ProcessId | None:
        """The supervisor that has this directory; None when none has.

        Raises:
            DataDirectoryNotWritableError: The lock cannot be opened.
            DataDirectoryLockedError: Somebody has it who cannot be seen from here.
        """
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _not_writable(self.root, error) from error
        try:
            return _wait_for_holder(self.root, descriptor)
        finally:
            os.close(descriptor)


class LockedDataDirectory:
    """A data directory that this process has for itself; `with` gives it back.

    Raises:
        DataDirectoryNotWritableError: It cannot be made or written.
        DataDirectoryLockedError: Another supervisor has it.
        DataDirectoryFormatError: It is of another format, or holds something else.
    """

    def __init__(self, directory: DataDirectory) -> None:
        self.directory = directory
        try:
            directory.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not directory.lock.exists():
                self._check_format()  # the lock is the first thing that a supervisor makes: nobody else is at work here
            self._descriptor = os.open(directory.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _not_writable(directory.root, error) from error
        try:
            self._take()
            self._check_format()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, ProcessId.own().encode(), 0)
            self._prepare()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def publish(self, address: Address) -> None:
        """Write cluster.json, by which SDK, CLI and joining daemons find the cluster."""
        content = {
            "grpc": address.grpc,
            "http": address.http,
            "data_dir": str(self.directory.root),
            "etcd": address.etcd,
            "nats": address.nats,
        }
        write_atomically(self.directory.cluster, json.dumps(content, indent=2).encode() + b"\n", mode=0o644)

    def withdraw(self) -> None:
        """Remove cluster.json."""
        self.directory.cluster.unlink(missing_ok=True)

    def _take(self) -> None:
        while not try_lock(self._descriptor):
            holder = _wait_for_holder(self.directory.root, self._descriptor)
            if holder is not None:
                raise _locked(self.directory.root, f"another `lambent up`, process {holder.pid}")

    def _prepare(self) -> None:
        root = self.directory.root
        try:
            for name in _DIRECTORIES:
                (root / name).mkdir(mode=0o700, exist_ok=True)
            write_once(root / "owner", secrets.token_hex(8))
            write_once(self.directory.token, secrets.token_urlsafe(32))
            write_atomically(self.directory.format, f"{FORMAT_VERSION}\n".encode())
        except OSError as error:
            raise _not_writable(root, error) from error

    def _check_format(self) -> None:
        root = self.directory.root
        try:
            found = self.directory.format.read_text().strip()
        except FileNotFoundError:
            # Anything that the first start makes may be there already: it may have been interrupted.
            ours = {"lock", *_DIRECTORIES, *_FILES, *(name + _DRAFT_SUFFIX for name in _FILES)}
            strange = sorted(entry.name for entry in root.iterdir() if entry.name not in ours)
            if strange:
                raise DataDirectoryFormatError(
                    f"{root} is not a data directory of Lambent: it holds {strange[0]} and no format version",
                    help_="Name an empty or new directory by --data-dir.",
                ) from None
            return
        except OSError as error:
            raise _not_writable(root, error) from error
        if found != str(FORMAT_VERSION):
            raise DataDirectoryFormatError(
                f"data directory {root} has format version {found or 'nothing'}, this Lambent uses {FORMAT_VERSION}",
                help_="Start it with the Lambent that made it, or name another by --data-dir.",
            )


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file so that a reader, and a crash, meet the old content or the new one."""
    draft = path.with_name(path.name + _DRAFT_SUFFIX)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)


def write_once(path: Path, content: str) -> str:
    """Give the content of a secret file, written now if it is missing or empty; its mode is 0600 in either case."""
    try:
        found = path.read_text().strip()
    except FileNotFoundError:
        found = ""
    if found:
        path.chmod(0o600)
        return found
    write_atomically(path, content.encode() + b"\n")
    return content


def try_lock(descriptor: int) -> bool:
    """Take the lock for as long as the descriptor is open; whether it could be had."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except BlockingIOError:
        return False
    return True


def _is_locked(descriptor: int) -> bool:
    """Whether another descriptor has the lock."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind: int = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def _wait_for_holder(root: Path, descriptor: int) -> ProcessId | None:
    """Give who has the lock, once it has written its pid over its predecessor's; None when nobody has it.

    Raises:
        DataDirectoryLockedError: The lock is held, and no pid of a running process comes.
    """
    deadline = time.monotonic() + _HOLDER_TIMEOUT_S
    while _is_locked(descriptor):
        holder = ProcessId.decode(os.pread(descriptor, 256, 0))
        if holder is not None and holder.is_running():
            return holder
        if time.monotonic() > deadline:
            raise _locked(root, "a process that cannot be seen from here")
        time.sleep(_HOLDER_POLL_S)
    return None


def _locked(root: Path, by: str) -> DataDirectoryLockedError:
    return DataDirectoryLockedError(
        f"data directory {root} is in use by {by}",
        help_=f"Stop it with `lambent down --data-dir {root}`, or name another by --data-dir.",
    )


def _not_writable(root: Path, error: OSError) -> DataDirectoryNotWritableError:
    return DataDirectoryNotWritableError(
        f"data directory {root} cannot be used: {error.strerror or error}",
        help_="Name a directory that you may write by --data-dir, or by LAMBENT_DATA_DIR.",
    )
