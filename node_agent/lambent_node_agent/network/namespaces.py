"""Network namespaces, held by descriptor alone: one without a process goes when its last descriptor is closed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lambent_runtime import linux

from .errors import NetworkError
from .rtnetlink import LOOPBACK_INDEX, RouteSocket, set_up

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWN: Final = "/proc/thread-self/ns/net"
SYSCTLS: Final = Path("/proc/sys/net")
"""Those of the namespace that the thread which opens them is in."""
_NEW_INTERFACES_WITHOUT_IPV6: Final = SYSCTLS / "ipv6/conf/default/disable_ipv6"


def own_namespace() -> int:
    """Return a descriptor of the calling thread's namespace.

    Raises:
        NetworkError: The kernel refused.
    """
    with _reported("opening of the network namespace"):
        return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def make_namespace() -> int:
    """Make a namespace with loopback, and without IPv6 on whatever interface it gets.

    The calling thread is in it for a moment; others are not.

    Returns:
        Its descriptor.

    Raises:
        NetworkError: The kernel refused.
    """
    with _reported("making of a network namespace"):
        before = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.unshare(linux.CLONE_NEWNET)
            try:
                with RouteSocket() as routes:
                    routes.send(set_up(LOOPBACK_INDEX))
                with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                    _NEW_INTERFACES_WITHOUT_IPV6.write_text("1")
                return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            finally:
                linux.setns(before, linux.CLONE_NEWNET)
        finally:
            os.close(before)


@contextlib.contextmanager
def entered(namespace: int) -> Iterator[None]:
    """Have the calling thread in a namespace for the block: sockets that it makes there stay there.

    The block must not wait for anything in the event loop.

    Raises:
        NetworkError: The kernel refused.
    """
    with _reported("entering a network namespace"):
        before = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.setns(namespace, linux.CLONE_NEWNET)
            try:
                yield
            finally:
                linux.setns(before, linux.CLONE_NEWNET)
        finally:
            os.close(before)


@contextlib.contextmanager
def _reported(step: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NetworkError(f"{step}: {error}") from error
