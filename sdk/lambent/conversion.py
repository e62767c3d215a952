"""From protobuf messages to the SDK's values. Nothing else in the SDK reads a reply's fields."""

from __future__ import annotations

from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from lambent.errors import InvalidParameterError
from lambent.results import (
    Alias,
    ClusterStatus,
    ColdStartPhases,
    Component,
    Function,
    FunctionState,
    InvokeResult,
    LastUpdateStatus,
    LogEvent,
    NetworkMode,
    Node,
    VpcConfig,
)
from lambent.v1 import function_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.timestamp_pb2 import Timestamp

    from lambent.v1 import cluster_pb2, frame_pb2, log_pb2

_LONGEST_DURATION_S = 315_576_000_000
"""Some 10,000 years (google.protobuf.Duration)."""

_STATES = {
    function_pb2.FUNCTION_STATE_PENDING: FunctionState.PENDING,
    function_pb2.FUNCTION_STATE_ACTIVE: FunctionState.ACTIVE,
    function_pb2.FUNCTION_STATE_FAILED: FunctionState.FAILED,
}

_NETWORK_MODES = {
    function_pb2.NETWORK_MODE_NONE: NetworkMode.NONE,
    function_pb2.NETWORK_MODE_EGRESS: NetworkMode.EGRESS,
}

_UPDATE_STATUSES = {
    function_pb2.LAST_UPDATE_STATUS_SUCCESSFUL: LastUpdateStatus.SUCCESSFUL,
    function_pb2.LAST_UPDATE_STATUS_FAILED: LastUpdateStatus.FAILED,
    function_pb2.LAST_UPDATE_STATUS_IN_PROGRESS: LastUpdateStatus.IN_PROGRESS,
}


def invoke_result(payload: bytes, report: frame_pb2.InvocationReport) -> InvokeResult:
    """Join an answer's body and figures."""
    return InvokeResult(
        payload=payload,
        request_id=report.request_id,
        executed_version=report.executed_version,
        duration_ms=report.duration_us / 1000,
        billed_duration_ms=report.billed_duration_ms,
        init_duration_ms=report.init_duration_us / 1000,
        queue_ms=report.queue_us / 1000,
        memory_size_mib=report.memory_size_mib,
        max_memory_used_mib=report.max_memory_used_mib,
        cold_start=report.cold_start,
        node_id=report.node_id,
        environment_id=report.environment_id,
        log_tail=report.log_tail,
        cold_start_phases=_cold_start_phases(report),
        restore_duration_ms=report.restore_duration_us / 1000,
    )


def _cold_start_phases(report: frame_pb2.InvocationReport) -> ColdStartPhases | None:
    if not report.HasField("cold_start_phases"):
        return None
    phases = report.cold_start_phases
    return ColdStartPhases(
        queue_ms=phases.queue_us / 1000,
        placement_ms=phases.placement_us / 1000,
        fetch_code_ms=phases.fetch_code_us / 1000,
        sandbox_ms=phases.sandbox_us / 1000,
        runtime_ms=phases.runtime_us / 1000,
        init_ms=phases.init_us / 1000,
    )


def function(message: function_pb2.Function, *, reserved_concurrency: int | None = None) -> Function:
    """Read one function version."""
    return Function(
        function_name=message.function_name,
        function_arn=message.function_arn,
        version=message.version,
        runtime=message.runtime,
        handler=message.handler,
        role=message.role,
        description=message.description,
        timeout_s=message.timeout.seconds + message.timeout.nanos / 1e9,
        memory_mib=message.memory_mib,
        ephemeral_storage_mib=message.ephemeral_storage_mib,
        environment=MappingProxyType(dict(message.environment_variables)),
        architectures=tuple(message.architectures),
        code_size_bytes=message.code_size_bytes,
        code_sha256=message.code_sha256,
        revision_id=message.revision_id,
        last_modified=time(message.last_modified_time),
        state=_STATES.get(message.state, FunctionState.UNKNOWN),
        state_reason=message.state_reason,
        last_update_status=_UPDATE_STATUSES.get(message.last_update_status, LastUpdateStatus.NONE),
        last_update_status_reason=message.last_update_status_reason,
        reserved_concurrency=reserved_concurrency,
        snap_start=message.snap_start.apply_on == function_pb2.SNAP_START_APPLY_ON_PUBLISHED_VERSIONS,
        snap_start_optimized=message.snap_start.optimized,
        network=_NETWORK_MODES.get(message.network_mode, NetworkMode.EGRESS),
        vpc_config=VpcConfig(tuple(message.vpc_config.subnet_ids), tuple(message.vpc_config.security_group_ids)),
    )


def snap_start(applied: bool | None) -> function_pb2.SnapStart | None:
    """Write the choice of SnapStart; None stays unset."""
    if applied is None:
        return None
    published, none = function_pb2.SNAP_START_APPLY_ON_PUBLISHED_VERSIONS, function_pb2.SNAP_START_APPLY_ON_NONE
    return function_pb2.SnapStart(apply_on=published if applied else none)


def network_mode(mode: NetworkMode | str | None) -> function_pb2.NetworkMode.ValueType | None:
    """Write a network mode; None stays None.

    Raises:
        InvalidParameterError: There is no such mode.
    """
    if mode is None:
        return None
    try:
        wanted = NetworkMode(mode)
    except ValueError as error:
        known = ", ".join(one.value for one in NetworkMode)
        raise InvalidParameterError(f"network {mode!r} is none of {known}") from error
    return next(number for number, one in _NETWORK_MODES.items() if one is wanted)


def vpc_config(config: VpcConfig | None) -> function_pb2.VpcConfig | None:
    """Write a VpcConfig; None stays None."""
    if config is None:
        return None
    return function_pb2.VpcConfig(subnet_ids=config.subnet_ids, security_group_ids=config.security_group_ids)


def alias(message: function_pb2.Alias) -> Alias:
    """Read one alias."""
    return Alias(
        name=message.name,
        alias_arn=message.alias_arn,
        function_version=message.function_version,
        description=message.description,
        additional_version_weights=MappingProxyType(dict(message.additional_version_weights)),
        revision_id=message.revision_id,
        previous_function_version=message.previous_function_version,
    )


def node(message: cluster_pb2.Node) -> Node:
    """Read one node."""
    return Node(
        node_id=message.node_id,
        address=message.address,
        capacity=MappingProxyType(dict(message.capacity)),
        reserved=MappingProxyType(dict(message.reserved)),
        labels=MappingProxyType(dict(message.labels)),
        runtimes=tuple(message.runtimes),
        environments=message.environments,
        draining=message.draining,
        attached=message.attached,
        agent_version=message.agent_version,
        start_time=time(message.start_time),
    )


def cluster_status(message: cluster_pb2.GetStatusResponse) -> ClusterStatus:
    """Read the state of the control plane."""
    return ClusterStatus(
        version=message.version,
        components=tuple(
            Component(part.name, healthy=part.healthy, version=part.version, message=part.message)
            for part in message.components
        ),
        nodes=message.nodes,
        functions=message.functions,
        environments=message.environments,
        concurrent_executions=message.concurrent_executions,
        account_concurrency_limit=message.account_concurrency_limit,
        waiting=message.waiting,
        invocations=message.invocations,
        throttles=message.throttles,
        cold_starts=message.cold_starts,
    )


def log_events(batch: log_pb2.LogBatch) -> Iterator[LogEvent]:
    """Read the lines of one batch. Where lines were dropped, one of them is the node's `platform.logsDropped`."""
    for event in batch.events:
        for message in event.message.split("\n") if event.lines > 1 else (event.message,):
            yield LogEvent(time(event.event_time), message, batch.log_stream, batch.node_id)


def time(stamp: Timestamp) -> datetime:
    """Read a time, UTC, to the microsecond."""
    return stamp.ToDatetime(tzinfo=UTC)


def duration(name: str, seconds: float | None) -> Duration | None:
    """Write a duration, to the microsecond; None stays unset.

    Raises:
        InvalidParameterError: It is no number, or longer than a duration can be.
    """
    if seconds is None:
        return None
    if not abs(seconds) <= _LONGEST_DURATION_S:  # Not a number compares as false.
        raise InvalidParameterError(f"{name} is {seconds}, which is no time span")
    message = Duration()
    message.FromMicroseconds(round(seconds * 1_000_000))
    return message
