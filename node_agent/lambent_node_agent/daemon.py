"""Puts the agent together and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from lambent.errors import UnavailableError
from lambent.v1 import node_pb2, record_pb2
from lambent_common.etcd import EtcdClient
from lambent_common.log_streams import ensure_log_streams
from lambent_common.memory import settle_memory
from lambent_common.message_server import MessageServer
from lambent_common.nats import connect_nats
from lambent_common.packages import PackageStore
from lambent_common.readiness import announce_ready
from lambent_common.version import VERSION
from lambent_node_agent import isolation
from lambent_node_agent.admission import Admission, Resources
from lambent_node_agent.code_cache import CodeCache
from lambent_node_agent.idle.keeper import IdleKeeper
from lambent_node_agent.logs.budget import IngestBudget
from lambent_node_agent.logs.publisher import LogPublisher
from lambent_node_agent.network_settings import network_labels
from lambent_node_agent.node import Node
from lambent_node_agent.registration import Registration
from lambent_node_agent.sandbox import SandboxConfig, SandboxError, SandboxHost
from lambent_node_agent.service import NodeService

if TYPE_CHECKING:
    from lambent_node_agent.config import AgentConfig

log = structlog.get_logger(__name__)

_REGISTRATION_TIMEOUT_S: Final = 15.0
# What functions logged last goes out before the agent does, if NATS takes it.
_LAST_LOGS_TIMEOUT_S: Final = 2.0


async def serve(config: AgentConfig, ready_fd: int | None) -> None:
    """Run the agent until SIGTERM or SIGINT. Call `enter_private_mount_namespace` before, in the main thread.

    Raises:
        UnavailableError: etcd or NATS cannot be reached, the address is taken, or sandboxes cannot be made here.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(await EtcdClient.connect(config.etcd, config.credentials))
        nats = await connect_nats(config.nats, config.credentials, f"agent {config.node_id}")
        stack.push_async_callback(nats.close)
        jetstream = nats.jetstream()
        await ensure_log_streams(jetstream)
        packages = await PackageStore.open(jetstream)
        sandboxes = await _open_sandboxes(config, stack)
        # Only now is the state directory known to be nobody else's.
        code = CodeCache(config.state_dir / "code", packages)
        await code.open()
        publisher = LogPublisher(jetstream)
        try:
            async with asyncio.TaskGroup() as tasks:
                agent = _Agent(config, sandboxes, code, publisher, tasks)
                await agent.run(etcd, stopping, ready_fd)
        except BaseExceptionGroup as group:
            # One failure ends the agent; the others are what it took with it.
            raise _first(group) from group


async def _open_sandboxes(config: AgentConfig, stack: AsyncExitStack) -> SandboxHost:
    sandbox_config = SandboxConfig(
        state_dir=config.state_dir,
        owner=config.owner,
        pool_size=config.pool_size,
        memory_mib=config.memory_mib,
        disk_mib=config.disk_mib,
        lock_dir=config.lock_dir,
        allow_missing=config.allow_missing,
        required=config.require_isolation,
        confinement=config.confinement,
        network=config.network,
        merge_memory=config.merge_memory,
    )
    try:
        sandboxes = await stack.enter_async_context(SandboxHost(sandbox_config))
        if not sandboxes.runtimes:
            raise UnavailableError("this machine has no interpreter that functions could run in")
        sandboxes.protect_control_plane(os.getpid())
    except SandboxError as error:
        raise UnavailableError(f"sandboxes cannot be made here: {error}; `lambent doctor` tells more") from error
    return sandboxes


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Agent:
    """The parts, connected to each other."""

    def __init__(
        self,
        config: AgentConfig,
        sandboxes: SandboxHost,
        code: CodeCache,
        publisher: LogPublisher,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._config = config
        self._sandboxes = sandboxes
        self._publisher = publisher
        self._tasks = tasks
        self._capacity = Resources(config.memory_mib, int(config.cpus * 1000), config.disk_mib)
        self._node = Node(
            node_id=config.node_id,
            sandboxes=sandboxes,
            code=code,
            admission=Admission(self._capacity),
            log_sink=publisher,
            budget=IngestBudget(),
            lifetime=config.lifetime,
            tasks=tasks,
        )
        service = NodeService(self._node, config.credentials.token)
        self._server = MessageServer(node_pb2.OrderBatch.FromString, service.serve)

    async def run(self, etcd: EtcdClient, stopping: asyncio.Event, ready_fd: int | None) -> None:
        """Serve until `stopping` is set, then end everything in order."""
        config = self._config
        publishing = self._tasks.create_task(self._publisher.run())
        telling = self._tasks.create_task(self._node.run())
        try:
            port = await self._server.start(config.listen)
        except OSError as error:
            raise UnavailableError(f"cannot listen on {config.listen}: {error}") from error
        address = config.address(port)
        capacity = self._capacity.as_map()
        keeping = self._tasks.create_task(IdleKeeper(self._node).run())
        registration = Registration(
            etcd,
            config.etcd,
            config.credentials,
            record=self._record(address),
            capacity=capacity,
            status=self._node.status,
        )
        registering = self._tasks.create_task(registration.run())
        try:
            async with asyncio.timeout(_REGISTRATION_TIMEOUT_S):
                await registration.wait_until_registered()
        except TimeoutError as error:
            raise UnavailableError(f"etcd took no record of the node within {_REGISTRATION_TIMEOUT_S:g} s") from error
        settle_memory()
        announce_ready(ready_fd, node=address)
        log.info("ready", node_id=config.node_id, address=address, runtimes=self._sandboxes.runtimes, **capacity)
        await stopping.wait()

        log.info("stopping", node_id=config.node_id, environments=len(self._node.environments))
        await registration.drain()
        keeping.cancel()
        await self._node.shut_down(config.drain_s)
        registering.cancel()
        await asyncio.wait((registering,))
        await self._server.stop()
        telling.cancel()
        try:
            async with asyncio.timeout(_LAST_LOGS_TIMEOUT_S):
                await self._publisher.wait_until_idle()
        except TimeoutError:
            log.warning("last_logs_lost", node_id=config.node_id)
        publishing.cancel()

    def _record(self, address: str) -> record_pb2.NodeRecord:
        start_time = Timestamp()
        start_time.GetCurrentTime()
        return record_pb2.NodeRecord(
            node_id=self._config.node_id,
            address=address,
            capacity=self._capacity.as_map(),
            labels={
                **self._config.labels,
                **isolation.labels(self._sandboxes.missing),
                **network_labels(self._sandboxes.named_networks),
            },
            runtimes=self._sandboxes.runtimes,
            agent_version=VERSION,
            start_time=start_time,
        )
