"""AWS Signature Version 4 of a request. Pure: the time is an argument.

The rules are AWS's ("Create a signed AWS API request"); services other than S3 encode the path once more.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who signs, and for which service.

    Attributes:
        access_key: Its id.
        secret_key: Its secret.
        session_token: Of temporary credentials; empty when there is none.
        region: For example `eu-west-1`.
        service: For example `lambda`.
    """

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(repr=False)
    region: str
    service: str = "lambda"


def signed_headers(
    credentials: Credentials,
    now: dt.datetime,
    *,
    method: str = "POST",
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes,
) -> dict[str, str]:
    """Give the headers to add to a request: its time, the session token if there is one, and the signature.

    Args:
        credentials: Who signs.
        now: UTC.
        method: Of HTTP.
        path: As it is sent, encoded.
        query: As it is sent, without `?`; at most one parameter.
        headers: Those that are signed, with lower-case names; `host` among them.
        body: All of it.
    """
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    added = {"x-amz-date": stamp}
    if credentials.session_token:
        added["x-amz-security-token"] = credentials.session_token
    signed = {name: " ".join(value.split()) for name, value in sorted({**headers, **added}.items())}
    names = ";".join(signed)
    lines = (
        method,
        quote(path, safe="/-_.~"),
        query,
        *(f"{name}:{value}" for name, value in signed.items()),
        "",
        names,
        hashlib.sha256(body).hexdigest(),
    )
    scope = f"{stamp[:8]}/{credentials.region}/{credentials.service}/aws4_request"
    canonical = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"{_ALGORITHM}\n{stamp}\n{scope}\n{canonical}".encode(), "sha256").hex()
    added["authorization"] = (
        f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return added


def credentials_from(environ: Mapping[str, str], host: str) -> Credentials | None:
    """Give the credentials that the environment names, as AWS's own tools read it; None without any.

    Args:
        environ: Usually `os.environ`.
        host: Of the endpoint; names the region when it is AWS's own.
    """
    access_key, secret_key = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not access_key or not secret_key:
        return None
    labels = host.split(".")
    region = labels[1] if labels[0] == "lambda" and host.endswith(".amazonaws.com") else ""
    region = region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return Credentials(access_key, secret_key, environ.get("AWS_SESSION_TOKEN", ""), region)
