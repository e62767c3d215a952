"""Puts the scheduler together and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import platform
import random
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CollectorRegistry

from lambent.errors import UnavailableError
from lambent.v1 import (
    cluster_pb2_grpc,
    function_pb2_grpc,
    invocation_pb2_grpc,
    log_pb2_grpc,
    record_pb2,
)
from lambent_common.etcd import EtcdClient
from lambent_common.grpc_server import GrpcServer
from lambent_common.log_streams import ensure_log_streams
from lambent_common.memory import settle_memory
from lambent_common.nats import connect_nats
from lambent_common.packages import PackageStore
from lambent_common.readiness import announce_ready
from lambent_common.version import VERSION
from lambent_scheduler.cluster.service import ClusterServicer
from lambent_scheduler.concurrency_counts import write_counts
from lambent_scheduler.core.dispatch import Dispatcher
from lambent_scheduler.core.limits import Limits
from lambent_scheduler.functions.activation import Activator
from lambent_scheduler.functions.names import Naming
from lambent_scheduler.functions.repository import FunctionRepository
from lambent_scheduler.functions.service import FunctionServicer
from lambent_scheduler.functions.sweep import PackageSweep
from lambent_scheduler.functions.table import FunctionTable
from lambent_scheduler.functions.upload import Uploads
from lambent_scheduler.http.app import make_app
from lambent_scheduler.http.metrics import RelayCollector
from lambent_scheduler.http.server import serve_http
from lambent_scheduler.invocation.relay import Relay
from lambent_scheduler.invocation.service import InvocationServicer
from lambent_scheduler.logs.service import LogServicer
from lambent_scheduler.nodes.watcher import watch_nodes
from lambent_scheduler.ownership import Ownership

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from lambent_scheduler.config import SchedulerConfig

log = structlog.get_logger()

_SERVICES = (
    "lambent.v1.InvocationService",
    "lambent.v1.FunctionService",
    "lambent.v1.LogService",
    "lambent.v1.ClusterService",
)

_ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "arm64"}
"""The kernel's names of machines, and AWS Lambda's."""

_TABLE_TIMEOUT_S = 300.0
"""Reading 100,000 functions takes half a minute on one core."""

_MAINTENANCE_RETRY_S = 1.0
"""Before maintenance that has failed begins anew."""

_GRACE_S = 0.5
"""For callers to take what has been answered."""

_T = TypeVar("_T")


async def serve(config: SchedulerConfig, ready_fd: int | None) -> None:
    """Run the scheduler until SIGTERM or SIGINT, or until its lease is lost.

    Raises:
        UnavailableError: etcd or NATS cannot be reached, an address is taken, or the lease was lost.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        # As a standby this takes as long as the other scheduler lives.
        scheduler = await _unless(stopping, _Scheduler.assemble(config, stack))
        if scheduler is not None:
            await scheduler.run(stopping, ready_fd)


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, _T]) -> _T | None:
    """Give the result of `work`; None when `stopping` is set before there is one. `work` is cancelled then."""
    tasks = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    working, _ = tasks
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _kept_up(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do maintenance for ever: a failure of it is logged, and costs callers nothing."""
    while True:
        try:
            await work()
        except Exception:  # whatever it was, it is no reason to refuse calls
            log.exception("maintenance_failed", task=name)
        await asyncio.sleep(_MAINTENANCE_RETRY_S)


class _Scheduler:
    """The parts, once they are connected to each other."""

    def __init__(
        self,
        config: SchedulerConfig,
        relay: Relay,
        ownership: Ownership,
        server: GrpcServer,
        invocations: InvocationServicer,
    ) -> None:
        self._config = config
        self._relay = relay
        self._ownership = ownership
        self._server = server
        self._invocations = invocations
        self._background: list[asyncio.Task[None]] = []

    @classmethod
    async def assemble(cls, config: SchedulerConfig, stack: AsyncExitStack) -> _Scheduler:
        """Connect to etcd and NATS, take ownership, and make the services; `stack` closes what was opened."""
        etcd = await stack.enter_async_context(await EtcdClient.connect(config.etcd, config.credentials))
        nats = await connect_nats(config.nats, config.credentials, f"scheduler {config.scheduler_id}")
        stack.push_async_callback(nats.close)
        start_time = Timestamp()
        start_time.GetCurrentTime()
        record = record_pb2.SchedulerRecord(
            scheduler_id=config.scheduler_id,
            scheduler_version=VERSION,
            start_time=start_time,
        )
        ownership = await stack.enter_async_context(Ownership(etcd, config.etcd, config.credentials, record))
        naming = Naming(config.region)
        functions = FunctionTable(naming)
        limits = Limits(
            account_concurrency=config.account_concurrency,
            keep_alive_s=config.keep_alive_s,
            keep_alive=config.keep_alive_policy,
            eviction=config.eviction_policy,
            placement=config.placement_policy,
            max_queue_wait_s=config.max_queue_wait_s,
        )
        dispatcher = Dispatcher(limits, seed=random.SystemRandom().getrandbits(128))
        js = nats.jetstream()
        await ensure_log_streams(js)
        packages = await PackageStore.open(js)
        repository = FunctionRepository(etcd)
        activator = Activator(repository, packages, functions)
        relay = Relay(
            dispatcher=dispatcher,
            functions=functions,
            epoch=ownership.epoch,
            scheduler_id=config.scheduler_id,
            token=config.credentials.token,
            on_prepared=activator.prepared,
        )
        server = GrpcServer(token=config.credentials.token, services=_SERVICES)
        invocations = InvocationServicer(relay)
        scheduler = cls(config, relay, ownership, server, invocations)
        function_servicer = FunctionServicer(
            naming=naming,
            repository=repository,
            table=functions,
            packages=packages,
            uploads=Uploads(packages),
            activator=activator,
            architecture=_ARCHITECTURES.get(platform.machine(), platform.machine()),
            account_concurrency=config.account_concurrency,
        )
        cluster = ClusterServicer(
            relay=relay, functions=functions, etcd=etcd, nats=nats, account_limit=config.account_concurrency
        )
        invocation_pb2_grpc.add_InvocationServiceServicer_to_server(invocations, server.server)
        function_pb2_grpc.add_FunctionServiceServicer_to_server(function_servicer, server.server)
        log_pb2_grpc.add_LogServiceServicer_to_server(LogServicer(js, naming, functions), server.server)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(cluster, server.server)
        stack.push_async_callback(scheduler._stop_background)
        scheduler._begin("function-table", functions.follow(etcd))
        await scheduler._wait_for_table(functions)
        # Nodes come after the functions: they offer environments, and whether those are current the table knows.
        scheduler._begin("node-watch", watch_nodes(etcd, relay))
        scheduler._begin("tick", relay.tick())
        for name, work in (
            ("activation", activator.run),
            ("package-sweep", PackageSweep(repository, packages).run),
            ("concurrency-counts", lambda: write_counts(etcd, dispatcher, ownership.epoch)),
        ):
            scheduler._begin(name, _kept_up(name, work))
        return scheduler

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._background.append(asyncio.create_task(work, name=name))

    async def _wait_for_table(self, functions: FunctionTable) -> None:
        """Wait until the table is filled; what keeps it from that is raised."""
        ready = asyncio.create_task(functions.wait_until_ready())
        await asyncio.wait((ready, *self._background), timeout=_TABLE_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        for task in self._background:
            if task.done():
                task.result()
        if not ready.done():
            ready.cancel()
            raise UnavailableError(f"etcd did not give all functions within {_TABLE_TIMEOUT_S:g} s")

    async def run(self, stopping: asyncio.Event, ready_fd: int | None) -> None:
        """Serve until `stopping` is set."""
        config = self._config
        registry = CollectorRegistry()
        registry.register(RelayCollector(self._relay, self._invocations.sessions))
        host, _, port = config.http_listen.rpartition(":")
        hosts = ("localhost", "127.0.0.1", host, host.strip("[]"), *config.allowed_hosts)
        app = make_app(registry, self._unready_reason, hosts=hosts)
        async with serve_http(app, host.strip("[]"), int(port)) as http_port:
            session_port = await self._invocations.session_port.start(config.session_listen)
            grpc_port = await self._server.start(config.listen)
            grpc = f"{config.listen.rpartition(':')[0]}:{grpc_port}"
            await self._ownership.announce(grpc)
            settle_memory()
            announce_ready(ready_fd, grpc=grpc, http=f"http://{host}:{http_port}")
            if not config.credentials.token:
                log.warning("no_token", listen=config.listen)
            log.info(
                "ready", scheduler_id=config.scheduler_id, grpc=grpc, session_port=session_port, http_port=http_port
            )
            await self._wait(stopping)
            await self._server.announce_stop()
            await self._relay.stop(config.drain_s)
            # Ends of answers that wait for their callers may still leave.
            await asyncio.gather(self._invocations.session_port.stop(_GRACE_S), self._server.stop(_GRACE_S))
        if self._ownership.lost.is_set():
            raise UnavailableError(f"scheduler {config.scheduler_id} lost its lease in etcd and stopped")

    async def _wait(self, stopping: asyncio.Event) -> None:
        """Return when told to stop or when the lease is lost; a background task that fails takes the daemon down."""
        signals = [asyncio.create_task(event.wait()) for event in (stopping, self._ownership.lost)]
        await asyncio.wait((*signals, *self._background), return_when=asyncio.FIRST_COMPLETED)
        for signal_task in signals:
            signal_task.cancel()
        for task in self._background:
            if task.done():
                task.result()

    def _unready_reason(self) -> str | None:
        if self._ownership.lost.is_set():
            return "the lease in etcd was lost"
        if self._relay.draining:
            return "the scheduler is stopping"
        if not any(link.attached for link in self._relay.links.values()):
            return "no node is attached"
        return None

    async def _stop_background(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
