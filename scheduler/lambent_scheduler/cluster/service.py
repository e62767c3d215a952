"""The servicer of ClusterService."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lambent.errors import InvalidParameterError, ServiceError
from lambent.v1 import cluster_pb2, cluster_pb2_grpc
from lambent_common.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import grpc.aio
    from nats.aio.client import Client as NatsClient

    from lambent_common.etcd import EtcdClient
    from lambent_scheduler.functions.table import FunctionTable
    from lambent_scheduler.invocation.relay import Relay

_PROBE_TIMEOUT_S = 2.0
"""A part that needs longer than this to say how it is does not serve callers either."""

_MAX_PAGE_SIZE = 10_000
_DEFAULT_PAGE_SIZE = 1_000


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    """Answers from what this scheduler knows, and asks etcd and NATS how they are."""

    def __init__(
        self, *, relay: Relay, functions: FunctionTable, etcd: EtcdClient, nats: NatsClient, account_limit: int
    ) -> None:
        self._relay = relay
        self._functions = functions
        self._etcd = etcd
        self._nats = nats
        self._account_limit = account_limit

    async def ListNodes(  # noqa: N802 - gRPC's name
        self, request: cluster_pb2.ListNodesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> cluster_pb2.ListNodesResponse:
        """List the nodes that are alive, by id."""
        del context
        size = request.page_size or _DEFAULT_PAGE_SIZE
        if size > _MAX_PAGE_SIZE:
            raise InvalidParameterError(f"page_size {size} is over {_MAX_PAGE_SIZE}")
        ids = sorted(node_id for node_id in self._relay.links if node_id > request.page_token)
        page = ids[:size]
        return cluster_pb2.ListNodesResponse(
            nodes=[self._node(node_id) for node_id in page], next_page_token=page[-1] if len(ids) > size else ""
        )

    def _node(self, node_id: str) -> cluster_pb2.Node:
        record, link = self._relay.record(node_id), self._relay.links[node_id]
        return cluster_pb2.Node(
            node_id=node_id,
            address=record.address,
            capacity=record.capacity,
            reserved=link.status.reserved,
            labels=record.labels,
            runtimes=record.runtimes,
            environments=link.status.environments,
            draining=record.draining or link.status.draining,
            attached=link.attached,
            agent_version=record.agent_version,
            start_time=record.start_time,
        )

    async def GetStatus(  # noqa: N802 - gRPC's name
        self, request: cluster_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> cluster_pb2.GetStatusResponse:
        """Give the state of the control plane."""
        del request, context
        dispatcher = self._relay.dispatcher
        components = await asyncio.gather(_probe("etcd", self._etcd_component), _probe("nats", self._nats_component))
        return cluster_pb2.GetStatusResponse(
            version=VERSION,
            components=[
                *components,
                cluster_pb2.Component(name="scheduler", healthy=True, version=VERSION),
            ],
            nodes=len(self._relay.links),
            functions=self._functions.count(),
            environments=dispatcher.environment_count,
            concurrent_executions=dispatcher.in_flight,
            account_concurrency_limit=self._account_limit,
            waiting=dispatcher.waiting_calls,
            invocations=dispatcher.invocations,
            throttles=dispatcher.throttles,
            cold_starts=dispatcher.cold_starts,
        )

    async def _etcd_component(self) -> cluster_pb2.Component:
        status = await self._etcd.status()
        alarms = ", ".join(status.alarms)
        return cluster_pb2.Component(
            name="etcd", healthy=not alarms, version=status.version, message=f"alarms: {alarms}" if alarms else ""
        )

    async def _nats_component(self) -> cluster_pb2.Component:
        await self._nats.flush()
        server = self._nats.connected_server_version
        version = f"{server.major}.{server.minor}.{server.patch}"
        return cluster_pb2.Component(name="nats", healthy=self._nats.is_connected, version=version)


async def _probe(name: str, ask: Callable[[], Awaitable[cluster_pb2.Component]]) -> cluster_pb2.Component:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            return await ask()
    except (TimeoutError, ServiceError, OSError) as error:
        return cluster_pb2.Component(
            name=name, healthy=False, message=str(error) or f"no answer in {_PROBE_TIMEOUT_S} s"
        )
