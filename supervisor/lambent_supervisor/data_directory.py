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
        """
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _not_writable(self.root, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_holder(descriptor)
        else:
            return None
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
            self._descriptor = os.open(directory.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _not_writable(directory.root, error) from error
        try:
            self._take()
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
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _read_holder(self._descriptor)
            raise DataDirectoryLockedError(
                f"data directory {self.directory.root} is in use by another `lambent up`, process {holder.pid}",
                help_=f"Stop it with `lambent down --data-dir {self.directory.root}`, or name another by --data-dir.",
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, ProcessId.own().encode(), 0)

    def _prepare(self) -> None:
        root = self.directory.root
        self._check_format()
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
            ours = {"lock", "owner", "token", *_DIRECTORIES}
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
    draft = path.with_name(path.name + ".new")
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


def _read_holder(descriptor: int) -> ProcessId:
    # Between taking the lock and writing the pid there is an instant in which the file is empty.
    return ProcessId.decode(os.pread(descriptor, 256, 0)) or ProcessId(pid=0, start_ticks=0)


def _not_writable(root: Path, error: OSError) -> DataDirectoryNotWritableError:
    return DataDirectoryNotWritableError(
        f"data directory {root} cannot be used: {error.strerror or error}",
        help_="Name a directory that you may write by --data-dir, or by LAMBENT_DATA_DIR.",
    )
