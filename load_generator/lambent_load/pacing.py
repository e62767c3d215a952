"""Waiting for a moment to within some 50 microseconds.

Event loops wait in whole milliseconds, which would be most of the latency of a warm call; Linux's timerfd does not.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_libc = ctypes.CDLL(None, use_errno=True)

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1


class _TimerSpec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Timer:
    """A timer of the kernel on the running event loop; one waits at a time. Times are those of `time.monotonic`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] | None = None
        self._spec = _TimerSpec(0, 0, 0, 0)

    def __enter__(self) -> Self:
        self._descriptor = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop.add_reader(self._descriptor, self._wake)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    async def wait_until(self, moment: float) -> None:
        """Return at `moment`, or at the loop's next turn when that has passed."""
        self._woken = self._loop.create_future()
        seconds = int(moment)
        self._spec.value_s = seconds
        self._spec.value_ns = max(1, int((moment - seconds) * 1e9))  # 0 of both would stop the timer
        if _libc.timerfd_settime(self._descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._woken

    def _wake(self) -> None:
        os.read(self._descriptor, 8)
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
