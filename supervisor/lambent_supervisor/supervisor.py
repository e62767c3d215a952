"""The supervisor: starts a cluster's children in order, keeps them, and stops them in the opposite order."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .child import READY_TIMEOUT_S, Child
from .credentials import prepare_credentials, use_given_credentials
from .daemons import SchedulerOptions, Stores, agent_spec, scheduler_spec
from .data_directory import Address
from .defragmentation import keep_defragmented
from .errors import ChildFailedError, SupervisorError
from .log_files import keep_logs_short
from .probes import wait_until_ready
from .stores import etcd_store, nats_store
from .sweep import ProcessTable, sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping
    from pathlib import Path

    from .data_directory import LockedDataDirectory
    from .processes import ProcessId
    from .shares import NodeShare
    from .stores import GivenStores, Store

# The scheduler drains for 5 s and the agents end their environments; etcd and nats-server need well under a second.
STOP_TIMEOUT_S = 15.0

# The ports of etcd and nats-server are chosen before they bind them; another process may be quicker.
_STORE_ATTEMPTS = 3

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What the supervisor starts.

    Attributes:
        nodes: Number of agents.
        share: Memory and CPUs that each declares.
        agent_flags: What all agents are told.
        scheduler: What the scheduler is told.
        etcd_program: Executable; None when one is given.
        nats_program: Executable; None when one is given.
        given: Stores that are not started.
        environment: Environment of the children.
    """

    nodes: int
    share: NodeShare
    agent_flags: tuple[str, ...]
    scheduler: SchedulerOptions
    etcd_program: Path | None
    nats_program: Path | None
    given: GivenStores
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
        try:
            self._table.record(name, identity)
        except OSError as error:  # the child serves all the same, and dies with this process
            self.notice(f"{name} could not be recorded in {self._directory.processes}: {error.strerror}")

    async def run(self, on_ready: Callable[[Address], None]) -> None:
        """Start the cluster and keep it until SIGINT, SIGTERM or SIGHUP; nothing of it is left when this returns.

        Args:
            on_ready: Called once, when everything serves.

        Raises:
            ChildFailedError: A child did not become ready, or the cluster did not.
            SupervisorError: The disk is full, or descriptors are short.
        """
        running = asyncio.ensure_future(self._start_and_keep(on_ready))
        with self._handled_signals(running):
            try:
                await running
            except asyncio.CancelledError:
                if not self._signals:
                    raise
            except OSError as error:
                raise SupervisorError(
                    f"the cluster cannot be kept: {error}",
                    help_="The data directory needs room on its disk, and every child a few open files.",
                ) from error
            finally:
                await self._stop()

    async def _start_and_keep(self, on_ready: Callable[[Address], None]) -> None:
        swept = sweep(self._directory)
        if swept:
            self.notice(f"removed what an earlier supervisor left: {swept}")
        address = await self._start()
        try:
            async with asyncio.TaskGroup() as group:
                for child in self._children():
                    group.create_task(child.keep())
                logs = [child.spec.log for child in self._children()]
                group.create_task(keep_logs_short(logs, self.notice))
                if self._config.etcd_program is not None:
                    port = int(address.etcd.rpartition(":")[2])
                    group.create_task(keep_defragmented(port, self._directory.credentials, self.notice))
                await wait_until_ready(address.http, READY_TIMEOUT_S)
                self._locked.publish(address)
                on_ready(address)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _children(self) -> list[Child]:
        return [child for layer in self._layers for child in layer]

    async def _start(self) -> Address:
        config, directory = self._config, self._directory
        login = prepare_credentials(directory, dt.datetime.now(dt.UTC))
        use_given_credentials(directory, config.given)
        self._layers.append([])
        etcd, nats = await _together(
            self._store(
                config.given.etcd, config.etcd_program, lambda path: etcd_store(directory, path, config.environment)
            ),
            self._store(
                config.given.nats,
                config.nats_program,
                lambda path: nats_store(directory, path, config.environment, login.user, login.password),
            ),
        )
        stores = Stores(etcd=etcd, nats=nats)
        scheduler = Child(scheduler_spec(directory, stores, config.scheduler, config.environment), self)
        nodes = [self._node(number, stores) for number in range(1, config.nodes + 1)]
        self._layers += [nodes, [scheduler]]
        ready, *_ = await _together(scheduler.start(), *(node.start() for node in nodes))
        return Address(grpc=ready.grpc, http=ready.http, etcd=etcd, nats=nats)

    def _node(self, number: int, stores: Stores) -> Child:
        config, directory = self._config, self._directory
        directory.node(number).mkdir(mode=0o700, exist_ok=True)
        flags = config.agent_flags
        spec = agent_spec(directory, stores, config.share, config.environment, number=number, flags=flags)
        return Child(spec, self)

    async def _store(self, given: str | None, program: Path | None, make: Callable[[Path], Store]) -> str:
        """Give the URL of etcd or NATS, starting it unless one is given."""
        if given is not None:
            return given
        assert program is not None, "one or the other"
        attempt = 1
        while True:
            store = make(program)
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
                for child in self._children():
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
