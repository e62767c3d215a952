"""The network of environments: pooled namespaces behind a router that keeps functions from where they must not be."""

from .errors import NetworkError
from .loopback import LoopbackAttachment, LoopbackOnly
from .model import EGRESS, NO_NETWORK, Mode, NamedNetworks, NetworkChoice, NetworkSettings
from .router import Attachment, Router
from .rules import RESOLVER

__all__ = [
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
]
