"""Where the cluster is, and the token that opens it: arguments first, then the environment, then the data directory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lambent.errors import InvalidParameterError, PermissionDeniedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDPOINT_VARIABLE = "LAMBENT_ENDPOINT"
TOKEN_VARIABLE = "LAMBENT_TOKEN"  # noqa: S105 - the variable's name
DATA_DIR_VARIABLE = "LAMBENT_DATA_DIR"

_LOOPBACK = ("127.0.0.1", "[::1]")
"""Addresses that `localhost` means (RFC 6761)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A cluster that calls can be sent to.

    Attributes:
        grpc: `host:port` of a scheduler's gRPC server.
        token: Bearer token; empty when there is none to send.
        http: URL of the HTTP side; empty when not known.
        data_dir: Data directory that named the endpoint; None when it was given directly.
    """

    grpc: str
    token: str = field(default="", repr=False)
    http: str = ""
    data_dir: Path | None = None


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Give the data directory that `lambent up` uses when none is named (XDG Base Directory Specification)."""
    if named := environ.get(DATA_DIR_VARIABLE):
        return Path(named)
    home = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local/share")
    return Path(home) / "lambent"


def discover(
    *,
    endpoint: str = "",
    token: str = "",
    data_dir: Path | str | None = None,
    environ: Mapping[str, str],
) -> Endpoint:
    """Find the cluster.

    A token found in a data directory is only ever sent to the endpoint of that directory's cluster, unless the caller
    named the directory.

    Args:
        endpoint: `host:port`; empty looks further.
        token: Bearer token; empty looks further.
        data_dir: Data directory of a cluster on this machine; goes before the variables of `environ`.
        environ: Usually `os.environ`.

    Raises:
        UnavailableError: No endpoint is given and no cluster has written one into the data directory.
        PermissionDeniedError: The token in the data directory cannot be read.
        InvalidParameterError: The endpoint is not `host:port`.
    """
    if not data_dir:
        endpoint = endpoint or environ.get(ENDPOINT_VARIABLE, "")
        token = token or environ.get(TOKEN_VARIABLE, "")
    directory = Path(data_dir) if data_dir else default_data_dir(environ)
    if not endpoint:
        local = _local_cluster(directory)
        return Endpoint(local.grpc, token or _read_token(directory), local.http, directory)
    _check_address(endpoint)
    if token:
        return Endpoint(endpoint, token)
    if data_dir:
        return Endpoint(endpoint, _read_token(directory))
    # The cluster's own address goes first: `localhost` may also lead to where another user listens.
    if (own := _matching_local(endpoint, directory)) is not None:
        return Endpoint(own.grpc, _read_token(directory))
    return Endpoint(endpoint)


def _local_cluster(directory: Path) -> Endpoint:
    path = directory / "cluster.json"
    try:
        described = json.loads(path.read_text())
        return Endpoint(grpc=str(described["grpc"]), http=str(described.get("http") or ""))
    except FileNotFoundError as error:
        raise UnavailableError(
            f"no Lambent cluster runs with data directory {directory}; start one with `lambent up`, or name one, such "
            f"as another user's, by {ENDPOINT_VARIABLE} and {TOKEN_VARIABLE}"
        ) from error
    except PermissionError as error:
        raise PermissionDeniedError(f"{path} cannot be read: the cluster belongs to another user") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UnavailableError(f"{path} does not describe a cluster; restart it with `lambent up`") from error


def _matching_local(endpoint: str, directory: Path) -> Endpoint | None:
    """Give the cluster of this machine if it is the one that is named."""
    try:
        local = _local_cluster(directory)
    except (UnavailableError, PermissionDeniedError):
        return None
    host, _, port = endpoint.rpartition(":")
    own_host, _, own_port = local.grpc.rpartition(":")
    same_host = host == own_host or (host.lower() == "localhost" and own_host in _LOOPBACK)
    return local if same_host and int(port) == int(own_port) else None


def _read_token(directory: Path) -> str:
    path = directory / "token"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except PermissionError as error:
        raise PermissionDeniedError(
            f"the token {path} cannot be read: the cluster belongs to another user; give a token by {TOKEN_VARIABLE}"
        ) from error


def _check_address(endpoint: str) -> None:
    host, separator, port = endpoint.rpartition(":")
    if not separator or not host or not port.isdigit() or "/" in endpoint:
        raise InvalidParameterError(f"endpoint {endpoint!r} is not HOST:PORT, for example 127.0.0.1:9400")
