"""From the agent's command line to where functions may connect to."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from lambent.errors import InvalidParameterError
from lambent_node_agent.network import DEFAULT_ADDRESSES, NamedNetworks, NetworkSettings, parse_cidr, parse_networks

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LABEL_PREFIX: Final = "network:"
"""Of the node's labels that say which subnets and security groups it offers."""


def read_network_settings(
    *, addresses: str | None, denied: str, networks: Path | None, stores: Iterable[str]
) -> NetworkSettings:
    """Read what the operator says of the network; looks up the names of the stores.

    Args:
        addresses: Range of addresses for environments; None means the default.
        denied: Networks between commas.
        networks: The file of subnets and security groups.
        stores: URLs of etcd and NATS, which no function may connect to.

    Raises:
        InvalidParameterError: A value has no meaning, the file cannot be read, or a store's name leads nowhere.
    """
    return NetworkSettings(
        addresses=DEFAULT_ADDRESSES if addresses is None else parse_cidr(addresses, "--network-range"),
        denied=(
            *(parse_cidr(text, "--network-deny") for text in denied.split(",") if text),
            *(IPv4Network(address) for url in stores for address in _addresses(url)),
        ),
        named=NamedNetworks() if networks is None else _read(networks),
    )


def network_labels(named: NamedNetworks) -> dict[str, str]:
    """Give the labels by which functions with a VpcConfig find this node."""
    return {f"{LABEL_PREFIX}{name}": "" for name in sorted(named.names)}


def _read(path: Path) -> NamedNetworks:
    try:
        return parse_networks(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameterError(f"--networks {path}: {error}") from error
    except InvalidParameterError as error:
        raise InvalidParameterError(f"--networks {path}: {error.message}") from error


def _addresses(url: str) -> set[str]:
    host = urlsplit(url if "//" in url else f"//{url}").hostname
    if host is None:
        raise InvalidParameterError(f"{url!r} names no host")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidParameterError(f"{url!r}: {host} leads nowhere: {error}") from error
    return {str(address[0]) for family, *_rest, address in found if family == socket.AF_INET}
