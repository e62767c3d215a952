"""When the machine is under pressure, from the kernel: pressure stall information (Linux 5.2), or a slow clock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.get_logger(__name__)

MEMORY_STALLS: Final = Path("/proc/pressure/memory")
# Some task has waited for memory for a tenth of the time: what is in use is being taken away and read again.
STALL_S: Final = 0.2
# The least that the kernel allows to those who lack CAP_SYS_RESOURCE, as root may in a container.
WINDOW_S: Final = 2.0
_CLOCK_S: Final = 1.0


class Pressure(Protocol):
    """Tells when to look whether something is short."""

    async def wait(self) -> None:
        """Wait until it is time to look again."""


class Clock:
    """Looks once a second, where the kernel tells nothing."""

    async def wait(self) -> None:
        """See Pressure."""
        await asyncio.sleep(_CLOCK_S)


class Stalls:
    """Hears from the kernel when some task has stalled for `STALL_S` within `WINDOW_S`; at most once a window.

    Close it with `close`.

    Args:
        path: A file of pressure stall information (the kernel's documentation: accounting/psi).

    Raises:
        OSError: The kernel has none, or it is not enabled.
    """

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._stalled = asyncio.Event()
        self._file = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(self._file, f"some {round(STALL_S * 1e6)} {round(WINDOW_S * 1e6)}\0".encode())
            # The kernel tells by POLLPRI, for which event loops do not listen; an epoll descriptor is readable by then.
            self._epoll = select.epoll()
        except OSError:
            os.close(self._file)
            raise
        self._epoll.register(self._file, select.EPOLLPRI)
        self._loop.add_reader(self._epoll.fileno(), self._tell)

    def _tell(self) -> None:
        if any(events & select.EPOLLERR for _, events in self._epoll.poll(0)):
            self._loop.remove_reader(self._epoll.fileno())  # its group is gone, and nothing more will come
        self._stalled.set()

    async def wait(self) -> None:
        """See Pressure."""
        await self._stalled.wait()
        self._stalled.clear()

    def close(self) -> None:
        """Hear nothing more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        os.close(self._file)


@contextlib.contextmanager
def memory_pressure(path: Path = MEMORY_STALLS) -> Iterator[Pressure]:
    """Give the best that this kernel has."""
    try:
        stalls = Stalls(path)
    except OSError as error:
        log.info("no_pressure_stall_information", path=str(path), error=error.strerror)
        yield Clock()
        return
    try:
        yield stalls
    finally:
        stalls.close()
