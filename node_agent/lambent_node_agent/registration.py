"""The node in etcd: its record and its health, both under one lease that says that it lives."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from lambent.errors import ResourceConflictError, ServiceError
from lambent.v1 import record_pb2
from lambent_common import keys, records
from lambent_common.etcd import EtcdUnavailableError, LeaseKeeper, mod_revision_is, put_op

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lambent.v1 import node_pb2
    from lambent_common.credentials import Credentials
    from lambent_common.etcd import EtcdClient

log = structlog.get_logger(__name__)

# A dead node is noticed within this time; a shorter one loses nodes whose machine swaps for a moment.
LEASE_TTL_S: Final = 5
HEALTH_INTERVAL_S: Final = 10.0
HEALTH_CHANGE: Final = 0.1
_CHECK_INTERVAL_S: Final = 1.0
_RETRY_WAIT_S: Final = 1.0
# An agent on the same network answers a connection within milliseconds.
_CONNECT_TIMEOUT_S: Final = 2.0
# The record of an agent that died goes with its lease; a new leader of etcd's gives every lease its whole time again.
_LAPSE_TIMEOUT_S: Final = 2.0 * LEASE_TTL_S


def is_worth_telling(
    told: Mapping[str, int], now: Mapping[str, int], capacity: Mapping[str, int], *, age_s: float
) -> bool:
    """Tell whether health is due: a reservation moved by 10 % of the capacity, or the last telling is 10 s old."""
    if age_s >= HEALTH_INTERVAL_S:
        return True
    return any(abs(now.get(name, 0) - told.get(name, 0)) >= HEALTH_CHANGE * most for name, most in capacity.items())


class Registration:
    """Keeps the node in etcd for as long as it runs, with a new lease whenever one was lost.

    Args:
        etcd: Client.
        endpoints: URLs of the members, for the lease's own connection.
        credentials: For the same.
        record: What the node is; a changed `draining` is written by `drain`.
        capacity: What reservations are compared with.
        status: Gives what is in use now.
    """

    def __init__(
        self,
        etcd: EtcdClient,
        endpoints: Sequence[str],
        credentials: Credentials,
        *,
        record: record_pb2.NodeRecord,
        capacity: Mapping[str, int],
        status: Callable[[], node_pb2.NodeStatus],
    ) -> None:
        self._etcd = etcd
        self._endpoints = endpoints
        self._credentials = credentials
        self._record = record
        self._capacity = capacity
        self._status = status
        self._key = keys.node(record.node_id)
        self._lease_id = 0
        self._revision = 0
        self._registered = asyncio.Event()

    async def run(self) -> None:
        """Register, and register again whenever the lease was lost; until cancelled, which revokes the lease.

        Raises:
            ResourceConflictError: At the start: a living agent has this node id.
        """
        while True:
            try:
                await self._hold_lease()
                continue
            except ResourceConflictError as error:
                if not self._registered.is_set():
                    raise
                log.error("node_id_taken", node_id=self._record.node_id, error=error.message)  # noqa: TRY400 - no defect
            except ServiceError as error:
                log.warning("not_registered", node_id=self._record.node_id, error=error.message)
            await asyncio.sleep(_RETRY_WAIT_S)

    async def wait_until_registered(self) -> None:
        """Return once the node is in etcd."""
        await self._registered.wait()

    async def drain(self) -> None:
        """Say that the node takes no new environments. Without etcd nothing happens: the lease says it all soon."""
        self._record.draining = True
        if self._lease_id:
            try:
                await self._write_record()
            except ServiceError as error:
                log.warning("drain_not_told", node_id=self._record.node_id, error=error.message)

    async def _hold_lease(self) -> None:
        """Live through one lease; returns when it was lost."""
        loop = asyncio.get_running_loop()
        lost = asyncio.Event()

        def on_lost() -> None:
            loop.call_soon_threadsafe(lost.set)

        self._lease_id = await self._etcd.grant_lease(LEASE_TTL_S)
        keeper = LeaseKeeper(self._endpoints, self._credentials, self._lease_id, LEASE_TTL_S, on_lost).start()
        try:
            await self._write_record()
            self._registered.set()
            log.info("registered", node_id=self._record.node_id, address=self._record.address)
            await self._tell_health(lost)
        finally:
            lease_id, self._lease_id = self._lease_id, 0
            await asyncio.to_thread(keeper.close)  # it waits for its thread
            if not lost.is_set():
                await self._revoke(lease_id)

    async def _write_record(self) -> None:
        """Write the record under the lease.

        Raises:
            ResourceConflictError: The record of another agent stands there, which is alive.
        """
        give_up_at = asyncio.get_running_loop().time() + _LAPSE_TIMEOUT_S
        while True:
            found = await self._etcd.get(self._key)
            if found is not None and not await self._is_replaceable(found.value, give_up_at):
                await asyncio.sleep(_RETRY_WAIT_S)
                continue
            result = await self._etcd.txn(
                [mod_revision_is(self._key, found.mod_revision if found is not None else 0)],
                [put_op(self._key, records.encode(self._record), lease_id=self._lease_id)],
            )
            if result.succeeded:
                self._revision = result.revision
                return

    async def _is_replaceable(self, value: bytes, give_up_at: float) -> bool:
        """Tell whether a record is our own or that of an agent that is gone; False when that will show."""
        other = records.decode(value, record_pb2.NodeRecord)
        own = self._record
        if (other.address, other.start_time) == (own.address, own.start_time):
            return True
        # At our own address nobody else can be asked: its lease tells.
        lives = None if other.address == own.address else await _answers(other.address)
        if lives is None and asyncio.get_running_loop().time() < give_up_at:
            return False
        if lives is False:
            return True
        raise ResourceConflictError(
            f"the node id {own.node_id} belongs to the agent at {other.address}, which is alive; give one of the two "
            "another --id"
        )

    async def _tell_health(self, lost: asyncio.Event) -> None:
        told: dict[str, int] = {}
        told_at = float("-inf")
        loop = asyncio.get_running_loop()
        while not lost.is_set():
            status = self._status()
            reserved = dict(status.reserved)
            if is_worth_telling(told, reserved, self._capacity, age_s=loop.time() - told_at):
                health = record_pb2.NodeHealthRecord(reserved=reserved, environments=status.environments)
                try:
                    if await self._put_health(health):
                        told, told_at = reserved, loop.time()
                    else:
                        log.warning("record_gone", node_id=self._record.node_id)
                        await self._write_record()
                        continue
                except EtcdUnavailableError as error:  # the lease's keeper decides whether we are lost
                    log.warning("health_not_told", node_id=self._record.node_id, error=str(error))
            try:
                async with asyncio.timeout(_CHECK_INTERVAL_S):
                    await lost.wait()
            except TimeoutError:
                continue

    async def _put_health(self, health: record_pb2.NodeHealthRecord) -> bool:
        """Write the health if the record still stands as it was written; False when it does not."""
        key = keys.health(self._record.node_id)
        result = await self._etcd.txn(
            [mod_revision_is(self._key, self._revision)],
            [put_op(key, records.encode(health), lease_id=self._lease_id)],
        )
        return result.succeeded

    async def _revoke(self, lease_id: int) -> None:
        try:
            await self._etcd.revoke_lease(lease_id)
        except ServiceError as error:
            log.warning("lease_not_revoked", lease_id=lease_id, error=error.message)


async def _answers(address: str) -> bool | None:
    """Tell whether anybody listens at host:port; None when that cannot be found out."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return False
    except (OSError, ValueError, TimeoutError):
        return None
    writer.close()
    return True
