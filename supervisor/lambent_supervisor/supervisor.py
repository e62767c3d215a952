"""The supervisor: starts a cluster's children in order, keeps them, and stops them in the opposite order."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import shutil
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .child import Child
from .credentials import prepare_credentials
from .daemons import SchedulerOptions, Stores, agent_spec, scheduler_spec
from .data_directory import Address
from .defragmentation import keep_defragmented
from .errors import ChildFailedError
from .stores import etcd_store, nats_store
from .sweep import ProcessTable, sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping
    from pathlib import Path

    from .data_directory import LockedDataDirectory
    from .processes import ProcessId
    from .shares import NodeShare
    from .stores import Store

# The scheduler drains for 5 s and the agents end their environments; etcd and nats-server need well under a second.
STOP_TIMEOUT_S = 15.0

# Children write to their log files themselves; the supervisor moves what they hold aside when they are this large.
LOG_LIMIT_BYTES = 64 << 20
LOG_INTERVAL_S = 60.0

# The ports of etcd and nats-server are chosen before they bind them; another process may be quicker.
_STORE_ATTEMPTS = 3

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What the supervisor starts.

    Attributes:
        nodes: Number of agents.
        share: Memory and CPUs that each declares.
        scheduler: What the scheduler is told.
        etcd_program: Executable.
        nats_program: Executable.
        environment: Environment of the children.
    """

    nodes: int
    share: NodeShare
    scheduler: SchedulerOptions
    etcd_program: Path
    nats_program: Path
    environment: Mapping[str, str]


class Supervisor:
    """Runs one cluster in a locked data directory.

    Args:
        config: What is started.
        locked: The data directory, which this process has for itself.
        notice: Called with each thing that the operator should read.
    """

    def __init__(self, config: ClusterConfig, locked: LockedDataDirectory, notice: Callable[[str], None]) -> None:
        self._config = config
        self._locked = locked
        self._directory = locked.directory
        self._table = ProcessTable(self._directory.processes)
        self._layers: list[list[Child]] = []  # in the order of starting; each needs those before it
        self._signals = 0
        self.notice = notice

    def spawned(self, name: str, identity: ProcessId) -> None:
        """Record a child, for the sweep of the next supervisor."""
        self._table.record(name, identity)

    async def run(self, on_ready: Callable[[Address], None]) -> None:
        """Start the cluster and keep it until SIGINT, SIGTERM or SIGHUP; nothing of it is left when this returns.

        Args:
            on_ready: Called once, when everything serves.

        Raises:
            ChildFailedError: A child did not become ready.
        """
        running = asyncio.ensure_future(self._start_and_keep(on_ready))
        with self._handled_signals(running):
            try:
                await running
            except asyncio.CancelledError:
                if not self._signals:
                    raise
            finally:
                await self._stop()

    async def _start_and_keep(self, on_ready: Callable[[Address], None]) -> None:
        swept = sweep(self._directory)
        if swept:
            self.notice(f"removed what an earlier supervisor left: {swept}")
        address = await self._start()
        self._locked.publish(address)
        on_ready(address)
        async with asyncio.TaskGroup() as group:
            for layer in self._layers:
                for child in layer:
                    group.create_task(child.keep())
            group.create_task(self._keep_logs_short())
            port = int(address.etcd.rpartition(":")[2])
            group.create_task(keep_defragmented(port, self._directory.credentials, self.notice))

    async def _start(self) -> Address:
        config, directory = self._config, self._directory
        login = prepare_credentials(directory, dt.datetime.now(dt.UTC))
        self._layers.append([])
        etcd, nats = await _together(
            self._start_store(lambda: etcd_store(directory, config.etcd_program, config.environment)),
            self._start_store(
                lambda: nats_store(directory, config.nats_program, config.environment, login.user, login.password)
            ),
        )
        stores = Stores(etcd=etcd, nats=nats)
        agents = [
            Child(agent_spec(directory, stores, config.share, config.environment, number=number), self)
            for number in range(1, config.nodes + 1)
        ]
        for number in range(1, config.nodes + 1):
            directory.node(number).mkdir(mode=0o700, exist_ok=True)
        scheduler = Child(scheduler_spec(directory, stores, config.scheduler, config.environment), self)
        self._layers += [agents, [scheduler]]
        ready, *_ = await _together(scheduler.start(), *(agent.start() for agent in agents))
        return Address(grpc=ready.grpc, http=ready.http, etcd=etcd, nats=nats)

    async def _start_store(self, make: Callable[[], Store]) -> str:
        """Start etcd or nats-server; gives its URL."""
        attempt = 1
        while True:
            store = make()
            child = Child(store.spec, self)
            self._layers[0].append(child)
            try:
                await child.start()
            except ChildFailedError as error:
                self._layers[0].remove(child)
                if attempt == _STORE_ATTEMPTS or "address already in use" not in error.message:
                    raise
                attempt += 1
            else:
                return store.url

    async def _stop(self) -> None:
        self._locked.withdraw()
        for layer in reversed(self._layers):
            timeout_s = STOP_TIMEOUT_S if self._signals < 2 else 0.0
            await asyncio.gather(*(child.stop(timeout_s) for child in layer))
        sweep(self._directory)
        self._table.clear()

    async def _keep_logs_short(self) -> None:
        while True:
            await asyncio.sleep(LOG_INTERVAL_S)
            for layer in self._layers:
                for child in layer:
                    shorten_log(child.spec.log)

    @contextlib.contextmanager
    def _handled_signals(self, running: asyncio.Future[None]) -> Iterator[None]:
        """The first signal ends `running`, a second one what is slow to stop."""
        loop = asyncio.get_running_loop()
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

        def on_signal() -> None:
            self._signals += 1
            if self._signals == 1:
                self.notice("stopping; a second signal ends everything at once")
                running.cancel()
            else:
                for layer in self._layers:
                    for child in layer:
                        child.kill()

        for number in handled:
            loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)


async def _together(*starts: Coroutine[Any, Any, _T]) -> list[_T]:
    """Run starts at once; the first that fails ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(start) for start in starts]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def shorten_log(log: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
    """Move a log's content aside, to one file that is overwritten, when it is larger than the limit.

    The child appends to the same file all the while; what it writes between copy and cut is lost.
    """
    try:
        if log.stat().st_size <= limit_bytes:
            return
    except FileNotFoundError:
        return
    shutil.copyfile(log, log.with_name(log.name + ".1"))
    with log.open("r+b") as file:
        file.truncate(0)
