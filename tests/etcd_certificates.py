"""Certificates for a test server: an authority, a server on loopback, a client, and a client of nobody's."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lambent_common.credentials import Credentials

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """What the server is started with, and what clients hold.

    Attributes:
        server_flags: Flags of etcd.
        client: A client that the authority has signed.
        stranger: One that trusts the server and was signed by another authority.
    """

    server_flags: tuple[str, ...]
    client: Credentials
    stranger: Credentials


class _Authority:
    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        basic = x509.BasicConstraints(ca=True, path_length=0)
        self.certificate = (_builder(self._name, self._name, self._key).add_extension(basic, critical=True)).sign(
            self._key, hashes.SHA256()
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """Give certificate and key for a server on loopback or a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = _builder(_name(name), self._name, key)
        certificate = (builder.add_extension(names, critical=False).add_extension(usage, critical=False)).sign(
            self._key, hashes.SHA256()
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM), private


def make_certificates(directory: Path) -> Certificates:
    """Make everything; the server's files go into `directory`."""
    authority, other = _Authority("test"), _Authority("other")
    certificate, key = authority.issue("server")
    files = {"ca.pem": authority.pem, "server.pem": certificate, "server.key": key}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    flags = (
        *("--trusted-ca-file", str(directory / "ca.pem"), "--client-cert-auth"),
        *("--cert-file", str(directory / "server.pem"), "--key-file", str(directory / "server.key")),
    )
    return Certificates(flags, _client(authority, authority), _client(authority, other))


def _client(trusted: _Authority, signer: _Authority) -> Credentials:
    certificate, key = signer.issue("client")
    return Credentials(etcd_ca=trusted.pem, etcd_cert=certificate, etcd_key=key)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
    )
