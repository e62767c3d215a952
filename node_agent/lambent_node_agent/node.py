"""The node: its environments, what they reserve, and the schedulers they answer to."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from lambent.errors import NoCapacityError
from lambent.v1 import node_pb2
from lambent_common.log_streams import log_subject
from lambent_node_agent.environment.model import Phase
from lambent_node_agent.environment.shell import EnvironmentShell
from lambent_node_agent.environment.turns import Turns
from lambent_node_agent.logs.environment_log import EnvironmentLog, log_stream_name

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from lambent_node_agent.admission import Admission
    from lambent_node_agent.attachment import Attachment
    from lambent_node_agent.code_cache import CodeCache
    from lambent_node_agent.environment.model import Lifetime
    from lambent_node_agent.logs.budget import IngestBudget
    from lambent_node_agent.logs.environment_log import BatchSink
    from lambent_node_agent.sandbox import SandboxHost

log = structlog.get_logger(__name__)

# A scheduler that is restarted or replaced is back within seconds; warm environments are worth waiting much longer.
ORPHAN_TIMEOUT_S: Final = 600.0
# Where another scheduler was attached before they became orphans, it has not been told of them: unless their own one is
# back soon, their memory is of use to nobody.
UNTOLD_TIMEOUT_S: Final = 5.0
_STATUS_INTERVAL_S: Final = 1.0
_MIN_MEMORY_MIB: Final = 128  # AWS Lambda quotas
_MAX_MEMORY_MIB: Final = 10_240


@dataclass(slots=True)
class _Orphan:
    """An environment whose scheduler is gone."""

    since: float
    offered_to: Attachment | None = None


class Node:
    """Everything that this machine runs for the cluster; the arbiter of its own capacity.

    Args:
        node_id: Unique in the cluster.
        sandboxes: Makes sandboxes.
        code: Gives code.
        admission: Keeps the reservations.
        log_sink: Takes log batches.
        budget: Bounds what functions log.
        lifetime: How long environments are to serve.
        tasks: Holds the tasks of environments.
    """

    def __init__(
        self,
        *,
        node_id: str,
        sandboxes: SandboxHost,
        code: CodeCache,
        admission: Admission,
        log_sink: BatchSink,
        budget: IngestBudget,
        lifetime: Lifetime,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.node_id = node_id
        self.sandboxes = sandboxes
        self.code = code
        self.turns = Turns(asyncio.get_running_loop().call_later)
        self.environments: dict[str, EnvironmentShell] = {}
        self.draining = False
        self.lifetime = lifetime
        self.reclaimed_bytes = 0
        self._admission = admission
        self._log_sink = log_sink
        self._budget = budget
        self._tasks = tasks
        self._lingering: set[asyncio.Task[None]] = set()
        self._attachments: set[Attachment] = set()
        # Each environment is in one of the two: who answers for it, or how long nobody has.
        self._owners: dict[str, Attachment] = {}
        self._orphaned: dict[str, _Orphan] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    # Schedulers

    def attach(self, attachment: Attachment) -> None:
        """Greet a scheduler. An older stream of the same instance is dead, whether or not it looks so."""
        for other in [other for other in self._attachments if other.scheduler_id == attachment.scheduler_id]:
            self.detach(other)
        self._attachments.add(attachment)
        held: list[node_pb2.HeldEnvironment] = []
        for environment_id, orphan in self._orphaned.items():
            environment = self.environments[environment_id]
            if environment.state.announced and environment.state.phase is not Phase.SHUTDOWN:
                orphan.offered_to = attachment
                order = _without_variables(environment.order)
                unused = not environment.state.invocations
                held.append(node_pb2.HeldEnvironment(start=order, busy=environment.serving, unused=unused))
        welcome = node_pb2.Welcome(node_id=self.node_id, status=self.status(), environments=held)
        attachment.send(node_pb2.NodeEvent(welcome=welcome))
        log.info("scheduler_attached", scheduler_id=attachment.scheduler_id, environments=len(held))

    def detach(self, attachment: Attachment) -> None:
        """A scheduler is gone: its calls finish unheard, its environments wait for another one."""
        if attachment not in self._attachments:
            return
        self._attachments.discard(attachment)
        attachment.abandon()
        now = time.monotonic()
        for orphan in self._orphaned.values():
            if orphan.offered_to is attachment:
                orphan.offered_to, orphan.since = None, now
        for environment_id in [key for key, owner in self._owners.items() if owner is attachment]:
            del self._owners[environment_id]
            self._orphaned[environment_id] = _Orphan(now)
            environment = self.environments[environment_id]
            if not environment.state.announced:  # nobody waits for it any more, and nobody could adopt it
                environment.stop("orphaned", drain=False)
        log.info("scheduler_detached", scheduler_id=attachment.scheduler_id)

    def adopt(self, environment_id: str, attachment: Attachment) -> EnvironmentShell | None:
        """Give an environment to a scheduler that has an order for it."""
        environment = self.environments.get(environment_id)
        if environment is not None and self._owners.get(environment_id) is not attachment:
            self._owners[environment_id] = attachment
            self._orphaned.pop(environment_id, None)
        return environment

    # Environments

    def start_environment(self, order: node_pb2.StartEnvironment, attachment: Attachment) -> None:
        """Make an environment, or say at once why not."""
        environment_id = order.environment_id
        if environment_id in self.environments:
            self.adopt(environment_id, attachment)
            return
        if (refusal := self._refusal(order)) is not None:
            attachment.send(node_pb2.NodeEvent(environment_stopped=refusal))
            return
        environment_log = EnvironmentLog(
            stream_name=log_stream_name(datetime.now(UTC), order.version, environment_id),
            subject=log_subject(order.account, order.function_name),
            node_id=self.node_id,
            sink=self._log_sink,
            budget=self._budget,
        )
        environment = EnvironmentShell(order, self, environment_log)
        self.environments[environment_id] = environment
        self._owners[environment_id] = attachment
        self._empty.clear()
        environment.start()

    def _refusal(self, order: node_pb2.StartEnvironment) -> node_pb2.EnvironmentStopped | None:
        """Reserve what the environment needs, or say why it cannot be made."""
        refusal = node_pb2.EnvironmentStopped(environment_id=order.environment_id)
        if self.draining:
            refusal.reason, refusal.refused, refusal.message = "capacity", True, "the node is draining"
        elif order.runtime not in self.sandboxes.runtimes:
            offered = ", ".join(self.sandboxes.runtimes)
            refusal.reason, refusal.message = "runtime", f"the node has no {order.runtime}; it has {offered}"
        elif order.shard_id or not _MIN_MEMORY_MIB <= order.memory_mib <= _MAX_MEMORY_MIB:
            refusal.reason = "sandbox"
            refusal.message = f"shard {order.shard_id} or memory of {order.memory_mib} MiB is out of range"
        else:
            try:
                self._admission.reserve(
                    order.environment_id, memory_mib=order.memory_mib, disk_mib=order.ephemeral_storage_mib
                )
            except NoCapacityError as error:
                refusal.reason, refusal.refused, refusal.message = "capacity", True, error.message
            else:
                return None
        return refusal

    def spawn(self, coroutine: Coroutine[Any, Any, None], environment: EnvironmentShell) -> asyncio.Task[None]:
        """Run something for an environment; its failure ends the environment and nothing else."""
        return self._tasks.create_task(self._guard(coroutine, environment))

    async def _guard(self, coroutine: Coroutine[Any, Any, None], environment: EnvironmentShell) -> None:
        try:
            await coroutine
        except Exception as error:  # one environment's defect must not end the others
            log.exception("environment_failed", environment_id=environment.environment_id)
            environment.fail(f"a defect of the agent: {type(error).__name__}")

    def linger(self, coroutine: Coroutine[Any, Any, None], environment: EnvironmentShell) -> None:
        """Run for an environment what may take for ever, until the node is shut down."""
        task = self.spawn(coroutine, environment)
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    def environment_ready(self, environment: EnvironmentShell, event: node_pb2.EnvironmentReady) -> None:
        """Tell the scheduler that an environment can serve."""
        self._tell(environment, event)

    def environment_spent(self, environment: EnvironmentShell) -> None:
        """Tell the scheduler that an environment has served as long as it is to."""
        self._tell(environment, node_pb2.EnvironmentSpent(environment_id=environment.environment_id))

    def environment_stopped(self, environment: EnvironmentShell, reason: str, message: str) -> None:
        """Tell the scheduler that an environment is over."""
        environment_id = environment.environment_id
        del self.environments[environment_id]
        event = node_pb2.EnvironmentStopped(environment_id=environment_id, reason=reason, message=message)
        self._tell(environment, event)
        self._owners.pop(environment_id, None)
        self._orphaned.pop(environment_id, None)
        if not self.environments:
            self._empty.set()
        log.info("environment_stopped", environment_id=environment_id, reason=reason, message=message)

    def environment_freed(self, environment_id: str) -> None:
        """Let others have what an environment had reserved."""
        self._admission.release(environment_id)

    def call_ended(self, environment: EnvironmentShell) -> None:
        """An invocation of a lost scheduler is over: whoever adopted the environment as busy may use it now."""
        if environment.environment_id in self._orphaned:
            self._tell(environment, node_pb2.EnvironmentReady(environment_id=environment.environment_id))

    def _tell(
        self,
        environment: EnvironmentShell,
        event: node_pb2.EnvironmentReady | node_pb2.EnvironmentSpent | node_pb2.EnvironmentStopped,
    ) -> None:
        owner = self._owners.get(environment.environment_id)
        for attachment in (owner,) if owner is not None else self._attachments:
            if isinstance(event, node_pb2.EnvironmentReady):
                attachment.send(node_pb2.NodeEvent(environment_ready=event))
            elif isinstance(event, node_pb2.EnvironmentSpent):
                attachment.send(node_pb2.NodeEvent(environment_spent=event))
            else:
                attachment.send(node_pb2.NodeEvent(environment_stopped=event))

    # The node as a whole

    def status(self) -> node_pb2.NodeStatus:
        """What is in use now."""
        return node_pb2.NodeStatus(
            reserved=self._admission.reserved.as_map(),
            environments=len(self.environments),
            draining=self.draining,
            frozen=sum(environment.state.phase is Phase.FROZEN for environment in self.environments.values()),
            reclaimed_bytes=self.reclaimed_bytes,
        )

    async def run(self) -> None:
        """Tell schedulers what changed, once a second, and stop what nobody answers for; until cancelled."""
        told = self.status()
        while True:
            await asyncio.sleep(_STATUS_INTERVAL_S)
            if (status := self.status()) != told:
                told = status
                for attachment in self._attachments:
                    attachment.send(node_pb2.NodeEvent(status=status))
            self._stop_orphans(time.monotonic())

    def _stop_orphans(self, now: float) -> None:
        timeout_s = UNTOLD_TIMEOUT_S if self._attachments else ORPHAN_TIMEOUT_S
        for environment_id, orphan in list(self._orphaned.items()):
            # A scheduler that was told of it and is still there answers for it, though it has not used it yet.
            if orphan.offered_to is None and now - orphan.since >= timeout_s:
                self.environments[environment_id].stop("orphaned", drain=True)

    async def shut_down(self, drain_s: float) -> None:
        """Take nothing more, let invocations finish for `drain_s` seconds, then end every environment."""
        self.draining = True
        for environment in list(self.environments.values()):
            environment.stop("shutdown", drain=True)
        try:
            async with asyncio.timeout(drain_s):
                await self._empty.wait()
        except TimeoutError:
            for environment in list(self.environments.values()):
                environment.stop("shutdown", drain=False)
            await self._empty.wait()  # taking an environment down is bounded, and ends with this whatever happens
        for task in self._lingering:
            task.cancel()


def _without_variables(order: node_pb2.StartEnvironment) -> node_pb2.StartEnvironment:
    copy = node_pb2.StartEnvironment()
    copy.CopyFrom(order)
    copy.environment_variables.clear()
    return copy
