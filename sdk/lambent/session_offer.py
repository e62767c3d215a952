"""How the two ends of a session port prove to each other that they hold the offer's key, which neither shows.

docs/adr/0006 says against whom.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from lambent.message_stream import MessageStream

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NETWORK = Path("/proc/self/ns/net")

OFFER_KEY = "lambent-session-offer-bin"
"""Name of the metadata that hold a SessionOffer."""


class Proofs:
    """What the two ends of one connection have to send.

    Args:
        key: Of the offer.
        caller: The caller's end, such as "127.0.0.1 50122".
        scheduler: The scheduler's end.
    """

    def __init__(self, key: bytes, *, caller: str, scheduler: str) -> None:
        caller, scheduler = _end(caller), _end(scheduler)
        self.of_caller = _mac(key, f"caller {caller} scheduler {scheduler}")
        self.of_scheduler = _mac(key, f"scheduler {scheduler} caller {caller}")

    @classmethod
    def for_caller(cls, key: bytes, stream: MessageStream[Any, Any]) -> Proofs:
        """As the caller sees the connection."""
        return cls(key, caller=stream.own_address, scheduler=stream.peer_address)

    @classmethod
    def for_scheduler(cls, key: bytes, stream: MessageStream[Any, Any]) -> Proofs:
        """As the scheduler sees it."""
        return cls(key, caller=stream.peer_address, scheduler=stream.own_address)


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), hashlib.sha256)


def _end(address: str) -> str:
    """An end of a connection; one on loopback with the name of its network, since every machine has the same addresses.

    That is the boot's id and the network namespace's number, as far as the system tells them.
    """
    if not ipaddress.ip_address(address.partition(" ")[0]).is_loopback:
        return address
    try:
        return f"{address} {_BOOT_ID.read_text().strip()} {_NETWORK.stat().st_ino}"
    except OSError:
        return address
