"""The network of environments: pooled namespaces behind a router that keeps functions from where they must not be."""

from .errors import NetworkError
from .loopback import LoopbackAttachment, LoopbackOnly
from .model import DEFAULT_ADDRESSES, EGRESS, NO_NETWORK, Mode, NamedNetworks, NetworkChoice, NetworkSettings
from .named import parse_cidr, parse_networks
from .router import Attachment, Router
from .rules import RESOLVER

__all__ = [
    "DEFAULT_ADDRESSES",
    "EGRESS",
    "NO_NETWORK",
    "RESOLVER",
    "Attachment",
    "LoopbackAttachment",
    "LoopbackOnly",
    "Mode",
    "NamedNetworks",
    "NetworkChoice",
    "NetworkError",
    "NetworkSettings",
    "Router",
    "parse_cidr",
    "parse_networks",
]
