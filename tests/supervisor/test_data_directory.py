"""The data directory: one user at a time, secrets for its owner alone, a format that is checked."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509

from lambent_common.credentials import Credentials
from lambent_supervisor.credentials import prepare_credentials
from lambent_supervisor.data_directory import DataDirectory, LockedDataDirectory, try_lock
from lambent_supervisor.errors import (
    DataDirectoryFormatError,
    DataDirectoryLockedError,
    DataDirectoryNotWritableError,
)
from lambent_supervisor.processes import ProcessId

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "data")


def test_a_second_supervisor_is_refused_and_told_of_the_first(directory: DataDirectory) -> None:
    """Two etcd on the same files would destroy them."""
    with LockedDataDirectory(directory):
        with pytest.raises(DataDirectoryLockedError, match=f"process {os.getpid()}") as caught:
            LockedDataDirectory(directory)
        assert "lambent down" in caught.value.help
        holder = directory.holder()
        assert holder is not None
        assert holder.pid == os.getpid()
    assert directory.holder() is None


def test_a_free_directory_can_be_locked_again(directory: DataDirectory) -> None:
    """And keeps its token: clients go on working after a restart."""
    with LockedDataDirectory(directory):
        token = directory.token.read_text()
    with LockedDataDirectory(directory):
        assert directory.token.read_text() == token
        assert len(token.strip()) >= 32


def test_another_format_version_is_refused(directory: DataDirectory) -> None:
    """An old Lambent must not write into what a new one has made."""
    with LockedDataDirectory(directory):
        pass
    directory.format.write_text("7\n")
    with pytest.raises(DataDirectoryFormatError, match="format version 7, this Lambent uses 1"):
        LockedDataDirectory(directory)
    assert directory.format.read_text() == "7\n"


def test_a_directory_of_something_else_is_refused(directory: DataDirectory) -> None:
    """`--data-dir ~` would otherwise mix a cluster into somebody's files."""
    directory.root.mkdir()
    (directory.root / "thesis.tex").touch()
    with pytest.raises(DataDirectoryFormatError, match=r"thesis\.tex"):
        LockedDataDirectory(directory)


@pytest.mark.parametrize("theirs", [{"lock": "theirs"}, {}], ids=["with a lock file", "without one"])
def test_a_directory_of_something_else_is_not_touched(directory: DataDirectory, theirs: dict[str, str]) -> None:
    """A project's own file may be named as ours is; nor is one of ours left among theirs."""
    theirs = {"thesis.tex": "theirs", **theirs}
    directory.root.mkdir()
    for name, content in theirs.items():
        (directory.root / name).write_text(content)
    with pytest.raises(DataDirectoryFormatError):
        LockedDataDirectory(directory)
    assert {path.name: path.read_text() for path in directory.root.iterdir()} == theirs


LOOK = """
import sys
from pathlib import Path
from lambent_supervisor.data_directory import DataDirectory
for _ in range(3000):
    DataDirectory(Path(sys.argv[1])).holder()
"""


def test_who_only_looks_is_in_nobody_s_way(directory: DataDirectory) -> None:
    """`lambent down` and a status check may come at the very moment of an `up`, which gets its lock all the same."""
    directory.root.mkdir()
    directory.lock.write_bytes(ProcessId.own().encode())
    with subprocess.Popen([sys.executable, "-c", LOOK, directory.root]) as looking:
        while looking.poll() is None:
            descriptor = os.open(directory.lock, os.O_RDWR)
            assert try_lock(descriptor)
            os.close(descriptor)
    assert looking.returncode == 0


def test_the_pid_of_an_earlier_supervisor_is_not_the_holder_s(directory: DataDirectory) -> None:
    """A new one has the lock a moment before its pid stands in the file: who looks waits for it."""
    with LockedDataDirectory(directory), ThreadPoolExecutor() as threads:
        own = directory.lock.read_bytes()
        directory.lock.write_bytes(ProcessId(ProcessId.own().pid, 1).encode())
        looking = threads.submit(directory.holder)
        directory.lock.write_bytes(own)
        assert looking.result() == ProcessId.own()


def test_a_holder_that_cannot_be_seen_is_an_error(directory: DataDirectory) -> None:
    """As from another container: it is neither free nor to be stopped."""
    with LockedDataDirectory(directory):
        directory.lock.write_bytes(ProcessId(ProcessId.own().pid, 1).encode())
        with pytest.raises(DataDirectoryLockedError, match="cannot be seen"):
            directory.holder()


def test_an_interrupted_first_start_is_no_obstacle(directory: DataDirectory) -> None:
    """Power may fail before the format version is written, and in the middle of a file."""
    with LockedDataDirectory(directory):
        pass
    directory.format.unlink()
    directory.token.write_text("")
    (directory.root / "format.new").touch()
    with LockedDataDirectory(directory):
        assert directory.token.read_text().strip()


@pytest.mark.parametrize("root", ["/proc/lambent", "/dev/null/lambent"])
def test_a_place_that_cannot_be_written_is_named(root: str) -> None:
    """Root may write nearly everywhere, so the kernel's own file systems stand in."""
    with pytest.raises(DataDirectoryNotWritableError, match=root):
        LockedDataDirectory(DataDirectory(Path(root)))


def test_secrets_can_be_read_by_their_owner_alone(directory: DataDirectory) -> None:
    """Loopback is no authentication: every local user reaches the ports."""
    with LockedDataDirectory(directory):
        prepare_credentials(directory, NOW)
    assert stat.S_IMODE(directory.root.stat().st_mode) == 0o700
    files = [directory.token, *directory.credentials.iterdir(), *directory.authority.iterdir()]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {path.name: 0o600 for path in files}


def test_a_token_that_was_opened_up_is_closed_again(directory: DataDirectory) -> None:
    """A copy with lax permissions does not stay lax."""
    with LockedDataDirectory(directory):
        pass
    directory.token.chmod(0o644)
    with LockedDataDirectory(directory):
        assert stat.S_IMODE(directory.token.stat().st_mode) == 0o600


def test_a_copied_directory_has_a_mark_of_its_own(directory: DataDirectory, tmp_path: Path) -> None:
    """Its supervisor must not sweep the original's environments."""
    with LockedDataDirectory(directory):
        pass
    shutil.copytree(directory.root, tmp_path / "copy")
    assert directory.mark() != DataDirectory(tmp_path / "copy").mark()


def test_credentials_are_kept_over_a_restart(directory: DataDirectory) -> None:
    """A joined machine holds a copy of them."""
    with LockedDataDirectory(directory):
        prepare_credentials(directory, NOW)
        first = Credentials.load(directory.credentials)
        prepare_credentials(directory, NOW + dt.timedelta(days=30))
        assert Credentials.load(directory.credentials) == first
    assert first.token == directory.token.read_text().strip()
    assert first.nats_user
    assert first.nats_password


def test_certificates_are_renewed_before_they_end(directory: DataDirectory) -> None:
    """The authority stays, so that nothing has to be told."""
    with LockedDataDirectory(directory):
        prepare_credentials(directory, NOW)
        first = Credentials.load(directory.credentials)
        later = NOW + dt.timedelta(days=500)
        prepare_credentials(directory, later)
        second = Credentials.load(directory.credentials)
    assert first.etcd_cert is not None
    assert second.etcd_cert is not None
    assert second.etcd_ca is not None
    assert first.etcd_cert != second.etcd_cert
    assert first.etcd_ca == second.etcd_ca
    certificate = x509.load_pem_x509_certificate(second.etcd_cert)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(second.etcd_ca))
    assert certificate.not_valid_after_utc > later + dt.timedelta(days=400)


def test_a_key_of_another_certificate_is_replaced(directory: DataDirectory) -> None:
    """A crash between the two files leaves a pair that would not let anybody in."""
    with LockedDataDirectory(directory):
        prepare_credentials(directory, NOW)
        key = directory.credentials / "etcd-client.key"
        key.write_bytes((directory.authority / "etcd.key").read_bytes())
        wrong = key.read_bytes()
        prepare_credentials(directory, NOW)
        assert key.read_bytes() != wrong


def test_credentials_do_not_show_in_logs(directory: DataDirectory) -> None:
    """A frozen dataclass prints its fields unless told otherwise."""
    with LockedDataDirectory(directory):
        prepare_credentials(directory, NOW)
    loaded = Credentials.load(directory.credentials)
    assert loaded.token not in repr(loaded)
    assert "PRIVATE" not in repr(loaded)


def test_absent_credentials_are_empty(tmp_path: Path) -> None:
    """An etcd without TLS and a NATS without a password are asked for nothing; a token there has to be."""
    assert Credentials.load(None) == Credentials()
    with pytest.raises(FileNotFoundError, match="no token"):
        Credentials.load(tmp_path)
    (tmp_path / "token").write_text("secret\n")
    assert Credentials.load(tmp_path) == Credentials(token="secret")
    with pytest.raises(NotADirectoryError, match="gone"):
        Credentials.load(tmp_path / "gone")
