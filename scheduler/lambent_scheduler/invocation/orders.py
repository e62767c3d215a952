"""The orders that a node gets about environments and calls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lambent.v1 import function_pb2, node_pb2

if TYPE_CHECKING:
    from lambent_scheduler.core.environments import Environment
    from lambent_scheduler.core.version import VersionSpec
    from lambent_scheduler.invocation.relayed_call import RelayedCall


def invoke_order(
    relayed: RelayedCall, environment: Environment, call_id: int, epoch: int, now: float
) -> node_pb2.NodeOrder:
    """Give the order that starts a call, `now` being the time of the dispatcher's clock."""
    call, opening = relayed.call, relayed.opening
    assert call is not None
    order = node_pb2.NodeOrder(call_id=call_id, partition=call.spec.partition, owner_epoch=epoch)
    # Not given to the constructor above: docs/adr/0002 says what that costs.
    order.open.CopyFrom(
        node_pb2.InvokeOpen(
            environment_id=environment.environment_id,
            request_id=call.request_id,
            invoked_function_arn=relayed.invoked_arn,
            timeout_us=0 if call.deadline == math.inf else max(1, int((call.deadline - now) * 1e6)),
            log_tail=opening.log_tail,
            streaming=opening.streaming,
            traceparent=opening.traceparent,
            client_context=opening.client_context,
            payload=opening.payload,
            complete=opening.complete,
            queue_us=int((now - call.arrived) * 1e6),
        )
    )
    return order


def start_order(environment_id: str, spec: VersionSpec, epoch: int) -> node_pb2.NodeOrder:
    """Give the order that makes an environment."""
    return node_pb2.NodeOrder(
        partition=spec.partition,
        owner_epoch=epoch,
        start_environment=node_pb2.StartEnvironment(
            environment_id=environment_id,
            account=spec.account,
            function_name=spec.function_name,
            version=spec.version,
            revision_id=spec.revision_id,
            runtime=spec.runtime,
            handler=spec.handler,
            code_sha256=spec.code_sha256,
            code_size_bytes=spec.code_size_bytes,
            environment_variables=spec.environment_variables,
            memory_mib=spec.memory_mib,
            ephemeral_storage_mib=spec.ephemeral_storage_mib,
            timeout_us=spec.timeout_us,
            function_arn=spec.function_arn,
            snap_start=spec.snap_start,
            network_mode=function_pb2.NetworkMode.ValueType(spec.network_mode),
            vpc_config=function_pb2.VpcConfig(subnet_ids=spec.subnet_ids, security_group_ids=spec.security_group_ids),
        ),
    )


def stop_order(environment_id: str, partition: int, epoch: int, reason: str, *, drain: bool) -> node_pb2.NodeOrder:
    """Give the order that ends an environment, with `drain` after the invocation that runs."""
    return node_pb2.NodeOrder(
        partition=partition,
        owner_epoch=epoch,
        stop_environment=node_pb2.StopEnvironment(environment_id=environment_id, reason=reason, drain=drain),
    )
