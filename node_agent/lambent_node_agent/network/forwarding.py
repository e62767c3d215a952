"""The host's forwarding of packets, which functions need and which is off on most machines."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from typing import TYPE_CHECKING, Final

from .errors import NetworkError
from .namespaces import SYSCTLS
from .rules import GUARD_TABLE, LINK_PREFIX, LINKS_TABLE, guard_rules, links_rules

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .nftables import Nftables

_FORWARD: Final = SYSCTLS / "ipv4/ip_forward"
_INTERFACES: Final = SYSCTLS / "ipv4/conf"
_REDIRECTS: Final = _INTERFACES / "all/accept_redirects"
_FOUND: Final = "forwarding"
"""File of the settings that the kernel changes together with forwarding: what they were, one a line."""
_LINK: Final = re.compile(rf"{LINK_PREFIX}\d+")


def start_forwarding(nftables: Nftables, lock_dir: Path) -> None:
    """Have this thread's namespace forward packets: ours to others, and only ours if it did not forward before.

    The rules that see to that stay when the agent is killed, as the forwarding does, and what is to be put back.

    Args:
        nftables: Of that namespace.
        lock_dir: Where the agents of this machine agree.

    Raises:
        NetworkError: The kernel refused.
    """
    with _one_at_a_time(lock_dir):
        nftables.run(links_rules())
        if _FORWARD.read_text().strip() == "0":
            (lock_dir / _FOUND).write_text(_settings())
            nftables.run(guard_rules())  # first: not for a moment is the host an open router
            _FORWARD.write_text("1")


def stop_forwarding(nftables: Nftables, lock_dir: Path) -> None:
    """Put it back as it was, if it was an agent that switched it on and no agent has a link any more.

    Raises:
        NetworkError: The kernel refused.
    """
    with _one_at_a_time(lock_dir):
        if any(_LINK.fullmatch(name) for _index, name in socket.if_nameindex()):
            return
        tables = nftables.run("list tables")
        if f"table ip {LINKS_TABLE}\n" in tables:
            nftables.run(f"delete table ip {LINKS_TABLE}")
        if f"table ip {GUARD_TABLE}\n" in tables:
            _FORWARD.write_text("0")
            with contextlib.suppress(FileNotFoundError):  # somebody has tidied up there
                _put_back((lock_dir / _FOUND).read_text())
                (lock_dir / _FOUND).unlink()
            nftables.run(f"delete table ip {GUARD_TABLE}")


def _settings() -> str:
    """Tell what a change of `ip_forward` overwrites: redirects, and forwarding of single interfaces that is on."""
    forwarding = (path for path in _INTERFACES.glob("*/forwarding") if path.read_text().strip() == "1")
    return "".join(
        f"{path.relative_to(_INTERFACES)} {path.read_text().strip()}\n" for path in (_REDIRECTS, *forwarding)
    )


def _put_back(settings: str) -> None:
    for name, value in map(str.split, settings.splitlines()):
        with contextlib.suppress(FileNotFoundError):  # of an interface that has gone
            (_INTERFACES / name).write_text(value)


@contextlib.contextmanager
def _one_at_a_time(lock_dir: Path) -> Iterator[None]:
    try:
        lock_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        fd = os.open(lock_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # for the milliseconds of a few system calls
            yield
        finally:
            os.close(fd)
    except OSError as error:
        raise NetworkError(f"forwarding of packets: {error}") from error
