"""One child: started, waited for until it serves, started again whenever it ends, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from .backoff import Backoff
from .errors import ChildFailedError
from .spawn import SpawnedProcess, describe_end, spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from .processes import ProcessId

# etcd replays its log and the agent preloads a zygote in a few seconds at worst; a loaded test machine is slower.
READY_TIMEOUT_S = 60.0
_PROBE_INTERVAL_S = 0.05
_LOG_TAIL_LINES = 8
_LOG_TAIL_BYTES = 8192
_READY_LINE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a child serves, as it said itself.

    Attributes:
        grpc: host:port, or empty.
        http: URL, or empty.
    """

    grpc: str = ""
    http: str = ""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What is started and how it is known to serve.

    Attributes:
        name: As in notices and in the log file's name.
        command: Gives program and arguments. It is handed what the child said when it last was ready, so that a port
            chosen by the first start stays; None at the first start.
        environment: The child's whole environment.
        log: File that gets its output.
        probe: Asked again and again until it says that the child serves; None for a child that takes `--ready-fd`.
    """

    name: str
    command: Callable[[Ready | None], tuple[str, ...]]
    environment: Mapping[str, str]
    log: Path
    probe: Callable[[], Awaitable[bool]] | None = None


class Watcher(Protocol):
    """Is told what happens to a child."""

    def spawned(self, name: str, identity: ProcessId) -> None:
        """A process was started; told before anything else happens."""

    def notice(self, text: str) -> None:
        """Something that the operator should read."""


class _StartError(Exception):
    """A start failed; the text follows the child's name in a sentence."""


class Child:
    """One child, by its specification."""

    def __init__(self, spec: ChildSpec, watcher: Watcher) -> None:
        self.spec = spec
        self._watcher = watcher
        self._announced: Ready | None = None
        self._process: SpawnedProcess | None = None
        self._started = 0.0

    async def start(self) -> Ready:
        """Start it and wait until it serves.

        Raises:
            ChildFailedError: It ended, or did not serve within READY_TIMEOUT_S; no process is left.
        """
        offset = self.spec.log.stat().st_size if self.spec.log.exists() else 0
        try:
            return await self._start_once()
        except _StartError as error:
            tail = "".join(f"\n    {line}" for line in _log_tail(self.spec.log, offset))
            raise ChildFailedError(
                f"{self.spec.name} {error}" + (f"; it last wrote:{tail}" if tail else ""),
                help_=f"The whole log is {self.spec.log}.",
            ) from error

    async def keep(self) -> None:
        """Start it again whenever it ends, with growing pauses; runs until it is cancelled."""
        backoff = Backoff()
        while True:
            assert self._process is not None, "keep follows start"
            how: str | None = describe_end(await self._process.wait())
            while how is not None:
                backoff = backoff.ended(time.monotonic() - self._started)
                self._watcher.notice(
                    f"{self.spec.name} {how}; starting it again in {backoff.delay_s:g} s (log: {self.spec.log})"
                )
                await asyncio.sleep(backoff.delay_s)
                how = await self._start_again()

    async def stop(self, timeout_s: float) -> None:
        """End it, by force after the time. `keep` must have been cancelled before."""
        if self._process is not None:
            await self._process.stop(timeout_s)

    def kill(self) -> None:
        """End it at once; `stop` still waits for its end."""
        if self._process is not None:
            self._process.send(signal.SIGKILL)

    async def _start_again(self) -> str | None:
        """Start it; gives what went wrong, or None when it serves."""
        try:
            await self._start_once()
        except _StartError as error:
            return str(error)
        self._watcher.notice(f"{self.spec.name} is ready again")
        return None

    async def _start_once(self) -> Ready:
        """Start it and wait until it serves.

        Raises:
            _StartError: What went wrong; no process is left.
        """
        self._started = time.monotonic()
        try:
            async with asyncio.timeout(READY_TIMEOUT_S) as limit:
                self._announced = await (self._start_announcing() if self.spec.probe is None else self._start_probed())
        except (_StartError, OSError) as error:
            await self.stop(0)
            if isinstance(error, _StartError):
                raise
            if limit.expired():
                raise _StartError(f"did not become ready within {READY_TIMEOUT_S:.0f} s") from error
            raise _StartError(f"cannot be started: {error}") from error
        return self._announced

    async def _start_probed(self) -> Ready:
        assert self.spec.probe is not None
        process = self._spawn((), ())
        while not await self.spec.probe():
            if not process.running:
                raise _StartError(describe_end(await process.wait()))
            await asyncio.sleep(_PROBE_INTERVAL_S)
        if not process.running:  # somebody else's server has answered
            raise _StartError(describe_end(await process.wait()))
        return Ready()

    async def _start_announcing(self) -> Ready:
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb") as stream:
            try:
                process = self._spawn(("--ready-fd", str(write_end)), (write_end,))
            finally:
                os.close(write_end)
            line = await _read_line(stream)
        if not line:
            raise _StartError(describe_end(await process.wait()))
        try:
            said = json.loads(line)
            return Ready(grpc=str(said.get("grpc") or ""), http=str(said.get("http") or ""))
        except (ValueError, AttributeError) as error:
            raise _StartError(f"wrote {line!r} instead of where it serves") from error

    def _spawn(self, more: tuple[str, ...], pass_fds: tuple[int, ...]) -> SpawnedProcess:
        process = spawn(
            (*self.spec.command(self._announced), *more),
            log=self.spec.log,
            environment=self.spec.environment,
            pass_fds=pass_fds,
        )
        self._process = process
        self._watcher.spawned(self.spec.name, process.identity)
        return process


async def _read_line(stream: BinaryIO) -> bytes:
    """Read a pipe's first line; empty when the other end was closed without one."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_READY_LINE_BYTES)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stream)
    try:
        return await reader.readline()
    finally:
        transport.close()


def _log_tail(log: Path, offset: int) -> list[str]:
    """The last lines that were written after `offset`."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(min(offset, end), end - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return lines[-_LOG_TAIL_LINES:]
