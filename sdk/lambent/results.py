"""What the SDK gives back: frozen values, made from protobuf messages at the edge and nowhere else."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class FunctionState(enum.Enum):
    """Life cycle of a function version (AWS Lambda, `State`). UNKNOWN is a value newer than this SDK."""

    UNKNOWN = "Unknown"
    PENDING = "Pending"
    ACTIVE = "Active"
    FAILED = "Failed"


class NetworkMode(enum.StrEnum):
    """Where the connections of a function without a VpcConfig may go."""

    NONE = "none"
    """Loopback only."""
    EGRESS = "egress"
    """Public addresses."""


@dataclass(frozen=True, slots=True)
class VpcConfig:
    """Networks of the operator that a function may connect to, in place of public addresses (AWS Lambda, `VpcConfig`).

    Attributes:
        subnet_ids: At most 16: a connection may go where any of them leads.
        security_group_ids: At most 5: of these connections, those that any of them lets through.
    """

    subnet_ids: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()


NO_VPC = VpcConfig()


class LastUpdateStatus(enum.Enum):
    """Progress of the last change of $LATEST (AWS Lambda, `LastUpdateStatus`). NONE while a function is created."""

    NONE = ""
    SUCCESSFUL = "Successful"
    FAILED = "Failed"
    IN_PROGRESS = "InProgress"


@dataclass(frozen=True, slots=True)
class ColdStartPhases:
    """Where the time of a cold start went: what its call waited for before the environment had it.

    The phases follow one another and do not overlap; their sum is the result's `queue_ms`. A call that came while the
    environment was being made has waited for the last of the phases alone.

    Attributes:
        queue_ms: Until the environment was ordered: for memory, or for another environment to come free.
        placement_ms: The order's way to the node and the answer's way back, nodes that refused before included.
        fetch_code_ms: Until the code was unpacked on the node; 0 when it was there.
        sandbox_ms: Until there was a sandbox with its limits and the code: from the pool, or made now.
        runtime_ms: Until the runtime process began to load the handler.
        init_ms: For the import of the handler's module.
    """

    queue_ms: float
    placement_ms: float
    fetch_code_ms: float
    sandbox_ms: float
    runtime_ms: float
    init_ms: float


@dataclass(frozen=True, slots=True)
class InvokeResult:
    """The answer of one invocation.

    Attributes:
        payload: What the function returned, as JSON text; empty after a streamed call, whose bytes went to its reader.
        request_id: The invocation's id, the same in the function's context and log.
        executed_version: `$LATEST` or a number: what an alias or an empty qualifier led to.
        duration_ms: Run time of the handler, without init.
        billed_duration_ms: Run time rounded up to whole milliseconds, init of a cold start included.
        init_duration_ms: Time of AWS's init phase: start of the runtime process and import of the handler's module; 0
            unless this was a cold start.
        queue_ms: Time spent waiting for an environment, all phases of a cold start included.
        memory_size_mib: Configured memory.
        max_memory_used_mib: Peak memory of the environment so far.
        cold_start: True when the environment had served no invocation before.
        node_id: Node that ran the invocation.
        environment_id: Environment that ran the invocation.
        log_tail: The last 4 KiB of this invocation's log when `log_tail=True` was given.
        cold_start_phases: Where the time of a cold start went; None of a warm one, and where the environment had been
            made for a scheduler that is gone.
        restore_duration_ms: With SnapStart, what the hooks before the first invocation took; 0 otherwise.
    """

    payload: bytes
    request_id: str
    executed_version: str
    duration_ms: float
    billed_duration_ms: int
    init_duration_ms: float
    queue_ms: float
    memory_size_mib: int
    max_memory_used_mib: int
    cold_start: bool
    node_id: str
    environment_id: str
    log_tail: bytes
    cold_start_phases: ColdStartPhases | None = None
    restore_duration_ms: float = 0.0

    def json(self) -> Any:
        """Give the payload as Python values; None when it is empty.

        Raises:
            ValueError: The payload is not JSON.
        """
        return json.loads(self.payload) if self.payload else None


@dataclass(frozen=True, slots=True)
class Function:
    """A function version. Names, limits, states and defaults are AWS Lambda's.

    Attributes:
        version: `$LATEST` or a number in decimal.
        code_sha256: Lower-case hexadecimal SHA-256 of the zip.
        revision_id: Changes with every change of the version.
        reserved_concurrency: Reserved and greatest concurrency; None when none is reserved, or where it was not asked
            for (only `functions.get` asks).
        snap_start: True when published versions have environments initialised before calls come for them.
        snap_start_optimized: True for a version for which that was done before it became ACTIVE.
        network: Where its connections may go when it has no VpcConfig.
        vpc_config: The operator's networks that it may connect to instead; empty when there is none.
    """

    function_name: str
    function_arn: str
    version: str
    runtime: str
    handler: str
    role: str
    description: str
    timeout_s: float
    memory_mib: int
    ephemeral_storage_mib: int
    environment: Mapping[str, str]
    architectures: tuple[str, ...]
    code_size_bytes: int
    code_sha256: str
    revision_id: str
    last_modified: datetime
    state: FunctionState
    state_reason: str
    last_update_status: LastUpdateStatus
    last_update_status_reason: str
    reserved_concurrency: int | None = None
    snap_start: bool = False
    snap_start_optimized: bool = False
    network: NetworkMode = NetworkMode.EGRESS
    vpc_config: VpcConfig = NO_VPC

    @property
    def settled(self) -> bool:
        """True when neither creation nor an update is under way."""
        return self.state is not FunctionState.PENDING and self.last_update_status is not LastUpdateStatus.IN_PROGRESS

    @property
    def failed(self) -> bool:
        """True when creation or the last update failed; new code mends it."""
        return self.state is FunctionState.FAILED or self.last_update_status is LastUpdateStatus.FAILED


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for a version, or for two with weights.

    Attributes:
        additional_version_weights: Empty, or one other version with its probability in [0, 1].
        previous_function_version: Version it pointed to before the last update; what a rollback restores. Empty when
            there was none.
    """

    name: str
    alias_arn: str
    function_version: str
    description: str
    additional_version_weights: Mapping[str, float]
    revision_id: str
    previous_function_version: str


@dataclass(frozen=True, slots=True)
class Node:
    """One machine with an agent.

    Attributes:
        capacity: What it offers, by resource: `memory_mib`, `cpu_millis`, `disk_mib`.
        reserved: What is reserved, by the same names.
        labels: The operator's, and what the agent says of its isolation: see docs/security.md.
        environments: Environments alive.
        attached: True when the scheduler that answered has a stream to it.
    """

    node_id: str
    address: str
    capacity: Mapping[str, int]
    reserved: Mapping[str, int]
    labels: Mapping[str, str]
    runtimes: tuple[str, ...]
    environments: int
    draining: bool
    attached: bool
    agent_version: str
    start_time: datetime


@dataclass(frozen=True, slots=True)
class Component:
    """One part that the cluster is made of: etcd, nats, a scheduler."""

    name: str
    healthy: bool
    version: str
    message: str


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The state of the control plane. Counts of invocations are since the scheduler started."""

    version: str
    components: tuple[Component, ...]
    nodes: int
    functions: int
    environments: int
    concurrent_executions: int
    account_concurrency_limit: int
    waiting: int
    invocations: int
    throttles: int
    cold_starts: int

    @property
    def healthy(self) -> bool:
        """True when every part that was asked answers."""
        return all(component.healthy for component in self.components)


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One line of a function's log.

    Attributes:
        time: When the node read the line, UTC.
        message: The text without its final newline.
        log_stream: Name of the environment's stream: `YYYY/MM/DD/[version]<32 hex digits>`.
    """

    time: datetime
    message: str
    log_stream: str
    node_id: str
