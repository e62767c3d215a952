"""What a daemon needs to be let in: the cluster's token and its credentials for etcd and NATS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

# The files of a credentials directory. `lambent up` writes them; a joining machine gets a copy.
TOKEN_FILE = "token"  # noqa: S105, a file's name
ETCD_CA_FILE = "etcd-ca.pem"
ETCD_CERTIFICATE_FILE = "etcd-client.pem"
ETCD_KEY_FILE = "etcd-client.key"
NATS_USER_FILE = "nats.user"
NATS_PASSWORD_FILE = "nats.password"  # noqa: S105, a file's name


@dataclass(frozen=True, slots=True)
class Credentials:
    """The secrets of one daemon; everything may be absent, as with an etcd that asks for none.

    Attributes:
        token: Bearer token of the gRPC services and of the nodes' doors; empty when the cluster asks for none.
        etcd_ca: PEM of the authority that signed etcd's certificate; None means plain text.
        etcd_cert: PEM of the client certificate for etcd.
        etcd_key: PEM of its private key.
        nats_user: User name at NATS.
        nats_password: Password at NATS.
    """

    token: str = field(default="", repr=False)
    etcd_ca: bytes | None = field(default=None, repr=False)
    etcd_cert: bytes | None = field(default=None, repr=False)
    etcd_key: bytes | None = field(default=None, repr=False)
    nats_user: str | None = field(default=None, repr=False)
    nats_password: str | None = field(default=None, repr=False)

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Read a credentials directory; None gives empty credentials.

        Raises:
            OSError: The directory does not exist, holds no token, or a file in it cannot be read.
        """
        if path is None:
            return cls()
        if not path.is_dir():
            raise NotADirectoryError(f"the credentials directory {path} does not exist")
        # Without one the doors would be open, and a copy that broke off looks just so.
        if not (token := _text(path / TOKEN_FILE)):
            raise FileNotFoundError(f"the credentials directory {path} holds no {TOKEN_FILE}, or an empty one")
        return cls(
            token=token,
            etcd_ca=_bytes(path / ETCD_CA_FILE),
            etcd_cert=_bytes(path / ETCD_CERTIFICATE_FILE),
            etcd_key=_bytes(path / ETCD_KEY_FILE),
            nats_user=_text(path / NATS_USER_FILE),
            nats_password=_text(path / NATS_PASSWORD_FILE),
        )


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _text(path: Path) -> str | None:
    content = _bytes(path)
    return None if content is None else content.decode().strip()
