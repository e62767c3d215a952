"""What daemons, etcd and nats-server need to trust each other: made once, kept, certificates renewed in time."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambent_common import credentials as files

from .certificates import Identity, make_authority, make_certificate
from .data_directory import write_atomically, write_once

if TYPE_CHECKING:
    import datetime as dt
    from pathlib import Path

    from .data_directory import DataDirectory
    from .stores import GivenStores

_NATS_USER = "lambent"
_OF_ETCD = (files.ETCD_CA_FILE, files.ETCD_CERTIFICATE_FILE, files.ETCD_KEY_FILE)
_OF_NATS = (files.NATS_USER_FILE, files.NATS_PASSWORD_FILE)
_LOOPBACK_NAMES = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class NatsLogin:
    """User and password at nats-server."""

    user: str
    password: str


def prepare_credentials(directory: DataDirectory, now: dt.datetime) -> NatsLogin:
    """Fill the directories of authority and credentials; what is there and valid stays."""
    secret, given = directory.authority, directory.credentials
    authority_files = _IdentityFiles(secret / "ca.pem", secret / "ca.key")
    authority = authority_files.read(now)
    if authority is None:
        authority = make_authority("lambent", now)
        authority_files.write(authority)
    write_atomically(given / files.ETCD_CA_FILE, authority.certificate)
    holders = {
        "etcd": (_LOOPBACK_NAMES, _IdentityFiles(secret / "etcd.pem", secret / "etcd.key")),
        "lambent": ((), _IdentityFiles(given / files.ETCD_CERTIFICATE_FILE, given / files.ETCD_KEY_FILE)),
    }
    for name, (hosts, identity_files) in holders.items():
        kept = identity_files.read(now)
        if kept is None or not kept.is_signed_by(authority):
            identity_files.write(make_certificate(authority, name, hosts, now))
    write_atomically(given / files.TOKEN_FILE, directory.token.read_bytes())
    return NatsLogin(
        user=write_once(given / files.NATS_USER_FILE, _NATS_USER),
        password=write_once(given / files.NATS_PASSWORD_FILE, secrets.token_urlsafe(32)),
    )


def use_given_credentials(directory: DataDirectory, given: GivenStores) -> None:
    """Put what the operator's own stores ask for in the place of what ours would; a missing file is not asked for."""
    names = (*(_OF_ETCD if given.etcd else ()), *(_OF_NATS if given.nats else ()))
    for name in names:
        source = given.credentials and given.credentials / name
        if source is not None and source.exists():
            write_atomically(directory.credentials / name, source.read_bytes())
        else:
            (directory.credentials / name).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _IdentityFiles:
    certificate: Path
    key: Path

    def read(self, now: dt.datetime) -> Identity | None:
        """An earlier start's; None when there is none that will do."""
        if not (self.certificate.exists() and self.key.exists()):
            return None
        identity = Identity(self.certificate.read_bytes(), self.key.read_bytes())
        return identity if identity.is_sound(now) else None

    def write(self, identity: Identity) -> None:
        # The key first: a crash in between leaves a pair that does not match, which is_sound sees.
        write_atomically(self.key, identity.key)
        write_atomically(self.certificate, identity.certificate)
