"""What never changes about an environment, read from the order that makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent_node_agent.environment.model import INIT_TIMEOUT_S, SNAP_START_INIT_TIMEOUT_S, Facts
from lambent_node_agent.environment.variables import region_of
from lambent_node_agent.logs import platform_lines

if TYPE_CHECKING:
    from lambent.v1 import node_pb2
    from lambent_node_agent.environment.model import Lifetime


def facts_of(start: node_pb2.StartEnvironment, lifetime: Lifetime, ordered_at: float) -> Facts:
    """Read an order.

    Args:
        start: The order.
        lifetime: How long environments are to serve on this node.
        ordered_at: Monotonic time at which it came.
    """
    region = region_of(start.function_arn)
    snap_start_init_s = max(SNAP_START_INIT_TIMEOUT_S, start.timeout_us / 1e6)
    return Facts(
        version=start.version,
        memory_mib=start.memory_mib,
        init_start_line=platform_lines.init_start(start.runtime, region),
        most_invocations=lifetime.invocations,
        spent_at=ordered_at + lifetime.age_s,
        snap_start=start.snap_start,
        init_timeout_s=snap_start_init_s if start.snap_start else INIT_TIMEOUT_S,
        restore_start_line=platform_lines.restore_start(start.runtime, region),
    )
