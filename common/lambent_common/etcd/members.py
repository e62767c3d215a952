"""Connections to etcd's members: one is in use, the next one takes its place when it does not answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from lambent_common.etcd.endpoints import aio_channel, parse
from lambent_common.etcd.errors import EtcdUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lambent_common.credentials import Credentials

_CONNECT_TIMEOUT_S = 1.0
"""A member that refuses is noticed at once; this is for one that swallows packets, so that the next gets its turn."""

_RETRY_WAIT_S = 0.05
"""Between looks at members that all refuse. A look costs microseconds: gRPC redials with a back-off of its own."""

_REASON_TIMEOUT_S = 0.2

REQUIRE_LEADER = (("hasleader", "true"),)
"""Has a member that has lost the others say so at once, and end its watches (etcd: clientv3.WithRequireLeader)."""


class Member:
    """One member: its address, channel and stubs. The stubs of etcd's services carry no types, hence Any."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        self.target = target
        self.channel = channel
        self.kv: Any = rpc_pb2_grpc.KVStub(channel)
        self.lease: Any = rpc_pb2_grpc.LeaseStub(channel)
        self.maintenance: Any = rpc_pb2_grpc.MaintenanceStub(channel)
        self.watch: Any = rpc_pb2_grpc.WatchStub(channel)

    def is_connected(self) -> bool:
        """Tell whether a request would leave at once; begins to connect if not."""
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    async def connect(self, timeout_s: float) -> bool:
        """Wait until connected; False when the member refuses or does not answer in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while (state := self.channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                        return False
                    await self.channel.wait_for_state_change(state)
        except TimeoutError:
            return False
        return True

    async def why_not(self) -> str:
        """Give gRPC's reason for not being connected, for example a refused connection or a wrong certificate."""
        try:
            await self.maintenance.Status(rpc_pb2.StatusRequest(), timeout=_REASON_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        return "it was connected too late"


class Members:
    """All members of the cluster. Channels stay open until `close`: closing one would cancel whoever still reads."""

    def __init__(self, endpoints: Sequence[str], credentials: Credentials) -> None:
        self._members = [Member(target, aio_channel(target, tls, credentials)) for target, tls in parse(endpoints)]
        self._current = 0
        self.closed = False

    def __len__(self) -> int:
        return len(self._members)

    async def connected(self, timeout_s: float) -> Member:
        """Give a connected member, the one in use if it can be.

        Raises:
            EtcdUnavailableError: None could be connected to in time; nothing was sent.
        """
        if self.closed:
            raise EtcdUnavailableError("the etcd client is closed")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            for _ in self._members:
                member = self._members[self._current]
                if member.is_connected() or await member.connect(min(_CONNECT_TIMEOUT_S, deadline - loop.time())):
                    return member
                self.leave(member)
            if loop.time() + _RETRY_WAIT_S >= deadline:
                raise EtcdUnavailableError(await self._why_not())
            await asyncio.sleep(_RETRY_WAIT_S)

    def leave(self, member: Member) -> None:
        """Use the next member from now on, unless somebody else has already seen to it."""
        if self._members[self._current] is member:
            self._current = (self._current + 1) % len(self._members)

    async def close(self) -> None:
        """Close all connections; requests and watches under way fail."""
        self.closed = True
        for member in self._members:
            await member.channel.close()

    async def _why_not(self) -> str:
        targets = ", ".join(member.target for member in self._members)
        reason = await self._members[self._current].why_not()
        return f"etcd at {targets} cannot be reached: {reason}"
